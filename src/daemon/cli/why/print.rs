//! An answer as text for a terminal. What others wrote is escaped.

use std::io::{self, Write};

use serde_json::Value;

use super::case::{Case, Delivery};
use super::verdict::verdict;
use super::words::{Words, explain, short};
use super::{Found, MANY};
use crate::daemon::cli::cell;

/// Several tasks: a line each, and how to ask for one.
pub(super) fn several(out: &mut impl Write, what: &str, found: &[(Found, Case)]) -> io::Result<()> {
    let at_least = if i64::try_from(found.len()).is_ok_and(|n| n >= MANY) { "at least " } else { "" };
    writeln!(out, "{at_least}{} tasks are known as {}:\n", found.len(), cell(&what.into()))?;
    for (found, case) in found {
        writeln!(
            out,
            "{}  ({})",
            clean(&found.task_id),
            clean(found.table.as_deref().unwrap_or("no table"))
        )?;
        writeln!(out, "    {}", clean(&verdict(case).words().says))?;
    }
    writeln!(out, "\nMore than one match: ask again by task id, and with --table where two tables have it.")
}

/// One task: the verdict first, then what it rests on.
pub(super) fn one(out: &mut impl Write, found: &Found, case: &Case, words: &Words) -> io::Result<()> {
    write!(out, "{}", clean(&found.task_id))?;
    if let Some(task) = &case.task {
        let account = task.account_id.as_deref().map(|account| format!(", account {account}"));
        let detail = format!(" ({}{}): {}", task.task_type, account.unwrap_or_default(), task.state);
        write!(out, "{}", clean(&detail))?;
    }
    writeln!(out, "\n\n  {}\n", clean(&words.says))?;
    if let Some(todo) = &words.todo {
        writeln!(out, "  What to do: {}\n", clean(todo))?;
    }
    if !case.timeline.is_empty() {
        writeln!(out, "States")?;
    }
    for change in &case.timeline {
        writeln!(out, "  {}  {}", clean(&short(&change.at)), clean(&change.to))?;
    }
    if let Some(registration) = &case.registration {
        writeln!(out, "Registration of {}", clean(&short(&registration.registered_at)))?;
        let scope = registration.signing_scope.as_deref().map(|scope| format!(", scope {scope}"));
        let states = match registration.states.as_slice() {
            [] => String::new(),
            states => format!("; also rings for {}", states.join(", ")),
        };
        let line = format!(
            "  {}  operation {}, {}{}{states}",
            registration.url,
            registration.operation_id,
            registration.scheme,
            scope.unwrap_or_default()
        );
        writeln!(out, "{}", clean(&line))?;
    }
    for webhook in &case.deliveries {
        delivery(out, webhook)?;
    }
    let daemon = match (case.daemon.listens, case.daemon.awake) {
        (_, true) => "awake",
        (true, false) => "connected, asleep until something is due",
        (false, false) => "none is connected to this database",
    };
    writeln!(out, "Daemon: {daemon}")
}

fn delivery(out: &mut impl Write, delivery: &Delivery) -> io::Result<()> {
    let whose = if delivery.source == "sealed" { "the SDK's webhook" } else { "Webhook" };
    let head = format!("{whose} {} for {}: {}", delivery.delivery_id, delivery.task_state, delivery.state);
    writeln!(out, "{}", clean(&head))?;
    let operation = delivery.operation_id.as_deref().unwrap_or("-");
    let line = format!(
        "  {}  operation {operation}, key {}",
        delivery.url.as_deref().unwrap_or("-"),
        delivery.idempotency_key
    );
    writeln!(out, "{}", clean(&line))?;
    for attempt in &delivery.attempts {
        let status = attempt.status.map(|status| format!(", {status}")).unwrap_or_default();
        let reason = attempt.reason.as_deref().map(|reason| format!(", {reason}: {}", explain(reason)));
        let line = format!(
            "  attempt {} at {}, {} ms{status}{}",
            attempt.attempt,
            short(&attempt.started_at),
            attempt.duration_ms,
            reason.unwrap_or_else(|| format!(", {}", attempt.verdict))
        );
        writeln!(out, "{}", clean(&line))?;
    }
    Ok(())
}

fn clean(text: &str) -> String {
    cell(&Value::from(text))
}

//! What must hold at the end, held against three records: the task table (what was committed),
//! the receivers' book (what arrived) and our own tables (what we believe).
//!
//! Metrics die with a daemon that is killed, and an answer of the database that is lost takes
//! the transitions in it along: so *exactly once in the metrics* is asserted where neither can
//! happen (a run of gentle faults, and after every run some calm tasks); what is asserted of
//! every run is that each transition stands in the journal exactly once.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;
use tokio_postgres::{Client, Row};

use super::daemons::LEASE;
use super::faults::{Fault, Kind};
use super::receiver::{Answer, FINAL, Post};

/// What a run came to.
#[derive(Default)]
pub struct Verdict {
    /// Webhooks owed for committed ends of tasks, and for open states that a buyer asked for.
    pub owed: usize,
    pub delivered: usize,
    pub superseded: usize,
    /// By reason.
    pub dead: BTreeMap<String, usize>,
    pub transitions: usize,
    /// Settlements that were held against the lease that they were made under.
    pub settlements: usize,
    pub posts: usize,
    /// POSTs of webhooks that their receiver had accepted before, by what explains them.
    pub duplicates: BTreeMap<&'static str, usize>,
    /// Everything that must not be.
    pub broken: Vec<String>,
}

/// One committed task.
struct Task {
    state: String,
    registered: bool,
    hears_work: bool,
    /// The tries that wrote its documents: `working`, and the end.
    worked: Option<String>,
    ended: Option<String>,
}

/// A webhook in our tables.
struct Delivery {
    id: i64,
    task: String,
    task_state: String,
    state: String,
    key: String,
    reason: Option<String>,
}

struct Attempt {
    number: i32,
    verdict: String,
    reason: Option<String>,
}

const EXPIRED: &str = "horizon passed";

impl Verdict {
    /// Judges. `posts` in the order in which they came.
    pub async fn reach(client: &Client, posts: &[Post], faults: &[Fault]) -> Self {
        let mut this = Self { posts: posts.len(), ..Self::default() };
        let tasks: HashMap<String, Task> = all(client, TASKS, |row| {
            let context: Value = serde_json::from_str(row.get(2)).unwrap();
            let task = Task {
                state: row.get(1),
                registered: context["registered"] == true,
                hears_work: context["hears_work"] == true,
                worked: row.get(3),
                ended: row.get(4),
            };
            (row.get(0), task)
        })
        .await;
        let deliveries: Vec<Delivery> = all(client, DELIVERIES, |row| Delivery {
            id: row.get(0),
            task: row.get(1),
            task_state: row.get(2),
            state: row.get(3),
            key: row.get(4),
            reason: row.get(5),
        })
        .await;
        let mut attempts: HashMap<i64, Vec<Attempt>> = HashMap::new();
        for (id, attempt) in all::<Vec<_>, _>(client, ATTEMPTS, |row| {
            (row.get(0), Attempt { number: row.get(1), verdict: row.get(2), reason: row.get(3) })
        })
        .await
        {
            attempts.entry(id).or_default().push(attempt);
        }
        this.transitions(client, &tasks).await;
        this.leases(client).await;
        this.deliveries(&tasks, &deliveries, posts);
        this.expiries(faults);
        this.attempts(&deliveries, &attempts);
        this.bodies(&tasks, &deliveries, posts);
        this.duplicates(&deliveries, &attempts, posts, faults);
        this
    }

    fn complain(&mut self, what: String) {
        self.broken.push(what);
    }

    /// Each committed transition stands in the journal once, and no other does.
    async fn transitions(&mut self, client: &Client, tasks: &HashMap<String, Task>) {
        let found: Vec<(String, Option<String>, String)> =
            all(client, TRANSITIONS, |row| (row.get(0), row.get(1), row.get(2))).await;
        let mut counted: HashMap<(String, Option<String>, String), usize> = HashMap::new();
        for transition in found {
            *counted.entry(transition).or_default() += 1;
        }
        self.transitions = counted.values().sum();
        for (id, task) in tasks {
            let mut path: Vec<&str> = vec!["submitted"];
            path.extend(task.worked.as_ref().map(|_| "working"));
            path.extend(task.ended.as_ref().map(|_| task.state.as_str()));
            let mut from = None;
            for to in path {
                let key = (id.clone(), from.map(str::to_owned), to.to_owned());
                match counted.remove(&key) {
                    Some(1) => {}
                    other => self.complain(format!("{id}: {from:?} to {to} is journaled {other:?} times")),
                }
                from = Some(to);
            }
        }
        for (transition, _) in counted {
            self.complain(format!("{transition:?} is journaled and was never committed"));
        }
    }

    /// Nobody settles what is under somebody else's lease, or takes it before that is over.
    async fn leases(&mut self, client: &Client) {
        let settlements: Vec<Option<String>> = all(client, SETTLEMENTS, |row| row.get(0)).await;
        self.settlements = settlements.len();
        if self.settlements == 0 {
            self.complain("nothing was settled".to_owned());
        }
        let nameless: i64 = client.query_one(NAMELESS, &[]).await.unwrap().get(0);
        if nameless > 0 {
            self.complain(format!("{nameless} leases are held by nobody knows whom"));
        }
        for wrong in settlements.into_iter().flatten() {
            self.complain(wrong);
        }
    }

    /// What is owed was accepted, or is a dead letter for a reason that a receiver or a leap of
    /// the clock has given.
    fn deliveries(&mut self, tasks: &HashMap<String, Task>, deliveries: &[Delivery], posts: &[Post]) {
        let (mut booked, mut refused): (HashSet<&str>, HashSet<&str>) = Default::default();
        for post in posts {
            if post.answer.books() {
                booked.insert(&post.key);
            }
            if matches!(post.answer, Answer::Refused(status) if FINAL.contains(&status)) {
                refused.insert(&post.key);
            }
        }
        let mut found: HashMap<(&str, &str), &Delivery> = HashMap::new();
        for delivery in deliveries {
            if found.insert((&delivery.task, &delivery.task_state), delivery).is_some() {
                self.complain(format!("{} {} is owed twice", delivery.task, delivery.task_state));
            }
        }
        for (id, task) in tasks.iter().filter(|(_, task)| task.registered) {
            let ended = task.ended.as_ref().map(|_| task.state.as_str());
            let worked = task.worked.as_ref().filter(|_| task.hears_work).map(|_| "working");
            for state in ended.into_iter().chain(worked) {
                self.owed += 1;
                let Some(delivery) = found.remove(&(id.as_str(), state)) else {
                    self.complain(format!("LOST: nothing is known of {id} {state}"));
                    continue;
                };
                let (booked, refused) =
                    (booked.contains(delivery.key.as_str()), refused.contains(delivery.key.as_str()));
                match (delivery.state.as_str(), delivery.reason.as_deref()) {
                    ("delivered", _) if booked => self.delivered += 1,
                    ("delivered", _) => self.complain(format!("LOST: {id} {state} was never accepted")),
                    ("superseded", _) if state == "working" => self.superseded += 1,
                    ("invalid", Some(reason)) if refused => {
                        *self.dead.entry(reason.to_owned()).or_default() += 1;
                    }
                    ("expired", Some(_)) => *self.dead.entry(EXPIRED.to_owned()).or_default() += 1,
                    (other, reason) => self.complain(format!("{id} {state} is {other} ({reason:?})")),
                }
            }
        }
        for (task, state) in found.into_keys() {
            self.complain(format!("PHANTOM: {task} {state} is owed, but was never committed"));
        }
    }

    /// Nothing expires but what a leap of the clock took past its horizon, two rows at a time.
    fn expiries(&mut self, faults: &[Fault]) {
        let leaps = faults.iter().filter(|fault| matches!(fault.kind, Kind::HorizonLeap)).count();
        let expired = self.dead.get(EXPIRED).copied().unwrap_or_default();
        // One more may have been made whose answer was lost.
        if expired > 2 * (leaps + 1) {
            self.complain(format!("LOST: {expired} expired after {leaps} leaps of the clock"));
        }
    }

    /// The attempt log does not contradict itself: attempts have different numbers, at most one
    /// acknowledges or kills, and none comes after it.
    fn attempts(&mut self, deliveries: &[Delivery], attempts: &HashMap<i64, Vec<Attempt>>) {
        for delivery in deliveries {
            let Some(log) = attempts.get(&delivery.id) else { continue };
            let numbers: HashSet<i32> = log.iter().map(|attempt| attempt.number).collect();
            let ends: Vec<&Attempt> = log.iter().filter(|attempt| attempt.verdict != "release").collect();
            let last = log.iter().map(|attempt| attempt.number).max();
            if numbers.len() != log.len() || ends.len() > 1 || ends.iter().any(|end| Some(end.number) != last)
            {
                let words: Vec<String> =
                    log.iter().map(|attempt| format!("{} {}", attempt.number, attempt.verdict)).collect();
                self.complain(format!("{}: contradictory attempts: {words:?}", delivery.task));
            }
            let acknowledged = ends.iter().any(|end| end.verdict == "acknowledge");
            if acknowledged != (delivery.state == "delivered") {
                self.complain(format!(
                    "{}: {} but acknowledged: {acknowledged}",
                    delivery.task, delivery.state
                ));
            }
        }
    }

    /// One key and one body for each webhook, and the body is of the try that was committed.
    fn bodies(&mut self, tasks: &HashMap<String, Task>, deliveries: &[Delivery], posts: &[Post]) {
        let known: HashMap<&str, &Delivery> =
            deliveries.iter().map(|delivery| (delivery.key.as_str(), delivery)).collect();
        let mut bodies: HashMap<&str, &[u8]> = HashMap::new();
        for post in posts {
            if let Some(first) = bodies.get(post.key.as_str()) {
                if **first != *post.body {
                    self.complain(format!("{} came with two bodies", post.key));
                }
                continue;
            }
            bodies.insert(&post.key, &post.body);
            let body: Value = serde_json::from_slice(&post.body).unwrap();
            let Some(delivery) = known.get(post.key.as_str()) else {
                self.complain(format!("PHANTOM: {} for {} was never owed", post.key, body["task_id"]));
                continue;
            };
            let same = body["task_id"] == *delivery.task && body["status"] == *delivery.task_state;
            let task = tasks.get(&delivery.task);
            let committed = task.and_then(|task| match delivery.task_state.as_str() {
                "working" => task.worked.as_deref(),
                _ => task.ended.as_deref(),
            });
            let sent = &body["result"]["try"];
            let sent = sent.as_str().or(body["result"]["adcp_error"]["try"].as_str());
            if !same || sent.is_none() || sent != committed {
                self.complain(format!(
                    "PHANTOM: {} carries {sent:?}, committed is {committed:?}",
                    delivery.task
                ));
            }
        }
    }

    /// Why each webhook came again after it had been accepted.
    fn duplicates(
        &mut self,
        deliveries: &[Delivery],
        attempts: &HashMap<i64, Vec<Attempt>>,
        posts: &[Post],
        faults: &[Fault],
    ) {
        let ids: HashMap<&str, i64> =
            deliveries.iter().map(|delivery| (delivery.key.as_str(), delivery.id)).collect();
        let mut last_booked: HashMap<&str, &Post> = HashMap::new();
        for post in posts {
            if let Some(before) = last_booked.get(post.key.as_str()) {
                let log = ids.get(post.key.as_str()).and_then(|id| attempts.get(id));
                let why = explain(before, post, log.map_or(&[], Vec::as_slice), faults);
                if why == UNEXPLAINED {
                    self.broken.push(format!("{} came again without a reason", post.key));
                }
                *self.duplicates.entry(why).or_default() += 1;
            }
            if post.answer.books() {
                last_booked.insert(&post.key, post);
            }
        }
    }
}

/// What made a webhook come again: the receiver, or of the faults that can, the one nearest to
/// its acceptance.
fn explain(before: &Post, again: &Post, log: &[Attempt], faults: &[Fault]) -> &'static str {
    if before.answer == Answer::AcceptedUnheard {
        return "the receiver accepted, but did not say so in time";
    }
    let slot = before.sender.split('-').next().unwrap_or_default();
    let distance = |fault: &Fault| {
        let hers = fault.of.as_deref().is_none_or(|of| of == before.sender || of == slot);
        // A lease may have been over before the acceptance, and a fault that has passed may have
        // left a connection that fails later; none can work back from after the next attempt.
        let near = fault.from <= again.at && fault.until + LEASE >= before.at;
        let gap = fault.from.saturating_duration_since(before.at)
            + before.at.saturating_duration_since(fault.until);
        (hers && near).then_some(gap)
    };
    let candidates = faults.iter().filter_map(|fault| Some((distance(fault)?, reason(fault.kind)?)));
    if let Some((_, why)) = candidates.min_by_key(|(gap, _)| *gap) {
        return why;
    }
    let unheard = ["timeout", "reset", "connect", "response_broken"];
    let failed =
        |attempt: &Attempt| attempt.reason.as_deref().is_some_and(|reason| unheard.contains(&reason));
    if log.iter().any(failed) { "the answer was lost on the way, or late" } else { UNEXPLAINED }
}

/// How a fault makes a webhook come twice, if it can.
fn reason(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Kill => "the daemon was killed before it settled",
        Kind::Stop => "the daemon stopped before it could settle",
        Kind::Freeze => "the daemon was frozen beyond its lease",
        Kind::Stutter => "the daemon was frozen while the answer came",
        Kind::Crash => "the database crashed and forgot, or could not be told",
        Kind::Terminate => "the settle was lost: backend terminated",
        Kind::Cut => "the settle was lost: connection cut",
        Kind::Blackhole => "the settle did not get through: silent connection",
        Kind::Partition => "the settle did not get through: partition",
        Kind::DiskFull => "the settle was refused: disk full",
        Kind::LeaseLeap => "the lease was over: the database's clock leapt",
        Kind::TerminateEar | Kind::PinXmin | Kind::ReceiverDown | Kind::HorizonLeap => return None,
    })
}

const UNEXPLAINED: &str = "UNEXPLAINED";

async fn all<C: FromIterator<T>, T>(client: &Client, sql: &str, row: impl Fn(&Row) -> T) -> C {
    client.query(sql, &[]).await.unwrap().iter().map(row).collect()
}

const TASKS: &str = "SELECT task_id, state, request_context::text, progress ->> 'try', \
     coalesce(result, error) ->> 'try' FROM decisioning_tasks";
const DELIVERIES: &str =
    "SELECT delivery_id, task_id, task_state, state, idempotency_key, last_reason FROM taskbell.delivery";
const ATTEMPTS: &str = "SELECT outbox_id, attempt, verdict, reason FROM taskbell.attempt";
const NAMELESS: &str = "SELECT count(*) FROM chaos_lease WHERE holder = 'nobody'";
const SETTLEMENTS: &str = "SELECT CASE WHEN wrong IS NOT NULL THEN format('webhook %s was %s', row_id, wrong) END FROM chaos_settlement";
const TRANSITIONS: &str = "SELECT task_id, from_state, to_state FROM taskbell.timeline";

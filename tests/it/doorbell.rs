//! No interleaving leaves a committed row unseen with the daemon asleep.
//!
//! The first test runs the real steps on real connections in every order; the second the real
//! worker against real sellers with the safety poll far away.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use taskbell::listener::{Doorbell, Gate, Heard, Horizon, Listener, Session};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;

use super::support::{TestDatabase, daemon, eventually};

/// What a seller does with a transaction, step by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seller {
    Begin,
    Update,
    Commit,
    Rollback,
}

/// What a daemon does from one sleep to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Close,
    Look,
    Open,
    Settle,
}

const SELLER: [[Seller; 3]; 2] =
    [[Seller::Begin, Seller::Update, Seller::Commit], [Seller::Begin, Seller::Update, Seller::Rollback]];
const DAEMON: [Daemon; 4] = [Daemon::Close, Daemon::Look, Daemon::Open, Daemon::Settle];

/// Every merge of two sequences: true takes from the first.
fn merges(first: usize, second: usize) -> Vec<Vec<bool>> {
    match (first, second) {
        (0, n) => vec![vec![false; n]],
        (n, 0) => vec![vec![true; n]],
        _ => {
            let prefixed = |head: bool, tails: Vec<Vec<bool>>| {
                tails.into_iter().map(move |mut tail| {
                    tail.insert(0, head);
                    tail
                })
            };
            prefixed(true, merges(first - 1, second))
                .chain(prefixed(false, merges(first, second - 1)))
                .collect()
        }
    }
}

/// A listener that only counts bells.
async fn bells(database: &TestDatabase) -> (Client, Arc<AtomicBool>) {
    let Session { client, mut messages } = database.connector.connect().await.unwrap();
    let rang = Arc::new(AtomicBool::new(false));
    let heard = rang.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if matches!(message, AsyncMessage::Notification(_)) {
                heard.store(true, Ordering::SeqCst);
            }
        }
    });
    client.batch_execute("LISTEN taskbell").await.unwrap();
    (client, rang)
}

/// The rows that a look takes out of the outbox.
async fn look(client: &Client) -> Vec<String> {
    let rows =
        client.query("DELETE FROM taskbell.outbox WHERE to_state = 'completed' RETURNING task_id", &[]).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn step(seller: &Client, task: &str, step: Seller) {
    let sql = match step {
        Seller::Begin => "BEGIN".to_owned(),
        Seller::Update => {
            format!("UPDATE decisioning_tasks SET state = 'completed' WHERE task_id = '{task}'")
        }
        Seller::Commit => "COMMIT".to_owned(),
        Seller::Rollback => "ROLLBACK".to_owned(),
    };
    seller.batch_execute(&sql).await.unwrap();
}

/// Two sellers' and one daemon's steps in every order; after each the daemon must either have
/// seen every committed row, or have been rung, or not yet be asleep.
#[tokio::test]
async fn no_order_of_wake_sleep_commit_and_rollback_leaves_a_row_unseen() {
    let database = TestDatabase::migrated().await;
    let (listening, rang) = bells(&database).await;
    let (gate, worker) = (database.client().await, database.client().await);
    let sellers = [database.client().await, database.client().await];
    Gate(&gate).set_up(Duration::from_millis(5)).await.unwrap();
    let mut explored = 0;
    for merge in merges(SELLER[0].len(), DAEMON.len()) {
        for ending in SELLER {
            // A second seller, whose transaction spans the first part or the last.
            for second in [None, Some(0), Some(merge.len() / 2)] {
                explored += 1;
                let tasks = [format!("task_{explored}_a"), format!("task_{explored}_b")];
                for task in &tasks {
                    super::support::issue(&worker, task, None).await;
                }
                worker.batch_execute("DELETE FROM taskbell.outbox").await.unwrap();
                listening.batch_execute("SELECT 1").await.unwrap();
                rang.store(false, Ordering::SeqCst);
                let (mut seller_steps, mut daemon_steps) = (ending.iter(), DAEMON.iter());
                let (mut seen, mut horizon, mut asleep): (HashSet<String>, Option<Horizon>, bool) =
                    Default::default();
                for (at, take_seller) in merge.iter().enumerate() {
                    if second == Some(at) {
                        step(&sellers[1], &tasks[1], Seller::Begin).await;
                        step(&sellers[1], &tasks[1], Seller::Update).await;
                    }
                    if *take_seller {
                        step(&sellers[0], &tasks[0], *seller_steps.next().unwrap()).await;
                        continue;
                    }
                    match daemon_steps.next().unwrap() {
                        Daemon::Close => drop(Gate(&gate).close().await.unwrap()),
                        Daemon::Look => seen.extend(look(&worker).await),
                        Daemon::Open => horizon = Some(Gate(&gate).open().await.unwrap()),
                        // What the worker does: look, and sleep only if the horizon had passed before.
                        Daemon::Settle => {
                            asleep = Gate(&gate).passed(horizon.unwrap()).await.unwrap();
                            seen.extend(look(&worker).await);
                        }
                    }
                }
                if second.is_some() {
                    step(&sellers[1], &tasks[1], Seller::Commit).await;
                }
                // A notification arrives before the answer to a later statement of its session.
                listening.batch_execute("SELECT 1").await.unwrap();
                tokio::task::yield_now().await;
                let committed = [(ending[2] == Seller::Commit, &tasks[0]), (second.is_some(), &tasks[1])];
                for (committed, task) in committed {
                    let unseen = committed && !seen.contains(task);
                    assert!(
                        !(unseen && asleep && !rang.load(Ordering::SeqCst)),
                        "{task} is committed, unseen and unannounced: {merge:?} {ending:?} {second:?}"
                    );
                }
                // One that is not asleep keeps looking until the horizon passes, and sees all.
                if !asleep {
                    while !Gate(&gate).passed(horizon.unwrap()).await.unwrap() {}
                    seen.extend(look(&worker).await);
                }
                for (committed, task) in committed {
                    let known = seen.contains(task) || rang.load(Ordering::SeqCst);
                    assert!(!committed || known, "{task}: {merge:?} {ending:?} {second:?}");
                    assert!(committed || !seen.contains(task), "{task} was rolled back, but seen");
                }
            }
        }
    }
    assert_eq!(explored, 35 * 2 * 3);
}

/// Every merge of three sequences, as the number of the sequence that takes each step.
fn merges_of_three(left: [usize; 3]) -> Vec<Vec<usize>> {
    if left == [0; 3] {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for next in 0..3 {
        if left[next] > 0 {
            let mut rest = left;
            rest[next] -= 1;
            all.extend(merges_of_three(rest).into_iter().map(|mut tail| {
                tail.insert(0, next);
                tail
            }));
        }
    }
    all
}

/// One seller and two daemons: a row that is committed was seen by one of them, or one of them
/// is still looking, or the bell rang. Every ninth of the 11,550 orders, and both ends.
#[tokio::test]
async fn two_daemons_do_not_hide_a_row_from_each_other() {
    let database = TestDatabase::migrated().await;
    let (listening, rang) = bells(&database).await;
    let (worker, seller) = (database.client().await, database.client().await);
    let gates = [database.client().await, database.client().await];
    for gate in &gates {
        Gate(gate).set_up(Duration::from_millis(1)).await.unwrap();
    }
    let orders = merges_of_three([SELLER[0].len(), DAEMON.len(), DAEMON.len()]);
    assert_eq!(orders.len(), 11_550);
    for (explored, order) in orders.into_iter().step_by(9).enumerate() {
        let ending = SELLER[explored % 2];
        let task = format!("task_{explored}");
        super::support::issue(&worker, &task, None).await;
        worker.batch_execute("DELETE FROM taskbell.outbox").await.unwrap();
        listening.batch_execute("SELECT 1").await.unwrap();
        rang.store(false, Ordering::SeqCst);
        let mut seller_steps = ending.iter();
        let mut daemon_steps = [DAEMON.iter(), DAEMON.iter()];
        let (mut horizons, mut asleep, mut seen) = ([None; 2], [false; 2], HashSet::new());
        for next in &order {
            let Some(daemon) = next.checked_sub(1) else {
                step(&seller, &task, *seller_steps.next().unwrap()).await;
                continue;
            };
            let gate = Gate(&gates[daemon]);
            match daemon_steps[daemon].next().unwrap() {
                Daemon::Close => drop(gate.close().await.unwrap()),
                Daemon::Look => seen.extend(look(&worker).await),
                Daemon::Open => horizons[daemon] = Some(gate.open().await.unwrap()),
                Daemon::Settle => {
                    asleep[daemon] = gate.passed(horizons[daemon].unwrap()).await.unwrap();
                    seen.extend(look(&worker).await);
                }
            }
        }
        listening.batch_execute("SELECT 1").await.unwrap();
        tokio::task::yield_now().await;
        let committed = ending[2] == Seller::Commit;
        let known = seen.contains(&task) || rang.load(Ordering::SeqCst) || asleep != [true; 2];
        assert!(!committed || known, "{order:?}");
        assert!(committed || !seen.contains(&task), "{order:?}");
        for daemon in 0..2 {
            if !asleep[daemon] {
                while !Gate(&gates[daemon]).passed(horizons[daemon].unwrap()).await.unwrap() {}
                seen.extend(look(&worker).await);
            }
        }
        assert!(!committed || seen.contains(&task) || rang.load(Ordering::SeqCst), "{order:?}");
    }
}

/// A bell is silent while a daemon is awake, and rings when none is.
#[tokio::test]
async fn the_bell_is_silent_only_while_somebody_is_awake() {
    let database = TestDatabase::migrated().await;
    let (listening, rang) = bells(&database).await;
    let (gate, seller) = (database.client().await, database.client().await);
    Gate(&gate).set_up(Duration::from_millis(50)).await.unwrap();
    let rings = async |task: &str| {
        rang.store(false, Ordering::SeqCst);
        super::support::issue(&seller, task, None).await;
        listening.batch_execute("SELECT 1").await.unwrap();
        rang.load(Ordering::SeqCst)
    };
    assert!(rings("task_1").await);
    assert!(Gate(&gate).close().await.unwrap());
    assert!(!rings("task_2").await);
    Gate(&gate).open().await.unwrap();
    assert!(rings("task_3").await);
    // A seller that already rang shares the lock: asking in vain must not wait for long.
    seller.batch_execute("BEGIN; UPDATE decisioning_tasks SET state = 'working'").await.unwrap();
    assert!(!timeout(Duration::from_secs(5), Gate(&gate).close()).await.unwrap().unwrap());
    seller.batch_execute("COMMIT").await.unwrap();
    assert!(Gate(&gate).close().await.unwrap());
    assert!(Gate(&listening).held_by_another().await.unwrap());
}

/// Whoever waits for silence gets it after the seller's transaction that is in the way, whatever else is asked meanwhile.
#[tokio::test]
async fn a_question_in_between_does_not_take_back_the_wish_for_silence() {
    let database = TestDatabase::migrated().await;
    let (seller, other) = (database.client().await, database.client().await);
    let stop = CancellationToken::new();
    let (doorbell, porter) = Doorbell::new(database.connector.handle(), stop.clone());
    let porter = tokio::spawn(porter);
    super::support::issue(&seller, "task_1", None).await;
    seller.batch_execute("BEGIN; UPDATE decisioning_tasks SET state = 'working'").await.unwrap();
    doorbell.close();
    doorbell.held_by_another().await.unwrap();
    doorbell.in_line().await.unwrap();
    seller.batch_execute("COMMIT").await.unwrap();
    let silent = async || Gate(&other).held_by_another().await.unwrap();
    eventually("silence", async || silent().await.then_some(())).await;
    // Nor does a new connection.
    other.batch_execute(CUT_OFF).await.unwrap();
    eventually("silence on a new connection", async || silent().await.then_some(())).await;
    doorbell.open().await.unwrap();
    assert!(!silent().await);
    stop.cancel();
    porter.await.unwrap();
}

/// Ends the sessions of this database that keep its bell silent, and waits until they have gone.
const CUT_OFF: &str = "SELECT pg_terminate_backend(l.pid, 10000) \
                       FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                       WHERE l.locktype = 'advisory' AND d.datname = current_database()";

/// A bell says where to look, and no more than that to whoever else listens.
#[tokio::test]
async fn the_bell_names_the_place_by_a_number() {
    let database = TestDatabase::migrated().await;
    let (seller, stop) = (database.client().await, CancellationToken::new());
    let (listener, mut wakes, _) = Listener::new(database.connector.handle(), Duration::from_secs(60));
    let listening = tokio::spawn(listener.run(stop.clone()));
    assert!(wakes.next().await.connected);
    super::support::issue(&seller, "task_1", Some("https://buyer.example/here")).await;
    assert_eq!(wakes.next().await, Heard { bells: 1, changes: true, ..Heard::default() });
    let number = "SELECT taskbell.bell_of('https://buyer.example:443', 'acct')::bigint";
    let place: i64 = seller.query_one(number, &[]).await.unwrap().get(0);
    super::support::issue(&seller, "task_2", Some("https://buyer.example/there")).await;
    assert!(wakes.next().await.changes);
    // Two of one place in one transaction ring once.
    seller.batch_execute("UPDATE decisioning_tasks SET state = 'failed'").await.unwrap();
    let places = BTreeSet::from([place]);
    assert_eq!(wakes.next().await, Heard { bells: 1, places, ..Heard::default() });
    seller.batch_execute("SELECT taskbell.ring()").await.unwrap();
    assert_eq!(wakes.next().await, Heard { bells: 1, anywhere: true, ..Heard::default() });
    stop.cancel();
    listening.await.unwrap();
}

/// Two real workers, their safety poll an hour away, and sellers that commit, hesitate and roll back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_missed_under_real_concurrency_without_the_safety_poll() {
    let database = TestDatabase::migrated().await;
    let receiver = super::support::receiver::Receiver::start().await;
    let tune = |tuning: &mut daemon::Tuning| {
        tuning.worker.safety_poll = Duration::from_secs(3600);
        tuning.worker.linger = Duration::from_millis(3);
    };
    let daemons = [
        daemon::Daemon::start(&database, &receiver, tune).await,
        daemon::Daemon::start(&database, &receiver, tune).await,
    ];
    let url = receiver.url("/ok");
    let mut sellers = Vec::new();
    for seller in 0..6_u64 {
        let (client, url) = (database.client().await, url.clone());
        sellers.push(tokio::spawn(async move {
            let mut committed = Vec::new();
            for n in 0..25_u64 {
                // Spread without a clock or chance: every seller has its own rhythm.
                let beat = (seller * 7 + n * 13) % 40;
                let task = format!("task_{seller}_{n}");
                super::support::issue(&client, &task, Some(&url)).await;
                client.batch_execute("BEGIN").await.unwrap();
                super::support::complete(&client, &task).await;
                tokio::time::sleep(Duration::from_millis(beat)).await;
                if n % 5 == 4 {
                    client.batch_execute("ROLLBACK").await.unwrap();
                } else {
                    client.batch_execute("COMMIT").await.unwrap();
                    committed.push(task);
                }
                tokio::time::sleep(Duration::from_millis(beat * 2)).await;
            }
            committed
        }));
    }
    let mut committed = HashSet::new();
    for seller in sellers {
        committed.extend(seller.await.unwrap());
    }
    eventually("every committed task at the buyer", async || {
        (receiver.posts().len() >= committed.len()).then_some(())
    })
    .await;
    for daemon in daemons {
        daemon.stop().await;
    }
    let arrived: HashSet<String> =
        receiver.posts().iter().map(|post| post.json()["task_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(arrived, committed);
    assert_eq!(receiver.posts().len(), committed.len());
}

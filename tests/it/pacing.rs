//! How often the worker looks where, while looks at everything take long.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskbell::listener::{Connect, Gate, Heard};
use taskbell::outbox::{Claimed, Look, OutboxError, Room, SettledRows, Settlement};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::support::cluster::Cluster;
use super::support::unwired::{Fake, Unwired, refused};
use super::support::{TestDatabase, eventually};

/// An outbox of which everything is dead but kept, with a row that is due and that somebody else holds.
struct Kept {
    /// How long a look at everything takes.
    whole: Duration,
    /// And one where the bell rang.
    at: Duration,
    /// Whether the database ends it then.
    is_ended: bool,
    looks: Mutex<Vec<Look>>,
}

impl Kept {
    fn new(whole: Duration) -> Self {
        Self { whole, at: Duration::from_millis(1), is_ended: false, looks: Mutex::default() }
    }
}

impl Fake for Kept {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        self.looks.lock().unwrap().push(room.look.clone());
        let is_whole = room.look == Look::Whole;
        sleep(match room.look {
            Look::Whole => self.whole,
            Look::At { .. } => self.at,
            Look::Wide | Look::Quick => Duration::from_millis(1),
        })
        .await;
        if is_whole && self.is_ended { Err(OutboxError::Silent) } else { Ok(Claimed::default()) }
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        sleep(Duration::from_millis(10)).await;
        Ok(Some(Duration::ZERO))
    }
}

/// Ten seconds from the first look at everything on, with a bell every now and then.
async fn ten_seconds(whole: Duration, is_ended: bool) -> Vec<Look> {
    let kept = Arc::new(Kept { is_ended, ..Kept::new(whole) });
    let database = TestDatabase::empty().await;
    let worker = Unwired::with_the_doorbell_of(&database, kept.clone());
    let whole = || kept.looks.lock().unwrap().contains(&Look::Whole);
    eventually("nobody is silent any more", async || whole().then_some(())).await;
    for _ in 0..77 {
        sleep(Duration::from_millis(130)).await;
        worker.ringer.say(Heard { bells: 1, places: [7].into(), ..Heard::default() });
    }
    worker.stop().await;
    kept.looks.lock().unwrap().clone()
}

fn count(looks: &[Look], wanted: impl Fn(&Look) -> bool) -> usize {
    looks.iter().filter(|look| wanted(look)).count()
}

#[tokio::test]
async fn looks_at_everything_are_a_ninth_of_the_time_and_bells_are_answered_between_them() {
    let looks = ten_seconds(Duration::from_millis(200), false).await;
    let whole = count(&looks, |look| *look == Look::Whole);
    assert!((3..=8).contains(&whole), "{whole} of 0.2 s each");
    let at = count(&looks, |look| matches!(look, Look::At { .. }));
    assert!(at > 30, "{at}");
    let wide = count(&looks, |look| *look == Look::Wide);
    assert!(wide > 30, "{wide}, and the row is due all the while");
}

#[tokio::test]
async fn a_look_at_everything_that_the_database_ends_is_not_all_that_is_tried() {
    let looks = ten_seconds(Duration::from_secs(1), true).await;
    let whole = count(&looks, |look| *look == Look::Whole);
    assert!((1..=4).contains(&whole), "{whole} of a second each");
    let others = count(&looks, |look| *look != Look::Whole);
    assert!(others > 30, "{others}");
}

/// Rows without end, which end as soon as they are claimed and cannot be settled: all slots are taken soon.
#[derive(Default)]
struct Stuck {
    /// Where looks went, and for how many rows there was room.
    looks: Mutex<Vec<(Look, usize)>>,
}

impl Fake for Stuck {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        let mut looks = self.looks.lock().unwrap();
        let first = 100 * looks.len();
        looks.push((room.look.clone(), room.rows));
        let claims = (0..room.rows).map(|n| refused(first + n, "https://127.0.0.1:1")).collect();
        Ok(Claimed { claims, ..Claimed::default() })
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn whoever_has_no_room_for_rows_looks_for_changes_and_does_not_fall_asleep_over_them() {
    let (stuck, database) = (Arc::new(Stuck::default()), TestDatabase::empty().await);
    let worker = Unwired::with_the_doorbell_of(&database, stuck.clone());
    let full = || stuck.looks.lock().unwrap().iter().any(|(_, room)| *room == 0);
    eventually("all slots are taken", async || full().then_some(())).await;
    stuck.looks.lock().unwrap().clear();
    sleep(Duration::from_secs(1)).await;
    let looks = stuck.looks.lock().unwrap().clone();
    assert!((1..=21).contains(&looks.len()), "{looks:?}");
    assert!(looks.iter().all(|(look, room)| *room == 0 && *look != Look::Whole), "{looks:?}");
    worker.stop().await;
}

/// As behind a try for the lock that a seller's transaction holds up.
#[tokio::test(start_paused = true)]
async fn a_doorbell_that_does_not_answer_keeps_nobody_from_looking() {
    let kept = Arc::new(Kept::new(Duration::from_secs(1)));
    let worker = Unwired::with_a_doorbell(Arc::new(|| Box::pin(std::future::pending())), kept.clone());
    sleep(Duration::from_secs(10)).await;
    worker.stop().await;
    // One every 3 ms: the millisecond that it takes, and the pause of who is awake. After each two seconds the question
    // is given up, and for half a second the bell counts as ringing.
    let looks = kept.looks.lock().unwrap().len();
    assert!((2_000..3_000).contains(&looks), "{looks}");
}

/// A server of its own, whose transaction ids nobody else takes, and a worker that has nothing to do.
struct Sleeper {
    client: Client,
    kept: Arc<Kept>,
    worker: Unwired,
    _cluster: Cluster,
}

impl Sleeper {
    /// Its doorbell has a connection once `open` says so.
    async fn start(cluster: Cluster, open: Arc<Semaphore>) -> Self {
        let database = TestDatabase::at(&cluster.dsn());
        let connect = database.connector.handle();
        let connect: Connect = Arc::new(move || {
            let (connect, open) = (connect(), open.clone());
            Box::pin(async move {
                open.acquire_owned().await.unwrap().forget();
                connect.await
            })
        });
        let kept = Arc::new(Kept::new(Duration::from_millis(1)));
        let worker = Unwired::with_a_doorbell(connect, kept.clone());
        Self { client: database.client().await, kept, worker, _cluster: cluster }
    }

    /// How many have ended so far.
    async fn transactions(&self) -> i64 {
        let ended = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
        self.client.query_one(ended, &[]).await.unwrap().get(0)
    }

    /// Until it has slept for a moment.
    async fn falls_asleep(&self) {
        let looks = || self.kept.looks.lock().unwrap().clone();
        eventually("nobody is silent any more", async || {
            let before = looks().len();
            sleep(Duration::from_millis(300)).await;
            (looks().contains(&Look::Whole) && looks().len() < before + 10).then_some(())
        })
        .await;
    }
}

/// What another daemon silenced may have a number beyond a horizon that was asked for before.
#[tokio::test]
async fn a_call_for_help_voids_a_horizon_that_is_being_asked_for() {
    let open = Arc::new(Semaphore::new(0));
    let sleeper = Sleeper::start(Cluster::start(&["autovacuum=off"]).await, open.clone()).await;
    // Longer than it lingers, twice.
    sleep(Duration::from_millis(200)).await;
    sleeper.worker.ringer.say(Heard { help: true, ..Heard::default() });
    sleep(Duration::from_millis(200)).await;
    let before = sleeper.transactions().await;
    open.add_permits(1);
    sleeper.falls_asleep().await;
    assert_eq!(sleeper.transactions().await - before, 2, "the first horizon does not count");
    sleeper.worker.stop().await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_while_another_settles_leaves_nothing_silent() {
    let cluster = Cluster::start(&["autovacuum=off"]).await;
    let database = TestDatabase::at(&cluster.dsn());
    let (killed, seller) = (database.client().await, database.client().await);
    // Older than any horizon.
    seller.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    Gate(&killed).set_up(Duration::from_secs(1)).await.unwrap();
    assert!(Gate(&killed).close().await.unwrap());
    let open = Arc::new(Semaphore::new(0));
    let sleeper = Sleeper::start(cluster, open.clone()).await;
    let before = sleeper.transactions().await;
    open.add_permits(1);
    eventually("a horizon", async || (sleeper.transactions().await > before).then_some(())).await;
    // It asks who is silent, too.
    sleep(Duration::from_millis(100)).await;
    drop(killed);
    let before = sleeper.transactions().await;
    seller.batch_execute("COMMIT").await.unwrap();
    sleeper.falls_asleep().await;
    assert_eq!(sleeper.transactions().await - before, 1, "a horizon after the other was gone");
    sleeper.worker.stop().await;
}

#[tokio::test]
async fn bells_without_end_do_not_keep_what_is_due_elsewhere_waiting() {
    let slow = Duration::from_millis(30);
    let kept = Arc::new(Kept { at: slow, ..Kept::new(Duration::from_millis(1)) });
    let database = TestDatabase::empty().await;
    let worker = Unwired::with_the_doorbell_of(&database, kept.clone());
    let whole = || kept.looks.lock().unwrap().contains(&Look::Whole);
    eventually("nobody is silent any more", async || whole().then_some(())).await;
    kept.looks.lock().unwrap().clear();
    // Seldom enough to be left ringing, but one is always there when a look ends.
    for _ in 0..200 {
        sleep(slow / 2).await;
        worker.ringer.say(Heard { bells: 1, places: [7].into(), ..Heard::default() });
    }
    worker.stop().await;
    let looks = kept.looks.lock().unwrap().clone();
    let at = count(&looks, |look| matches!(look, Look::At { .. }));
    let elsewhere = looks.len() - at;
    assert!(at > 20 && elsewhere > 20, "{at} where it rang, {elsewhere} elsewhere");
}

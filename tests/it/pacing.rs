//! How often the worker looks where, while looks at everything take long.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskbell::listener::Heard;
use taskbell::outbox::{
    Claimed, Entered, Look, Outbox, OutboxError, Room, SettledRows, Settlement, Transition,
};
use tokio::time::sleep;

use super::support::unwired::Unwired;
use super::support::{TestDatabase, eventually};

/// An outbox of which everything is dead but kept, with a row that is due and that somebody else holds.
struct Kept {
    /// How long a look at everything takes.
    whole: Duration,
    /// Whether the database ends it then.
    is_ended: bool,
    looks: Mutex<Vec<Look>>,
}

impl Outbox for Kept {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        self.looks.lock().unwrap().push(room.look.clone());
        if room.look != Look::Whole {
            sleep(Duration::from_millis(1)).await;
            return Ok(Claimed::default());
        }
        sleep(self.whole).await;
        if self.is_ended { Err(OutboxError::Silent) } else { Ok(Claimed::default()) }
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        unreachable!("nothing was claimed")
    }

    async fn before(&self, _: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        unreachable!("nothing has changed")
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        sleep(Duration::from_millis(10)).await;
        Ok(Some(Duration::ZERO))
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        Ok(0)
    }

    async fn ring(&self) -> Result<(), OutboxError> {
        Ok(())
    }
}

/// Ten seconds from the first look at everything on, with a bell every now and then.
async fn ten_seconds(whole: Duration, is_ended: bool) -> Vec<Look> {
    let kept = Arc::new(Kept { whole, is_ended, looks: Mutex::default() });
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

/// As behind a try for the lock that a seller's transaction holds up.
#[tokio::test(start_paused = true)]
async fn a_doorbell_that_does_not_answer_keeps_nobody_from_looking() {
    let kept = Arc::new(Kept { whole: Duration::from_secs(1), is_ended: false, looks: Mutex::default() });
    let worker = Unwired::with_a_doorbell(Arc::new(|| Box::pin(std::future::pending())), kept.clone());
    sleep(Duration::from_secs(10)).await;
    worker.stop().await;
    // One every 3 ms: the millisecond that it takes, and the pause of who is awake.
    let looks = kept.looks.lock().unwrap().len();
    assert!(looks > 3_000, "{looks}");
}

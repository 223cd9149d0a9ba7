//! A worker that leaves the database to busy sellers, and what it does between two rests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskbell::outbox::{Claimed, Look, OutboxError, Room, SettledRows, Settlement};
use tokio::time::{Instant, sleep};

use super::support::unwired::{Fake, Unwired, refused};

/// Eight thousand changes a second. After a while looks take ten times as long as before.
struct Busy {
    began: Instant,
    looks: Mutex<Vec<(Look, Instant)>>,
}

const QUIET: Duration = Duration::from_millis(500);

impl Fake for Busy {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        let slower = if self.began.elapsed() < QUIET { 1 } else { 10 };
        sleep(slower * Duration::from_millis(if room.look.is_walk() { 3 } else { 1 })).await;
        let mut looks = self.looks.lock().unwrap();
        looks.push((room.look.clone(), Instant::now()));
        let rows = room.rows.min(2);
        let first = 10 * looks.len();
        Ok(Claimed {
            claims: (0..rows).map(|n| refused(first + n, "https://127.0.0.1:1")).collect(),
            recorded: i64::try_from(8 * self.began.elapsed().as_millis()).ok(),
            ..Claimed::default()
        })
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        Ok(SettledRows::default())
    }
}

async fn looks_in_ten_seconds(yield_for: Duration) -> Vec<Look> {
    let busy = Arc::new(Busy { began: Instant::now(), looks: Mutex::default() });
    let worker = Unwired::that_yields_for(yield_for, busy.clone());
    sleep(QUIET + Duration::from_secs(10)).await;
    worker.stop().await;
    let looks = busy.looks.lock().unwrap();
    looks
        .iter()
        .filter(|(_, at)| at.duration_since(busy.began) > 2 * QUIET)
        .map(|(look, _)| look.clone())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn between_two_rests_there_is_one_look_and_every_other_one_is_quick() {
    let looks = looks_in_ten_seconds(Duration::from_secs(60)).await;
    // A walk of 30 ms and a rest of 300, a quick look of 10 ms and a rest of 100: 22 of both.
    assert!((38..=48).contains(&looks.len()), "{}", looks.len());
    let in_turn = looks.windows(2).filter(|pair| pair[0].is_walk() != pair[1].is_walk()).count();
    assert!(in_turn + 3 >= looks.len(), "{looks:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_yields_to_nobody_does_not_rest() {
    let looks = looks_in_ten_seconds(Duration::ZERO).await;
    assert!(looks.len() > 400, "{}", looks.len());
}

//! A worker that sleeps takes a backlog at a single destination as fast as slots come free there.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskbell::listener::Heard;
use taskbell::outbox::{Claimed, Look, OutboxError, Room, SettledRows, Settlement};
use tokio::time::sleep;

use super::support::unwired::{Fake, Unwired, refused};
use super::support::{TestDatabase, eventually};

/// Rows that wait for one destination. Looks that go everywhere take long, so that they are seldom.
struct Queue {
    waiting: Mutex<usize>,
    /// Each look, and how many rows it brought.
    looks: Mutex<Vec<(Look, usize)>>,
}

impl Fake for Queue {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        sleep(Duration::from_millis(match room.look {
            Look::Whole | Look::Wide => 100,
            Look::Quick | Look::At { .. } => 1,
        }))
        .await;
        let held: usize = room.in_flight.iter().map(|(_, held)| held.rows).sum();
        let free = room.rows.min(room.per_lane.saturating_sub(held));
        let mut waiting = self.waiting.lock().unwrap();
        let rows = free.min(*waiting);
        self.looks.lock().unwrap().push((room.look.clone(), rows));
        let first = *waiting;
        *waiting -= rows;
        Ok(Claimed {
            claims: (0..rows).map(|n| refused(first - n, "https://127.0.0.1:1")).collect(),
            more: free > 0 && rows == free,
            ..Claimed::default()
        })
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        Ok(SettledRows::default())
    }
}

#[tokio::test]
async fn slots_that_come_free_are_filled_without_looks_everywhere() {
    let queue = Arc::new(Queue { waiting: Mutex::new(0), looks: Mutex::default() });
    let database = TestDatabase::empty().await;
    let worker = Unwired::with_the_doorbell_of(&database, queue.clone());
    let whole = || queue.looks.lock().unwrap().iter().any(|(look, _)| *look == Look::Whole);
    eventually("nobody is silent any more", async || whole().then_some(())).await;
    *queue.waiting.lock().unwrap() = 1000;
    worker.ringer.say(Heard { bells: 1, places: [7].into(), ..Heard::default() });
    let all = || *queue.waiting.lock().unwrap() == 0;
    eventually("all are taken", async || all().then_some(())).await;
    worker.stop().await;
    let looks = queue.looks.lock().unwrap();
    let sum = |wanted: fn(&Look) -> bool| {
        looks.iter().filter(|(look, _)| wanted(look)).map(|(_, rows)| rows).sum::<usize>()
    };
    let everywhere = sum(|look| matches!(look, Look::Whole | Look::Wide));
    let quickly = sum(|look| *look == Look::Quick);
    assert!(quickly > 10 * everywhere, "{quickly} where rows had come from, {everywhere} everywhere");
}

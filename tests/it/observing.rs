//! What was before a change is asked for later and together, and no question is forgotten.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use taskbell::outbox::{Claimed, Entered, Outbox, OutboxError, Room, SettledRows, Settlement, Transition};
use tokio::time::{Instant, sleep};

use super::support::unwired::Unwired;

/// An outbox of changes, a few for each claim, whose journal is out for a while.
struct Journal {
    changes: Mutex<Vec<Vec<i64>>>,
    out_until: Instant,
    /// The room for changes that each claim had.
    rooms: Mutex<Vec<usize>>,
    asked: Mutex<Vec<Vec<i64>>>,
}

impl Journal {
    fn of(changes: Vec<Vec<i64>>, out: Duration) -> Arc<Self> {
        let (rooms, asked) = Default::default();
        Arc::new(Self { changes: Mutex::new(changes), out_until: Instant::now() + out, rooms, asked })
    }

    fn asked(&self) -> Vec<Vec<i64>> {
        self.asked.lock().unwrap().clone()
    }
}

impl Outbox for Journal {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        self.rooms.lock().unwrap().push(room.changes);
        let mut changes = self.changes.lock().unwrap();
        let batch = if changes.is_empty() { Vec::new() } else { changes.remove(0) };
        let transitions = batch.into_iter().map(|id| Transition {
            id,
            task: (1, format!("task_{id}")),
            task_type: "create_media_buy".to_owned(),
            from: Some("submitted".to_owned()),
            to: "working".to_owned(),
            at: SystemTime::UNIX_EPOCH,
            task_created_at: None,
        });
        Ok(Claimed { transitions: transitions.collect(), ..Claimed::default() })
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        unreachable!("nothing was claimed")
    }

    async fn before(&self, changes: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        self.asked.lock().unwrap().push(changes.iter().map(|change| change.id).collect());
        if Instant::now() < self.out_until { Err(OutboxError::Silent) } else { Ok(vec![None; changes.len()]) }
    }

    async fn next_due(&self) -> Result<Option<Duration>, OutboxError> {
        Ok(None)
    }

    async fn expire(&self) -> Result<u64, OutboxError> {
        Ok(0)
    }

    async fn ring(&self) -> Result<(), OutboxError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn changes_of_a_tenth_of_a_second_are_one_question() {
    let journal = Journal::of(vec![vec![2, 1], vec![3]], Duration::ZERO);
    let worker = Unwired::start(journal.clone());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(journal.asked(), [[1, 2, 3]]);
    worker.stop().await;
    assert_eq!(journal.asked().len(), 1, "nothing is asked twice");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_for_and_then_the_same_is_asked() {
    let journal = Journal::of(vec![vec![1], vec![2]], Duration::from_secs(2));
    let worker = Unwired::start(journal.clone());
    sleep(Duration::from_secs(10)).await;
    let asked = journal.asked();
    assert!((4..8).contains(&asked.len()) && asked.iter().all(|ids| *ids == [1, 2]), "{asked:?}");
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_asks_before_he_leaves() {
    let journal = Journal::of(vec![vec![1], vec![2]], Duration::ZERO);
    let worker = Unwired::start(journal.clone());
    sleep(Duration::from_millis(50)).await;
    assert!(journal.asked().is_empty());
    worker.stop().await;
    assert_eq!(journal.asked(), [[1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn more_changes_than_can_be_remembered_stay_in_the_outbox() {
    let many = (0..100).map(|batch| (batch * 500..(batch + 1) * 500).collect()).collect();
    let journal = Journal::of(many, Duration::from_secs(60));
    let worker = Unwired::start(journal.clone());
    sleep(Duration::from_secs(30)).await;
    let rooms = journal.rooms.lock().unwrap().clone();
    assert_eq!((rooms[0], rooms.iter().min()), (500, Some(&0)));
    worker.stop().await;
}

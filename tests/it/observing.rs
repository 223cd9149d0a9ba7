//! What was before a change is asked for later and together, and no question is forgotten.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use taskbell::listener::Heard;
use taskbell::outbox::{Claimed, Entered, OutboxError, Room, Transition};
use tokio::time::{Instant, sleep};

use super::support::unwired::{Fake, Unwired};

/// An outbox of changes, a few for each claim that has room for them, whose journal is out for a while.
struct Journal {
    changes: Mutex<Vec<Vec<i64>>>,
    out_until: Instant,
    /// How long an answer takes.
    takes: Duration,
    asked: Mutex<Vec<Vec<i64>>>,
    answered: Mutex<Vec<i64>>,
}

impl Journal {
    fn of(changes: Vec<Vec<i64>>, out: Duration) -> Arc<Self> {
        Arc::new(Self::taking(Duration::ZERO, changes, out))
    }

    fn taking(takes: Duration, changes: Vec<Vec<i64>>, out: Duration) -> Self {
        let (asked, answered) = Default::default();
        Self { changes: Mutex::new(changes), out_until: Instant::now() + out, takes, asked, answered }
    }

    fn asked(&self) -> Vec<Vec<i64>> {
        self.asked.lock().unwrap().clone()
    }
}

impl Fake for Journal {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        let mut changes = self.changes.lock().unwrap();
        let fits = changes.first().is_some_and(|batch| batch.len() <= room.changes);
        let batch = if fits { changes.remove(0) } else { Vec::new() };
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

    async fn before(&self, changes: &[Transition]) -> Result<Vec<Option<Entered>>, OutboxError> {
        let ids: Vec<i64> = changes.iter().map(|change| change.id).collect();
        self.asked.lock().unwrap().push(ids.clone());
        sleep(self.takes).await;
        if Instant::now() < self.out_until {
            return Err(OutboxError::Silent);
        }
        self.answered.lock().unwrap().extend(ids);
        Ok(vec![None; changes.len()])
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
async fn what_comes_during_a_question_waits_for_company_too() {
    let journal = Journal::taking(Duration::from_millis(50), vec![vec![1]], Duration::ZERO);
    let journal = Arc::new(journal);
    let worker = Unwired::start(journal.clone());
    while journal.asked().is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    for id in [2, 3] {
        journal.changes.lock().unwrap().push(vec![id]);
        worker.ringer.say(Heard { anywhere: true, ..Heard::default() });
        sleep(Duration::from_millis(70)).await;
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(journal.asked(), [vec![1], vec![2, 3]]);
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn more_changes_than_can_be_remembered_stay_in_the_outbox_until_there_is_room() {
    let many = (0..100).map(|batch| (batch * 500..(batch + 1) * 500).collect()).collect();
    let journal = Journal::of(many, Duration::from_secs(60));
    let worker = Unwired::start(journal.clone());
    sleep(Duration::from_secs(50)).await;
    let left = journal.changes.lock().unwrap().len();
    assert!((85..95).contains(&left), "the outbox keeps {left} of a hundred");
    // Long before the safety poll.
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*journal.answered.lock().unwrap(), (0..50_000).collect::<Vec<i64>>(), "each once");
    worker.stop().await;
}

//! What has ended is written together, soon, and whatever else the database refuses.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_postgres::PoolError;
use taskbell::outbox::{Claimed, OutboxError, Room, SettledRows, Settlement};
use taskbell::webhook::Outcome;
use tokio::time::{Instant, sleep};

use super::support::unwired::{Fake, Unwired, claim};

/// Rows that end as soon as they are claimed: as a rule old news, for which nothing is sent.
struct OldNews {
    outcome: fn() -> Outcome,
    /// How long a settle takes.
    takes: Duration,
    /// When each comes due, by the milliseconds.
    due: Vec<u64>,
    began: Instant,
    /// When each was claimed.
    claimed: Mutex<Vec<u64>>,
    /// What each settle wrote, and when.
    settles: Mutex<Vec<(u64, Vec<i64>)>>,
    /// No statement that has this one is taken.
    refused: Option<i64>,
}

impl OldNews {
    fn due(due: impl IntoIterator<Item = u64>) -> Self {
        let (claimed, settles) = Default::default();
        Self {
            due: due.into_iter().collect(),
            began: Instant::now(),
            claimed,
            settles,
            refused: None,
            takes: Duration::ZERO,
            outcome: || Outcome::Superseded,
        }
    }

    fn ms(&self) -> u64 {
        self.began.elapsed().as_millis().try_into().unwrap()
    }

    /// How long each that was written had waited for that.
    fn waits(&self) -> Vec<u64> {
        let (claimed, settles) = (self.claimed.lock().unwrap(), self.settles.lock().unwrap());
        let waits = |(at, rows): &(u64, Vec<i64>)| {
            rows.iter().map(|row| at - claimed[usize::try_from(*row).unwrap()]).collect::<Vec<_>>()
        };
        settles.iter().flat_map(waits).collect()
    }

    fn waiting(&self) -> usize {
        let written = self.waits().len();
        self.claimed.lock().unwrap().len() - written
    }
}

impl Fake for OldNews {
    async fn claim(&self, _: &Room) -> Result<Claimed, OutboxError> {
        sleep(Duration::from_millis(1)).await;
        let mut claimed = self.claimed.lock().unwrap();
        let (first, now) = (claimed.len(), self.ms());
        let many = self.due[first..].iter().take_while(|due| **due <= now).count();
        claimed.resize(first + many, now);
        let ended = |row| claim(row, "https://buyer.example:443", Err((self.outcome)()));
        Ok(Claimed { claims: (first..first + many).map(ended).collect(), ..Claimed::default() })
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<SettledRows, OutboxError> {
        sleep(self.takes).await;
        let rows: Vec<i64> = settlements.iter().map(|settlement| settlement.row.id).collect();
        if self.refused.is_some_and(|refused| rows.contains(&refused)) {
            let unwritten = settlements.iter().map(|settlement| settlement.row).collect();
            let fault = Some(OutboxError::Pool(PoolError::Closed));
            return Ok(SettledRows { unwritten, fault, ..SettledRows::default() });
        }
        self.settles.lock().unwrap().push((self.ms(), rows));
        Ok(SettledRows::default())
    }
}

/// Three every millisecond, so long.
fn crowd(ms: u64) -> impl Iterator<Item = u64> {
    (100..100 + ms).flat_map(|at| [at; 3])
}

#[tokio::test(start_paused = true)]
async fn what_ends_in_quick_succession_is_one_statement() {
    let news = Arc::new(OldNews::due(crowd(100)));
    let worker = Unwired::start(news.clone());
    sleep(Duration::from_millis(300)).await;
    worker.stop().await;
    assert_eq!(news.waits().len(), 300);
    // Half of the slots, sixteen in all, are enough for one.
    let settles = news.settles.lock().unwrap().len();
    assert!(settles <= 300 / 8, "{settles}");
}

#[tokio::test(start_paused = true)]
async fn nothing_that_has_ended_waits_longer_than_ten_milliseconds() {
    // After the crowd a worker looks often for a while, and finds one at a time.
    let news = Arc::new(OldNews::due(crowd(20).chain([124, 128])));
    let worker = Unwired::start(news.clone());
    sleep(Duration::from_millis(300)).await;
    let waits = news.waits();
    worker.stop().await;
    assert_eq!(waits.len(), 62);
    let longest = waits.iter().max().unwrap();
    assert!((3..=11).contains(longest), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_wait_for_no_company() {
    let failures =
        OldNews { outcome: || Outcome::AddressRefused, ..OldNews::due(crowd(20).chain([124, 128])) };
    let failures = Arc::new(failures);
    let worker = Unwired::start(failures.clone());
    sleep(Duration::from_millis(300)).await;
    let waits = failures.waits();
    worker.stop().await;
    assert_eq!(waits, [0; 62]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_writes_at_once_what_waits_for_company() {
    let news = Arc::new(OldNews::due(crowd(20).chain((121..200).step_by(2))));
    let worker = Unwired::start(news.clone());
    let is_between = || news.claimed.lock().unwrap().len() > 60 && news.waiting() > 0;
    for _ in 0..300 {
        if !is_between() {
            sleep(Duration::from_millis(1)).await;
        }
    }
    let (stopped, waiting) = (news.ms(), news.waiting());
    worker.stop().await;
    assert!(waiting > 0 && news.waiting() == 0, "{waiting} before the stop, {} after it", news.waiting());
    let (last, _) = news.settles.lock().unwrap().last().unwrap().clone();
    assert!(last <= stopped + 1, "{last} after a stop at {stopped}");
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_beside_a_single_row_is_written_although_there_is_always_more() {
    let news =
        Arc::new(OldNews { refused: Some(20), takes: Duration::from_millis(4), ..OldNews::due(crowd(3000)) });
    let worker = Unwired::start(news.clone());
    sleep(Duration::from_millis(3000)).await;
    let written: Vec<i64> = news.settles.lock().unwrap().iter().flat_map(|(_, rows)| rows.clone()).collect();
    worker.stop().await;
    let missing: Vec<i64> = (0..1000).filter(|row| !written.contains(row)).collect();
    assert_eq!(missing, [20]);
}

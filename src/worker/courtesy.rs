//! Sellers first: while they record changes so fast that the database has a queue, we rest between claims.
//!
//! Either sign alone says nothing. Looks are slow in a drain too, where we are the load ourselves, and a large
//! database takes thousands of commits a second without a queue. What is owed then waits for the burst to
//! end, but no longer than the configured time.

use std::time::Duration;

use tokio::time::Instant;

/// What we know of the sellers' pace and of the database's.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    /// How many changes had been recorded, and when.
    mark: Option<(Instant, i64)>,
    /// Changes a second.
    pace: f64,
    /// What a look takes at best.
    quickest: Option<Duration>,
}

impl Courtesy {
    /// How long to rest after a look that took so long and brought so many rows, when so many changes have been
    /// recorded in all.
    pub(super) fn rest(&mut self, now: Instant, took: Duration, rows: usize, recorded: i64) -> Duration {
        let (since, before) = *self.mark.get_or_insert((now, recorded));
        let elapsed = now - since;
        if elapsed >= MEASURED_OVER {
            let more = u32::try_from(recorded - before).unwrap_or_default();
            self.pace = f64::from(more) / elapsed.as_secs_f64();
            self.mark = Some((now, recorded));
        }
        // The best counts a little less with each look: plans and machines change.
        let quickest = self.quickest.map_or(took, |quickest| took.min(quickest.mul_f64(FORGETS)));
        self.quickest = Some(quickest);
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        let queue = took > SLOW + A_ROW * rows + quickest * 3;
        if self.pace >= BUSY && queue { (took * TIMES).min(MAX_REST) } else { Duration::ZERO }
    }
}

const MEASURED_OVER: Duration = Duration::from_millis(20);
/// Changes a second that only many sellers at once record.
const BUSY: f64 = 1000.0;
/// A look on an idle database takes one or two milliseconds, its way there and back, and some 50 µs for each row.
/// 128 rows take 8 ms in a drain on two cores, and 15 to 30 beside four sellers there. Where up to 21 counted as quick,
/// those four kept a third less of their rate.
const SLOW: Duration = Duration::from_millis(4);
const A_ROW: Duration = Duration::from_micros(60);
const FORGETS: f64 = 1.001;
/// Rest for work: of what we could take, sellers keep ten parts of eleven.
const TIMES: u32 = 10;
const MAX_REST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Scene {
        courtesy: Courtesy,
        now: Instant,
        recorded: i64,
    }

    impl Scene {
        fn new() -> Self {
            Self { courtesy: Courtesy::default(), now: Instant::now(), recorded: 1 }
        }

        /// The last rest after looks that took so long, a tenth of a second apart.
        fn rest(&mut self, took: Duration, rows: usize, pace: i64) -> Duration {
            let mut rest = Duration::ZERO;
            for _ in 0..10 {
                self.now += 100 * MS;
                self.recorded += pace / 10;
                rest = self.courtesy.rest(self.now, took, rows, self.recorded);
            }
            rest
        }
    }

    #[test]
    fn it_rests_where_sellers_are_quick_and_looks_are_slow() {
        let mut scene = Scene::new();
        assert_eq!(scene.rest(2 * MS, 0, 8000), Duration::ZERO);
        assert_eq!(scene.rest(15 * MS, 128, 8000), Duration::ZERO, "many rows take their time");
        assert_eq!(scene.rest(20 * MS, 128, 8000), 200 * MS);
        assert_eq!(scene.rest(15 * MS, 2, 8000), 150 * MS);
        assert_eq!(scene.rest(200 * MS, 128, 8000), MAX_REST);
        assert_eq!(scene.rest(30 * MS, 128, 100), Duration::ZERO, "we are the load");
    }

    #[test]
    fn a_long_way_to_the_database_is_no_queue() {
        let mut scene = Scene::new();
        assert_eq!(scene.rest(20 * MS, 1, 8000), Duration::ZERO);
        assert_eq!(scene.rest(40 * MS, 128, 8000), Duration::ZERO);
        assert_ne!(scene.rest(100 * MS, 128, 8000), Duration::ZERO);
    }
}

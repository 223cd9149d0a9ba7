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
    /// Changes a second, and before that: many that are committed at once are no pace.
    pace: [f64; 2],
    /// What a look takes at best: one at places that are known, and one that walks.
    quickest: [Option<Duration>; 2],
    /// What a row takes at best where there are many, the way to the database included.
    quickest_row: Option<Duration>,
    /// How long the oldest webhook had waited that was claimed lately, and when that was.
    oldest: Option<(Instant, Duration)>,
}

/// What a look visits, apart from the rows that it brings.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Quick,
    Walk,
}

impl Courtesy {
    /// How long to rest after a look that took so long and brought so many rows, when so many changes have been
    /// recorded in all.
    pub(super) fn rest(
        &mut self,
        now: Instant,
        kind: Kind,
        took: Duration,
        rows: usize,
        recorded: i64,
    ) -> Duration {
        let (since, before) = *self.mark.get_or_insert((now, recorded));
        let elapsed = now - since;
        if elapsed >= MEASURED_OVER {
            let more = u32::try_from(recorded - before).unwrap_or_default();
            self.pace = [f64::from(more) / elapsed.as_secs_f64(), self.pace[0]];
            self.mark = Some((now, recorded));
        }
        let usual = self.usual(kind, took, u32::try_from(rows).unwrap_or(u32::MAX));
        let queue = took > usual.mul_f64(SLOWER);
        if self.pace.iter().all(|pace| *pace >= BUSY) && queue {
            (took * TIMES).min(MAX_REST)
        } else {
            Duration::ZERO
        }
    }

    /// How long the oldest has waited, as far as looks have shown it lately: some bring nothing, or what is young.
    pub(super) fn waited(&mut self, now: Instant, oldest: Option<Duration>) -> Duration {
        let seen = self.oldest.filter(|(at, _)| now - *at < LATELY);
        if let Some(oldest) = oldest
            && seen.is_none_or(|(_, seen)| oldest >= seen)
        {
            self.oldest = Some((now, oldest));
            return oldest;
        }
        seen.map_or(Duration::ZERO, |(_, oldest)| oldest)
    }

    /// What such a look that brings so many rows takes at best, this one included.
    fn usual(&mut self, kind: Kind, took: Duration, rows: u32) -> Duration {
        let quickest = best(&mut self.quickest[kind as usize], took);
        if rows >= MANY {
            best(&mut self.quickest_row, took / rows);
        }
        quickest + self.quickest_row.unwrap_or(A_ROW).min(A_ROW) * rows
    }
}

/// The best counts a little less with each look: plans and machines change.
fn best(best: &mut Option<Duration>, took: Duration) -> Duration {
    *best.insert(best.map_or(took, |best| took.min(best.mul_f64(FORGETS))))
}

const MEASURED_OVER: Duration = Duration::from_millis(20);
/// Changes a second that only many sellers at once record.
const BUSY: f64 = 1000.0;
/// Slow is what takes longer than the best that was seen of its size. On two cores, idle, 192 rows take 4 to 5 ms
/// and one row 0.6; beside one client 7 and 1.3, beside 32 of them 15 and more. Where only twice as long was slow,
/// one client kept 0.48 of his rate instead of 0.53; with a bound in milliseconds 32 of them kept 0.58 instead of 0.65.
const SLOWER: f64 = 1.5;
/// Looks that bring fewer say little of what a row takes.
const MANY: u32 = 32;
/// What a row takes on an idle database is 20 to 50 µs. More is a queue, also for who has never seen it without one.
const A_ROW: Duration = Duration::from_micros(70);
/// Longer than a rest.
const LATELY: Duration = Duration::from_secs(2);
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
                rest = self.courtesy.rest(self.now, Kind::Quick, took, rows, self.recorded);
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
    fn what_is_slow_depends_on_the_machine() {
        let mut scene = Scene::new();
        assert_eq!(scene.rest(MS, 0, 8000), Duration::ZERO);
        assert_eq!(scene.rest(5 * MS, 192, 8000), Duration::ZERO, "the best so far");
        assert_eq!(scene.rest(7 * MS, 192, 8000), Duration::ZERO);
        assert_eq!(scene.rest(10 * MS, 192, 8000), 100 * MS, "quick elsewhere, slow here");
        assert_eq!(scene.rest(3 * MS, 8, 8000), 30 * MS, "of eight rows as well");
        assert_eq!(scene.rest(10 * MS, 192, 100), Duration::ZERO, "we are the load");
    }

    #[test]
    fn many_rows_that_come_first_say_nothing_of_few() {
        let mut scene = Scene::new();
        assert_eq!(scene.rest(5 * MS, 192, 8000), Duration::ZERO);
        assert_eq!(scene.rest(MS, 0, 8000), Duration::ZERO);
        assert_eq!(scene.rest(7 * MS, 192, 8000), Duration::ZERO);
        assert_eq!(scene.rest(10 * MS, 192, 8000), 100 * MS);
    }

    #[test]
    fn many_changes_in_one_transaction_are_no_pace() {
        let mut scene = Scene::new();
        scene.rest(MS, 0, 0);
        scene.recorded += 50_000;
        for _ in 0..3 {
            scene.now += 100 * MS;
            let rest = scene.courtesy.rest(scene.now, Kind::Quick, 20 * MS, 0, scene.recorded);
            assert_eq!(rest, Duration::ZERO);
        }
    }

    #[test]
    fn a_walk_takes_longer_than_a_look_at_what_is_known() {
        let mut scene = Scene::new();
        scene.rest(MS, 0, 8000);
        for _ in 0..3 {
            scene.now += 100 * MS;
            scene.recorded += 800;
            let rest = scene.courtesy.rest(scene.now, Kind::Walk, 4 * MS, 0, scene.recorded);
            assert_eq!(rest, Duration::ZERO);
        }
        assert_eq!(scene.rest(4 * MS, 0, 8000), 40 * MS);
    }

    #[test]
    fn what_has_waited_is_remembered_where_a_look_brings_nothing_of_it() {
        let (mut courtesy, now, second) = (Courtesy::default(), Instant::now(), 1000 * MS);
        assert_eq!(courtesy.waited(now, None), Duration::ZERO);
        assert_eq!(courtesy.waited(now, Some(15 * second)), 15 * second);
        assert_eq!(courtesy.waited(now + second, None), 15 * second);
        assert_eq!(courtesy.waited(now + second, Some(second)), 15 * second);
        assert_eq!(courtesy.waited(now + 3 * second, Some(second)), second, "nothing so old has come since");
    }

    #[test]
    fn a_best_that_does_not_come_back_is_forgotten() {
        let mut scene = Scene::new();
        scene.rest(MS, 0, 8000);
        scene.rest(5 * MS, 192, 8000);
        assert_ne!(scene.rest(10 * MS, 192, 8000), Duration::ZERO);
        for _ in 0..100 {
            scene.rest(10 * MS, 192, 8000);
        }
        assert_eq!(
            scene.rest(10 * MS, 192, 8000),
            Duration::ZERO,
            "the table has grown, or the machine is another"
        );
    }

    #[test]
    fn a_long_way_to_the_database_is_no_queue() {
        let mut scene = Scene::new();
        assert_eq!(scene.rest(20 * MS, 1, 8000), Duration::ZERO);
        assert_eq!(scene.rest(40 * MS, 128, 8000), Duration::ZERO);
        assert_ne!(scene.rest(100 * MS, 128, 8000), Duration::ZERO);
    }
}

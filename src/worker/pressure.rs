//! Whether the database is busy with others: sellers come first.
//!
//! As TCP Vegas does with round trips: the shortest time that a row took lately is what an idle database
//! needs, and one that needs several times as long has a queue. A statement that met one is followed
//! by a rest many times as long; on an idle database, however much is owed, there is none.

use std::time::Duration;

/// Of one kind of statement.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// Seconds for a row, at best.
    shortest: Option<f64>,
}

impl Pressure {
    /// How long to rest after a statement that took so long for so many rows.
    pub(super) fn rest(&mut self, took: Duration, rows: usize) -> Duration {
        let a_row = took.as_secs_f64() / f64::from(u32::try_from(rows + BESIDES).unwrap_or(u32::MAX));
        let shortest = self.shortest.map_or(a_row, |shortest| a_row.min(shortest * FORGETS));
        self.shortest = Some(shortest);
        if a_row > shortest * QUEUED { (took * TIMES).min(MAX_REST) } else { Duration::ZERO }
    }
}

/// What a statement costs besides its rows, in rows.
const BESIDES: usize = 16;
/// So many times the shortest time is a queue.
const QUEUED: f64 = 3.0;
/// With each statement the shortest time counts a little less: another plan, another machine.
const FORGETS: f64 = 1.001;
/// Rest for work: sellers keep eight parts of nine.
const TIMES: u32 = 8;
const MAX_REST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_backlog_is_no_pressure_and_a_queue_is() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.rest(MS, 1), Duration::ZERO);
        for _ in 0..100 {
            assert_eq!(pressure.rest(8 * MS, 128), Duration::ZERO);
        }
        assert_eq!(pressure.rest(40 * MS, 128), 320 * MS);
        assert_eq!(pressure.rest(900 * MS, 128), MAX_REST);
        assert_eq!(pressure.rest(8 * MS, 128), Duration::ZERO);
    }

    #[test]
    fn a_database_that_has_become_slower_for_good_is_believed() {
        let mut pressure = Pressure::default();
        pressure.rest(MS, 48);
        let rests = (0..3000).filter(|_| pressure.rest(10 * MS, 48) > Duration::ZERO).count();
        assert!((1000..1400).contains(&rests), "{rests}");
    }
}

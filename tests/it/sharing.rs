//! Slots are shared by the destinations that wait for them, and filled from wherever there is something.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskbell::outbox::{Claimed, Look, OutboxError, Room, SettledRows, Settlement};
use tokio::time::sleep;

use super::support::unwired::{Fake, Unwired, refused};

/// Many destinations, of which one after the other gives what it may.
struct Crowd {
    /// What waits at each of them.
    waiting: Mutex<Vec<usize>>,
    /// Where the next claim begins.
    next: Mutex<usize>,
    /// What each claim might take of one, and how many it gave in all.
    claims: Mutex<Vec<(usize, usize)>>,
}

impl Fake for Crowd {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        sleep(Duration::from_millis(1)).await;
        let (mut waiting, mut next) = (self.waiting.lock().unwrap(), self.next.lock().unwrap());
        let mut claimed = Claimed::default();
        for _ in 0..waiting.len() {
            let lane = *next;
            let name = format!("https://{lane}.example:443");
            let held =
                room.in_flight.iter().find(|(lane, _)| lane.0 == name).map_or(0, |(_, held)| held.rows);
            let free = room.per_lane.saturating_sub(held).min(room.rows - claimed.claims.len());
            let rows = free.min(waiting[lane]);
            waiting[lane] -= rows;
            claimed.claims.extend((0..rows).map(|n| refused(1000 * lane + waiting[lane] + n, &name)));
            claimed.more |= rows > 0 && rows == free;
            if claimed.claims.len() == room.rows {
                break;
            }
            *next = (lane + 1) % waiting.len();
        }
        self.claims.lock().unwrap().push((room.per_lane, claimed.claims.len()));
        Ok(claimed)
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        Ok(SettledRows::default())
    }
}

#[tokio::test(start_paused = true)]
async fn where_many_wait_each_gets_a_seat_and_the_last_ones_get_all_they_may_have() {
    // Sixteen slots, four of them at most for each.
    let mut waiting = vec![100; 40];
    waiting[7] = 400;
    let (next, claims) = Default::default();
    let crowd = Arc::new(Crowd { waiting: Mutex::new(waiting), next, claims });
    let worker = Unwired::start(crowd.clone());
    while crowd.waiting.lock().unwrap().iter().any(|waiting| *waiting > 0) {
        sleep(Duration::from_millis(1)).await;
    }
    worker.stop().await;
    let claims = crowd.claims.lock().unwrap();
    let seats: Vec<usize> = claims.iter().filter(|(_, rows)| *rows > 0).map(|(seats, _)| *seats).collect();
    assert_eq!(seats[0], 4, "nobody knows yet who waits");
    let many = seats.len() / 2;
    let single = seats[..many].iter().filter(|seats| **seats == 1).count();
    assert!(10 * single > 9 * many, "{single} of {many}: {seats:?}");
    assert_eq!(seats.last(), Some(&4), "one is left");
}

/// Rows without end elsewhere, and always one at a place that is known.
#[derive(Default)]
struct Elsewhere {
    looks: Mutex<Vec<Look>>,
}

impl Fake for Elsewhere {
    async fn claim(&self, room: &Room) -> Result<Claimed, OutboxError> {
        let quick = room.look == Look::Quick;
        sleep(Duration::from_millis(if quick { 1 } else { 5 })).await;
        let mut looks = self.looks.lock().unwrap();
        looks.push(room.look.clone());
        let rows = if quick { room.rows.min(1) } else { room.rows };
        let first = 1000 * looks.len();
        Ok(Claimed {
            claims: (0..rows).map(|n| refused(first + n, &format!("https://{n}.example:443"))).collect(),
            ..Claimed::default()
        })
    }

    async fn settle(&self, _: &[Settlement]) -> Result<SettledRows, OutboxError> {
        Ok(SettledRows::default())
    }
}

#[tokio::test(start_paused = true)]
async fn where_known_places_do_not_fill_the_slots_half_of_the_time_goes_to_looks_elsewhere() {
    let outbox = Arc::new(Elsewhere::default());
    let worker = Unwired::start(outbox.clone());
    sleep(Duration::from_secs(1)).await;
    worker.stop().await;
    let looks = outbox.looks.lock().unwrap();
    let wide = looks.iter().filter(|look| **look == Look::Wide).count();
    assert!((80..=110).contains(&wide), "{wide} of {} looks, 5 ms each", looks.len());
}

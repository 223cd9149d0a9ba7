//! How fast a backlog goes out, beside the same POSTs without a database and beside a peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use taskbell::outbox::{Attempt, Claim, Look, Outbox, Room, Settlement, Verdict};

use super::bed::{Bed, RESULT_BYTES, tidy};
use super::figures::Quantiles;
use super::peer::Peer;
use super::posting::Posting;
use super::processes::Busy;
use super::table::{Table, thousands};

/// Webhooks, destinations.
const OWED: usize = 50_000;
const DESTINATIONS: usize = 50;
/// Commits after which a session has planned its statements for good.
const SOME: usize = 40;
/// Webhooks for few destinations or many.
const SPREAD: usize = 20_000;
/// Webhooks that wait for a single one.
const QUEUED: usize = 5_000;
const PEERS: [(&str, &[&str]); 2] = [
    ("graphile-worker, local queue 500, batch 5 ms", &[]),
    ("the same, not waiting for the disk", &["--async-commit"]),
];
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn drain(rounds: usize) -> Table {
    let mut table = Table::new(
        "Drain: 50,000 owed webhooks, 1 KB results, 50 destinations, signed, TLS",
        &["who", "webhooks/s", "of the loop", "processors busy"],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let peer = Peer::find();
    for _ in 0..rounds {
        let (alone, busy) = without_database(&mut bed).await;
        let mut row = |who: &str, rate: f64, busy: Option<f64>| {
            let busy = busy.map_or(String::new(), |busy| format!("{:.0} %", 100.0 * busy));
            table.row([who.to_owned(), thousands(rate), format!("{:.2}", rate / alone), busy]);
        };
        row("a loop without a database", alone, Some(busy));
        let mut unsent = (0.0, 0.0);
        for sessions in EXCHANGING {
            let (rate, busy) = without_sending(&bed, sessions).await;
            if rate > unsent.0 {
                unsent = (rate, busy);
            }
        }
        row("claims and settles alone, nothing sent", unsent.0, Some(unsent.1));
        row("the limit: one after the other, nothing besides", 1.0 / (1.0 / alone + 1.0 / unsent.0), None);
        row("taskbell", taskbell(&mut bed).await, None);
        for (who, options) in PEERS {
            let Some(peer) = &peer else { continue };
            row(who, peer.drain(&mut bed, OWED, RESULT_BYTES, options).await, None);
        }
    }
    table
}

/// The same without yardsticks, to few destinations and to many: with few, their seats are the limit.
pub async fn spread(rounds: usize) -> Table {
    let mut table = Table::new(
        "Spread: 20,000 owed webhooks, by destinations",
        &["destinations", "rounds", "webhooks/s, median", "lowest"],
    );
    for destinations in [10, 25, 40, 100, 500] {
        let mut bed = Bed::new(destinations).await;
        let client = bed.client().await;
        let mut rates = Vec::new();
        for _ in 0..rounds {
            bed.owe(&client, SPREAD as i64, RESULT_BYTES).await;
            let took = drained(&mut bed, &client, SPREAD, &[]).await;
            rates.push(SPREAD as f64 / took.as_secs_f64());
        }
        let rates = Quantiles::of(rates);
        table.row([destinations as f64, rounds as f64, rates.median(), rates.lowest()].map(thousands));
    }
    table
}

/// So many at once beside a daemon that had next to nothing to do when its statements were planned.
pub async fn burst(rounds: usize) -> Table {
    let mut table = Table::new(
        "Burst: 50,000 tasks end in one transaction, beside a daemon that has had next to nothing to do",
        &["rounds", "webhooks/s, median", "lowest"],
    );
    let mut bed = Bed::new(DESTINATIONS).await;
    let client = bed.client().await;
    let mut rates = Vec::new();
    for _ in 0..rounds {
        bed.empty(&client).await;
        tidy(&client).await;
        let daemon = bed.daemon(&[]).await;
        for n in 0..SOME {
            let prefix = format!("early{n}_");
            bed.tasks_at(&client, &prefix, 4, "ok", &bed.receiver.ports).await;
            bed.complete(&client, &prefix, RESULT_BYTES).await;
        }
        bed.settled(&client).await;
        bed.tasks(&client, OWED as i64).await;
        // What they began with is journaled meanwhile.
        tokio::time::sleep(Duration::from_secs(8)).await;
        bed.receiver.forget();
        bed.complete(&client, "task_", RESULT_BYTES).await;
        let began = Instant::now();
        bed.receiver.wait_for(OWED, PATIENCE).await;
        bed.settled(&client).await;
        rates.push(OWED as f64 / began.elapsed().as_secs_f64());
        daemon.stop();
    }
    let rates = Quantiles::of(rates);
    table.row([rounds.to_string(), thousands(rates.median()), thousands(rates.lowest())]);
    table
}

/// A backlog at a single destination, by several daemons one after the other: each finds its way of going on.
pub async fn queue(starts: usize) -> Table {
    let mut table = Table::new(
        "Queue: 5,000 owed to one destination, eight in flight there",
        &["starts", "webhooks/s, median", "lowest"],
    );
    let mut bed = Bed::new(1).await;
    let client = bed.client().await;
    let mut rates = Vec::new();
    for _ in 0..starts {
        bed.empty(&client).await;
        bed.owe_at(&client, "task_", QUEUED as i64, "ok", &bed.receiver.ports, RESULT_BYTES).await;
        tidy(&client).await;
        let took = drained(&mut bed, &client, QUEUED, &[]).await;
        rates.push(QUEUED as f64 / took.as_secs_f64());
    }
    let rates = Quantiles::of(rates);
    table.row([starts.to_string(), thousands(rates.median()), thousands(rates.lowest())]);
    table
}

/// Signs and POSTs the same bodies with the same client; how busy the processors were.
async fn without_database(bed: &mut Bed) -> (f64, f64) {
    bed.receiver.forget();
    let posting = Posting::to(bed);
    let ports: Arc<[u16]> = bed.receiver.ports.clone().into();
    let next = Arc::new(AtomicUsize::new(0));
    let (began, busy) = (Instant::now(), Busy::from_now());
    let runs = (0..IN_FLIGHT).map(|_| {
        let (posting, ports, next) = (posting.clone(), ports.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= OWED {
                    return;
                }
                posting.post(&format!("task_{n}"), ports[n % ports.len()], RESULT_BYTES).await;
            }
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    (OWED as f64 / began.elapsed().as_secs_f64(), busy.share())
}

/// As many as are enough to keep the processors busy.
const IN_FLIGHT: usize = 64;

/// Claims and settles as the daemon does, bodies rendered, in so many sessions at once; how busy the processors were.
async fn without_sending(bed: &Bed, sessions: usize) -> (f64, f64) {
    let client = bed.client().await;
    bed.owe(&client, OWED as i64, RESULT_BYTES).await;
    let outbox = Arc::new(bed.outbox());
    let (began, busy) = (Instant::now(), Busy::from_now());
    let runs = (0..sessions).map(|_| {
        let outbox = outbox.clone();
        tokio::spawn(async move {
            let mut look = Look::Whole;
            loop {
                let room = Room { look: look.clone(), ..Room::of(BATCH, PER_LANE) };
                let claims = outbox.claim(&room).await.unwrap().claims;
                if claims.is_empty() && look == Look::Whole {
                    return;
                }
                look = if claims.is_empty() { Look::Whole } else { Look::Quick };
                let ended: Vec<Settlement> = claims.iter().map(accepted).collect();
                outbox.settle(&ended).await.unwrap();
            }
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
    let done = (OWED as f64 / began.elapsed().as_secs_f64(), busy.share());
    assert_eq!(bed.owed(&client).await, 0);
    done
}

fn accepted(claim: &Claim) -> Settlement {
    let duration = Duration::from_millis(1);
    let attempt = Attempt {
        started_at: SystemTime::now(),
        duration,
        status: Some(200),
        body_bytes: claim.body_bytes(),
    };
    Settlement {
        row: claim.row,
        lease: claim.lease,
        verdict: Verdict::Acknowledge,
        reason: None,
        attempt: Some(attempt),
    }
}

/// Sessions that claim and settle at once: the best of these counts.
const EXCHANGING: [usize; 3] = [2, 3, 4];
/// The daemon's, where much waits.
const BATCH: usize = 192;
const PER_LANE: usize = 8;

/// From the first arrival until everything is accepted and settled.
async fn taskbell(bed: &mut Bed) -> f64 {
    let client = bed.client().await;
    bed.owe(&client, OWED as i64, RESULT_BYTES).await;
    let began = drained(bed, &client, OWED, &[]).await;
    OWED as f64 / began.as_secs_f64()
}

/// How long a new daemon takes for what is owed, from the first arrival to the last settlement.
pub async fn drained(
    bed: &mut Bed,
    client: &tokio_postgres::Client,
    owed: usize,
    settings: &[(&str, &str)],
) -> Duration {
    bed.receiver.forget();
    let daemon = bed.daemon(settings).await;
    bed.receiver.wait_for(1, PATIENCE).await;
    let began = Instant::now();
    bed.receiver.wait_for(owed, PATIENCE).await;
    bed.settled(client).await;
    let took = began.elapsed();
    daemon.stop();
    took
}

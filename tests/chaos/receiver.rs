//! Buyers over real TLS who do everything wrong, and remember every POST.
//!
//! A receiver books a webhook before it answers, as a real one commits before it answers: so one
//! that then hangs or closes has accepted what the daemon must believe undelivered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::USER_AGENT;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::tls;

/// What a receiver does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 200, perhaps slowly.
    Accepted,
    /// Booked, and then the connection was closed, or the 200 came after the deadline.
    AcceptedUnheard,
    /// This status.
    Refused(u16),
    /// Nothing, or a closed connection.
    Nothing,
}

impl Answer {
    pub fn books(self) -> bool {
        matches!(self, Self::Accepted | Self::AcceptedUnheard)
    }
}

/// One POST.
#[derive(Debug, Clone)]
pub struct Post {
    pub key: String,
    pub body: Arc<[u8]>,
    /// The daemon's name and life, from its `User-Agent`.
    pub sender: String,
    pub at: Instant,
    pub answer: Answer,
}

/// Some destinations under one name, each a lane of its own.
pub struct Receivers {
    pub addresses: Vec<SocketAddr>,
    pub ca_file: tempfile::NamedTempFile,
    state: Arc<State>,
}

struct State {
    dice: Mutex<StdRng>,
    posts: Mutex<Vec<Post>>,
    /// The first body under each key.
    bodies: Mutex<HashMap<String, Arc<[u8]>>>,
    behaving: AtomicBool,
    closed: Vec<AtomicBool>,
}

impl Receivers {
    pub async fn start(lanes: usize, seed: u64) -> Self {
        let (acceptor, ca_file) = tls::acceptor();
        let state = Arc::new(State {
            dice: Mutex::new(StdRng::seed_from_u64(seed)),
            posts: Mutex::default(),
            bodies: Mutex::default(),
            behaving: AtomicBool::new(false),
            closed: (0..lanes).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut addresses = Vec::new();
        for lane in 0..lanes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            tokio::spawn(serve(listener, acceptor.clone(), state.clone(), lane));
        }
        Self { addresses, ca_file, state }
    }

    pub fn lanes(&self) -> usize {
        self.addresses.len()
    }

    /// Closes every connection to a lane, or lets them in again.
    pub fn close(&self, lane: usize, closed: bool) {
        self.state.closed[lane].store(closed, Ordering::SeqCst);
    }

    /// From now on every answer is a 200.
    pub fn behave(&self) {
        self.state.behaving.store(true, Ordering::SeqCst);
    }

    pub fn posts(&self) -> Vec<Post> {
        self.state.posts.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>, lane: usize) {
    while let Ok((socket, _)) = listener.accept().await {
        if state.closed[lane].load(Ordering::SeqCst) {
            continue;
        }
        let (acceptor, state) = (acceptor.clone(), state.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(socket).await else { return };
            let service = service_fn(move |request| answer(request, state.clone(), lane));
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// What to do, and how long to take over it.
fn choose(state: &State, lane: usize) -> (Answer, Duration) {
    let dice = &mut *state.dice.lock().unwrap();
    if state.closed[lane].load(Ordering::SeqCst) {
        return (Answer::Nothing, Duration::ZERO);
    }
    if state.behaving.load(Ordering::SeqCst) {
        return (Answer::Accepted, Duration::ZERO);
    }
    let mut refused = |statuses: &[u16]| Answer::Refused(statuses[dice.random_range(0..statuses.len())]);
    let refusals = [
        refused(&[500, 502, 503, 504]),
        refused(&[408, 425, 429]),
        refused(&[401, 403, 404]),
        refused(&FINAL),
    ];
    match dice.random_range(0..1000) {
        0..700 => (Answer::Accepted, Duration::ZERO),
        700..800 => (Answer::Accepted, Duration::from_millis(dice.random_range(5..400))),
        800..815 => (Answer::AcceptedUnheard, Duration::ZERO),
        815..825 => (Answer::AcceptedUnheard, TOO_LATE),
        825..845 => (Answer::Nothing, HANGS),
        845..865 => (Answer::Nothing, Duration::ZERO),
        865..960 => (refusals[0], Duration::ZERO),
        960..985 => (refusals[1], Duration::ZERO),
        985..994 => (refusals[2], Duration::ZERO),
        _ => (refusals[3], Duration::ZERO),
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
    lane: usize,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let sender = request.headers()[USER_AGENT].to_str().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body: Arc<[u8]> = body.as_ref().into();
    let json: serde_json::Value = serde_json::from_slice(&body).map_err(std::io::Error::other)?;
    let key = json["idempotency_key"].as_str().unwrap_or_default().to_owned();
    let (mut answer, pause) = choose(&state, lane);
    let first = state.bodies.lock().unwrap().entry(key.clone()).or_insert_with(|| body.clone()).clone();
    if first != body {
        answer = Answer::Refused(409);
    }
    // One copy of equal bodies is enough.
    let body = if first == body { first } else { body };
    state.posts.lock().unwrap().push(Post { key, body, sender, at: Instant::now(), answer });
    tokio::time::sleep(pause).await;
    let status = match answer {
        Answer::Accepted => 200,
        Answer::AcceptedUnheard if !pause.is_zero() => 200,
        Answer::AcceptedUnheard | Answer::Nothing => return Err(std::io::Error::other("closed")),
        Answer::Refused(status) => status,
    };
    Ok(Response::builder().status(status).body(Full::new(Bytes::new())).unwrap())
}

/// After these a webhook is a dead letter at once; 409 is none of them, because it is earned.
pub const FINAL: [u16; 5] = [302, 400, 410, 413, 422];
/// Longer than the daemons' deadline.
const TOO_LATE: Duration = Duration::from_millis(1500);
const HANGS: Duration = Duration::from_secs(20);

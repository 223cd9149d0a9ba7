//! The buyers: a process of its own with TLS on many ports, that notes when each webhook arrived.
//!
//! The benchmark starts itself again with `receiver PORTS CERTIFICATE KEY` and talks to it by lines:
//! `count`, `dump`, `highest`, `forget`, `heal`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener as StdListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::figures::Quantiles;
use super::processes::Processes;

/// The handle on the process.
pub struct Receiver {
    /// Where it listens, on `localhost`.
    pub ports: Vec<u16>,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Receiver {
    /// Starts it on so many ports.
    pub fn start(ports: usize, certificate: &Path, key: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["receiver", &ports.to_string()]).args([certificate, key]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut receiver = Self { ports: Vec::new(), child, orders, answers };
        receiver.ports = receiver.line().split(' ').map(|port| port.parse().unwrap()).collect();
        receiver
    }

    /// How many POSTs have arrived.
    pub fn count(&mut self) -> usize {
        self.ask("count").parse().unwrap()
    }

    pub fn processes(&self) -> Processes {
        Processes::one(self.child.id())
    }

    /// Forgets what has arrived.
    pub fn forget(&mut self) {
        self.ask("forget");
    }

    /// Waits until so many have arrived.
    pub async fn wait_for(&mut self, many: usize, patience: Duration) {
        let began = Instant::now();
        while self.count() < many {
            assert!(began.elapsed() < patience, "{} of {many} arrived within {patience:?}", self.count());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for as many, but not for ever.
    pub async fn wait_for_some(&mut self, many: usize, patience: Duration) {
        let began = Instant::now();
        while self.count() < many && began.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The task and the time of each arrival, in nanoseconds since 1970.
    pub fn dump(&mut self) -> Vec<(String, u128)> {
        let lines: usize = self.ask("dump").parse().unwrap();
        let arrivals = (0..lines).map(|_| {
            let line = self.line();
            let (task, at) = line.split_once('\t').unwrap();
            (task.to_owned(), at.parse().unwrap())
        });
        arrivals.collect()
    }

    /// How many were in flight at once, at most, on each port.
    pub fn highest(&mut self) -> Vec<usize> {
        self.ask("highest").split(' ').map(|n| n.parse().unwrap()).collect()
    }

    /// How long the first webhook of each of these tasks took from then.
    pub fn latencies(&mut self, since: &[(String, u128)]) -> Quantiles {
        let mut first: HashMap<String, u128> = HashMap::new();
        for (task, at) in self.dump() {
            first.entry(task).or_insert(at);
        }
        let arrived = since.iter().filter_map(|(task, then)| Some((then, first.get(task)?)));
        Quantiles::of(arrived.map(|(then, at)| at.saturating_sub(*then) as f64 / 1e9).collect())
    }

    /// From now on `/hang` and `/500` answer as everybody else does.
    pub fn heal(&mut self) {
        self.ask("heal");
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of a webhook, what is looked at.
#[derive(Deserialize)]
struct Webhook<'a> {
    #[serde(borrow)]
    task_id: std::borrow::Cow<'a, str>,
}

/// What has arrived, and whether those that misbehave have stopped it.
#[derive(Default)]
struct Ledger {
    arrived: Mutex<Vec<(String, u128)>>,
    healed: AtomicBool,
    ports: Vec<Port>,
}

/// Requests in flight, and at most so far.
#[derive(Default)]
struct Port {
    busy: AtomicUsize,
    highest: AtomicUsize,
}

/// One of them.
struct InFlight<'a>(&'a Port);

impl<'a> InFlight<'a> {
    fn at(port: &'a Port) -> Self {
        port.highest.fetch_max(port.busy.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        Self(port)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The process itself.
pub fn serve(arguments: &[String]) {
    let ports: usize = arguments[0].parse().unwrap();
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&arguments[1]).unwrap().collect();
    let key = PrivateKeyDer::from_pem_file(&arguments[2]).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.unwrap(), key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listeners: Vec<StdListener> = (0..ports).map(|_| StdListener::bind("127.0.0.1:0").unwrap()).collect();
    let numbers = listeners.iter().map(|listener| listener.local_addr().unwrap().port().to_string());
    println!("{}", numbers.collect::<Vec<_>>().join(" "));
    let places = (0..ports).map(|_| Port::default()).collect();
    let ledger = Arc::new(Ledger { ports: places, ..Ledger::default() });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (place, listener) in listeners.into_iter().enumerate() {
        let (acceptor, ledger) = (acceptor.clone(), ledger.clone());
        runtime.spawn(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, ledger) = (acceptor.clone(), ledger.clone());
                tokio::spawn(async move {
                    socket.set_nodelay(true).unwrap();
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let service = service_fn(move |request| answer(request, place, ledger.clone()));
                    let server = Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }
    obey(&ledger);
}

/// Until whoever started us has ended.
fn obey(ledger: &Ledger) {
    for order in std::io::stdin().lines() {
        let mut arrived = ledger.arrived.lock().unwrap();
        let mut out = std::io::stdout().lock();
        match order.unwrap().as_str() {
            "dump" => {
                writeln!(out, "{}", arrived.len()).unwrap();
                for (task, at) in arrived.iter() {
                    writeln!(out, "{task}\t{at}").unwrap();
                }
            }
            "highest" => {
                let highest =
                    ledger.ports.iter().map(|port| port.highest.load(Ordering::Relaxed).to_string());
                writeln!(out, "{}", highest.collect::<Vec<_>>().join(" ")).unwrap();
            }
            "heal" => {
                ledger.healed.store(true, Ordering::Relaxed);
                writeln!(out, "0").unwrap();
            }
            "forget" => {
                ledger.healed.store(false, Ordering::Relaxed);
                arrived.clear();
                for port in &ledger.ports {
                    port.highest.store(port.busy.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                writeln!(out, "0").unwrap();
            }
            _ => writeln!(out, "{}", arrived.len()).unwrap(),
        }
        out.flush().unwrap();
    }
}

/// `/hang` never answers, `/500` does so badly, until they are healed.
async fn answer(
    request: Request<Incoming>,
    place: usize,
    ledger: Arc<Ledger>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let _in_flight = InFlight::at(&ledger.ports[place]);
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    match path.as_str() {
        _ if ledger.healed.load(Ordering::Relaxed) => {}
        "/hang" => std::future::pending().await,
        "/500" => return Ok(Response::builder().status(500).body(Full::default()).unwrap()),
        _ => {}
    }
    if let Ok(webhook) = serde_json::from_slice::<Webhook>(&body) {
        ledger.arrived.lock().unwrap().push((webhook.task_id.into_owned(), at));
    }
    Ok(Response::new(Full::default()))
}

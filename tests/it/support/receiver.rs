//! A buyer's endpoint over real TLS that answers as it is told and remembers what came.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;

use super::Shared;
use super::tls::acceptor;

/// One POST as it arrived.
#[derive(Debug, Clone)]
pub struct Post {
    pub path: String,
    /// The request target: path and query, as they arrived.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Post {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What to answer, by the path's first segment: `/ok`, `/503`, `/hang`, `/close`, `/redirect`,
/// `/signature`, `/big`, `/once` (503 first, then 200), `/later` (429 with Retry-After: 7),
/// `/json` (the document that the test has put there).
pub struct Receiver {
    pub address: SocketAddr,
    pub ca_file: tempfile::NamedTempFile,
    posts: Shared<Vec<Post>>,
    json: Shared<String>,
    down: Arc<AtomicBool>,
}

impl Receiver {
    pub async fn start() -> Self {
        let (acceptor, ca_file) = acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let posts: Shared<Vec<Post>> = Arc::new(Mutex::new(Vec::new()));
        let json: Shared<String> = Shared::default();
        let down: Arc<AtomicBool> = Arc::default();
        let is_down = down.clone();
        let kept = (posts.clone(), json.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, (posts, json)) = (acceptor.clone(), kept.clone());
                let down = is_down.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let service = service_fn(move |request| {
                        answer(request, posts.clone(), json.clone(), down.load(Ordering::Relaxed))
                    });
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, ca_file, posts, json, down }
    }

    /// Answers 503 to everything, or no longer.
    pub fn be_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// Answers `/json` with this document.
    pub fn serve_json(&self, text: &str) {
        text.clone_into(&mut self.json.lock().unwrap());
    }

    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    posts: Shared<Vec<Post>>,
    json: Shared<String>,
    down: bool,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let path = request.uri().path().to_owned();
    let target = request.uri().to_string();
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes().to_vec();
    let seen = {
        let mut posts = posts.lock().unwrap();
        let seen = posts.iter().filter(|post| post.path == path).count();
        posts.push(Post { path: path.clone(), target, headers, body });
        seen
    };
    let plain = |status: u16| Response::builder().status(status);
    let empty = Full::new(Bytes::new());
    let response = match path.split('/').nth(1).unwrap_or_default() {
        _ if down => plain(503).body(empty),
        "hang" => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            plain(200).body(empty)
        }
        "close" => return Err(std::io::Error::other("closed")),
        "redirect" => plain(302).header("location", "https://127.0.0.1:1/").body(empty),
        "signature" => {
            plain(401).header("www-authenticate", "Signature error=\"webhook_signature_invalid\"").body(empty)
        }
        "json" => plain(200).body(Full::new(Bytes::from(json.lock().unwrap().clone()))),
        "big" => plain(200).body(Full::new(Bytes::from(vec![b'x'; 8 << 20]))),
        "once" => plain(if seen == 0 { 503 } else { 200 }).body(empty),
        "later" => plain(429).header("retry-after", "7").body(empty),
        status => plain(status.parse().unwrap_or(200)).body(empty),
    };
    Ok(response.unwrap())
}

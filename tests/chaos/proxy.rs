//! The network between one daemon and the database: connections can be cut, or go silent while
//! both ends believe that they live.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What happens to a connection's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// They pass.
    Clear,
    /// They wait, and nobody is told.
    Silent,
    /// The connection is closed at both ends, in the middle of whatever it carried.
    Cut,
}

/// A TCP port in front of the server's Unix socket.
pub struct Proxy {
    pub port: u16,
    links: Arc<Mutex<Vec<watch::Sender<Weather>>>>,
    /// For connections to come.
    climate: watch::Sender<Weather>,
}

impl Proxy {
    pub async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let links: Arc<Mutex<Vec<watch::Sender<Weather>>>> = Arc::default();
        let climate = watch::Sender::new(Weather::Clear);
        let (kept, current) = (links.clone(), climate.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let link = watch::Sender::new(*current.borrow());
                let weather = link.subscribe();
                let mut links = kept.lock().unwrap();
                links.retain(|link| link.receiver_count() > 0);
                links.push(link);
                tokio::spawn(carry(client, socket.clone(), weather));
            }
        });
        Self { port, links, climate }
    }

    /// Changes the weather of the connections that `choose` picks.
    pub fn set(&self, weather: Weather, mut choose: impl FnMut() -> bool) {
        for link in self.links.lock().unwrap().iter().filter(|_| choose()) {
            link.send_replace(weather);
        }
    }

    /// Changes it for every connection there is, and for those to come.
    pub fn set_all(&self, weather: Weather) {
        self.climate.send_replace(weather);
        self.set(weather, || true);
    }
}

async fn carry(client: TcpStream, socket: PathBuf, mut weather: watch::Receiver<Weather>) {
    if !clear(&mut weather).await {
        return;
    }
    let Ok(server) = UnixStream::connect(socket).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = weather.clone();
    tokio::select! {
        () = pump(from_client, to_server, weather.clone()) => {}
        () = pump(from_server, to_client, weather) => {}
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if read == 0 || !clear(&mut weather).await || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Waits out the silence. False when the connection is to be cut.
async fn clear(weather: &mut watch::Receiver<Weather>) -> bool {
    let changed = weather.wait_for(|weather| *weather != Weather::Silent).await;
    changed.is_ok_and(|weather| *weather == Weather::Clear)
}

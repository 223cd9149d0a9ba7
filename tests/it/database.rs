//! TLS to the database: what is trusted, and what is said where it is not.

use std::path::PathBuf;
use std::time::Duration;

use taskbell::daemon::config::Database;
use taskbell::daemon::database::Connector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::tls::acceptor;

/// A server that speaks TLS as PostgreSQL does, with a certificate of its own making, and then
/// says that it is starting up. Its port, and the certificate.
async fn server() -> (u16, tempfile::NamedTempFile) {
    let (acceptor, file) = acceptor();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 8];
            socket.read_exact(&mut request).await.unwrap();
            socket.write_all(b"S").await.unwrap();
            let Ok(mut stream) = acceptor.accept(socket).await else { continue };
            stream.write_all(STARTING_UP).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (port, file)
}

/// Why a connection with this connection string fails.
async fn refusal(url: &str, ca_file: Option<PathBuf>) -> String {
    let database = Database {
        url: Some(url.to_owned().into()),
        max_connections: 2,
        statement_timeout: Duration::from_secs(5),
        ca_file,
    };
    let Err(error) = Connector::new(&database).unwrap().client().await else { panic!("connected to {url}") };
    error.to_string()
}

#[tokio::test]
async fn a_certificate_is_verified_and_its_file_may_be_named_in_either_place() {
    let (port, ca_file) = server().await;
    let path = ca_file.path().to_str().unwrap();
    for mode in ["prefer", "require", "verify-full"] {
        let url =
            format!("host=localhost hostaddr=127.0.0.1 port={port} user=u password=hush sslmode={mode}");
        let distrusted = refusal(&url, None).await;
        assert!(distrusted.contains("database.ca_file") && !distrusted.contains("hush"), "{distrusted}");
        let by_key = refusal(&url, Some(path.into())).await;
        let by_url = refusal(&format!("{url} sslrootcert='{path}'"), None).await;
        for trusted in [by_key, by_url] {
            assert!(trusted.contains("the database system is starting up"), "{trusted}");
        }
    }
}

/// An ErrorResponse: length, fields, each ended by a zero.
const STARTING_UP: &[u8] = b"E\0\0\0\x3ESFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";

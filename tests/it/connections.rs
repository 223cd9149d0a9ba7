//! Connections to many destinations: real sockets, real TLS, and names that all lead to one receiver.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use taskbell::daemon::database::tls_config;
use taskbell::webhook::{GuardPolicy, Resolver, Sender, SenderOptions};
use tokio::net::TcpListener;

use crate::support::scripted::{OK, Receiver, answered, send};

/// A receiver of many names, and a sender that opens no more than so many connections.
async fn receiver_and_sender(max_connections: usize) -> (Receiver, Sender) {
    let receiver = Receiver::start(OK, "*.example.test").await;
    let policy = GuardPolicy { allow_private: true, ..GuardPolicy::default() };
    let resolver = Resolver::new(policy, 4)
        .with_lookup(|_| std::future::ready(Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])));
    let tls = tls_config(Some(receiver.root.path())).unwrap();
    let options = SenderOptions { max_connections, ..SenderOptions::default() };
    (receiver, Sender::with_resolver(tls, resolver, &options).unwrap())
}

#[tokio::test]
async fn the_connection_that_was_idle_for_longest_is_closed_for_another_destination() {
    let (mut receiver, sender) = receiver_and_sender(2).await;
    let url = |name: &str| format!("https://{name}.example.test:{}/hook", receiver.port);
    let [first, second, third] = ["first", "second", "third"].map(url);
    // On which connection each arrives: one of its own, until that is closed.
    for (url, connection) in [(&first, 1), (&second, 2), (&first, 1), (&third, 3), (&first, 1), (&second, 4)]
    {
        assert_eq!(send(&sender, url).await, answered(200));
        let request = receiver.requests.recv().await.unwrap();
        assert_eq!(request.connection, connection, "{url}");
        assert!(!request.headers.contains_key("connection"));
    }
    for _ in 0..2 {
        receiver.ended.recv().await.unwrap();
    }
    assert!(receiver.ended.try_recv().is_err(), "two are open");
}

#[tokio::test]
async fn beyond_the_limit_a_connection_serves_one_request() {
    let (mut receiver, sender) = receiver_and_sender(1).await;
    // Accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let held = format!("https://silent.example.test:{}/", silent.local_addr().unwrap().port());
    let sending = sender.clone();
    let in_flight = tokio::spawn(async move { send(&sending, &held).await });
    let (_stream, _) = silent.accept().await.unwrap();
    let url = format!("https://first.example.test:{}/hook", receiver.port);
    for connection in [1, 2] {
        assert_eq!(send(&sender, &url).await, answered(200));
        let request = receiver.requests.recv().await.unwrap();
        assert_eq!(
            (request.connection, &request.headers["connection"]),
            (connection, &"close".parse().unwrap())
        );
        tokio::time::timeout(Duration::from_secs(20), receiver.ended.recv())
            .await
            .expect("it is closed")
            .unwrap();
    }
    in_flight.abort();
    let _ = in_flight.await;
    for _ in 0..2 {
        assert_eq!(send(&sender, &url).await, answered(200));
        assert_eq!(receiver.requests.recv().await.unwrap().connection, 3, "there is room again");
    }
}

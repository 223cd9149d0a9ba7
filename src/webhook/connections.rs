//! Connections by destination, and how many there are in all.
//!
//! The HTTP client keeps what it has opened to a host until that was idle for a while, and knows no limit for all
//! hosts together: a backlog at 500 destinations left 4,000 connections, which took 120 MiB and four times the
//! descriptors that a service may have unless it is told otherwise. So each destination has a client of its own, and
//! where there are too many connections the destination that has been idle for longest loses its client, and with it
//! what is open there. The client tells nobody what it opens: a destination counts for as many connections as
//! requests were in flight there at once, without those that are known to be closed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{Client, redirect, retry};
use rustls::ClientConfig;
use tokio::time::Instant;
use url::{Position, Url};

use super::Resolver;

/// What all clients are built with.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) tls: ClientConfig,
    pub(super) resolver: Resolver,
    pub(super) user_agent: String,
}

impl Recipe {
    fn client(&self) -> Result<Client, reqwest::Error> {
        Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .dns_resolver(self.resolver.clone())
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(&self.user_agent)
            .build()
    }
}

/// The clients of all destinations.
#[derive(Debug)]
pub(super) struct Connections {
    recipe: Recipe,
    /// Serves where another one cannot be built, which has not been seen.
    spare: Client,
    most: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    destinations: HashMap<Arc<str>, Destination>,
    /// Those with nothing in flight, in the order in which that began.
    idle: BTreeMap<u64, (Arc<str>, Instant)>,
    /// Connections, everywhere.
    connections: usize,
    next: u64,
}

#[derive(Debug)]
struct Destination {
    client: Client,
    in_flight: usize,
    /// As many as were in flight at once, but for those that are known to be closed.
    connections: usize,
    /// When so many were in use.
    all_used: Instant,
    /// Its key among the idle ones.
    idle: Option<u64>,
}

impl Connections {
    /// None yet, and later about so many at most.
    pub(super) fn new(recipe: Recipe, most: usize) -> Result<Self, reqwest::Error> {
        Ok(Self { spare: recipe.client()?, recipe, most, open: Mutex::default() })
    }

    /// The client for one request to where `url` leads. It counts as in flight until that is dropped.
    pub(super) fn lend(&self, url: &Url) -> Lent<'_> {
        let at = &url[..Position::BeforePath];
        let mut open = self.open();
        let mut left = open.expired();
        let (at, client) = open.begin(at, || self.recipe.client().unwrap_or_else(|_| self.spare.clone()));
        left.extend(open.excess(self.most));
        let is_last = open.connections > self.most;
        drop(open);
        // Whoever drops a client closes connections: not under the lock.
        drop(left);
        Lent { of: self, at, client, is_last, is_open: false }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn begin(&mut self, at: &str, client: impl FnOnce() -> Client) -> (Arc<str>, Client) {
        let at = match self.destinations.get_key_value(at) {
            Some((at, _)) => at.clone(),
            None => Arc::from(at),
        };
        let destination = self.destinations.entry(at.clone()).or_insert_with(|| Destination {
            client: client(),
            in_flight: 0,
            connections: 0,
            all_used: Instant::now(),
            idle: None,
        });
        if let Some(idle) = destination.idle.take() {
            self.idle.remove(&idle);
        }
        destination.in_flight += 1;
        if destination.all_used.elapsed() > CLOSED_AFTER {
            // Those that were not needed have been closed.
            self.connections -= destination.connections;
            destination.connections = destination.in_flight - 1;
            self.connections += destination.connections;
        }
        if destination.in_flight > destination.connections {
            destination.connections += 1;
            self.connections += 1;
        }
        if destination.in_flight == destination.connections {
            destination.all_used = Instant::now();
        }
        (at, destination.client.clone())
    }

    /// A request is over. Where it was the last one and nothing stays open, its destination is forgotten.
    fn end(&mut self, at: &Arc<str>, is_open: bool) -> Option<Destination> {
        let destination = self.destinations.get_mut(at)?;
        destination.in_flight -= 1;
        if !is_open {
            destination.connections -= 1;
            self.connections -= 1;
        }
        if destination.in_flight > 0 {
            return None;
        }
        if destination.connections == 0 {
            return self.destinations.remove(at);
        }
        destination.idle = Some(self.next);
        self.idle.insert(self.next, (at.clone(), Instant::now()));
        self.next += 1;
        None
    }

    /// Destinations whose connections have been closed by now.
    fn expired(&mut self) -> Vec<Destination> {
        let mut expired = Vec::new();
        while self.idle.first_key_value().is_some_and(|(_, (_, since))| since.elapsed() > CLOSED_AFTER) {
            expired.extend(self.forget_first());
        }
        expired
    }

    /// Destinations that have to go, so that there are no more connections than so many.
    fn excess(&mut self, most: usize) -> Vec<Destination> {
        let mut excess = Vec::new();
        while self.connections > most && !self.idle.is_empty() {
            excess.extend(self.forget_first());
        }
        excess
    }

    fn forget_first(&mut self) -> Option<Destination> {
        let (_, (at, _)) = self.idle.pop_first()?;
        let destination = self.destinations.remove(&at)?;
        self.connections -= destination.connections;
        Some(destination)
    }
}

/// A client for one request.
pub(super) struct Lent<'a> {
    of: &'a Connections,
    at: Arc<str>,
    pub(super) client: Client,
    /// Whether the connection is to be closed after it: there are too many, all of them of destinations in use.
    pub(super) is_last: bool,
    /// Whether it stays open after that.
    is_open: bool,
}

impl Lent<'_> {
    /// The answer has been read to its end, and says nothing against using the connection again.
    pub(super) fn returned(&mut self) {
        self.is_open = !self.is_last;
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut open = self.of.open();
        let forgotten = open.end(&self.at, self.is_open);
        let left = open.excess(self.of.most);
        drop(open);
        drop((forgotten, left));
    }
}

/// DNS, TCP and TLS together (AdCP webhooks, "Timeouts").
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Shorter than most servers keep an idle connection: one that closes it at the moment of reuse
/// costs the attempt.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The client looks for idle connections that often.
const CLOSED_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::super::GuardPolicy;
    use super::*;

    fn connections(most: usize) -> Connections {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let resolver = Resolver::new(GuardPolicy::default(), 1);
        Connections::new(Recipe { tls, resolver, user_agent: "test".to_owned() }, most).unwrap()
    }

    fn url(n: usize) -> Url {
        format!("https://{n}.example/hook?of={n}").parse().unwrap()
    }

    impl Connections {
        /// Destinations that are known, and connections.
        fn held(&self) -> (usize, usize) {
            let open = self.open();
            let counted: usize = open.destinations.values().map(|destination| destination.connections).sum();
            assert_eq!(open.connections, counted);
            (open.destinations.len(), counted)
        }
    }

    /// A request that is answered.
    fn answered(connections: &Connections, n: usize) {
        connections.lend(&url(n)).returned();
    }

    #[tokio::test]
    async fn a_destination_counts_for_what_was_in_flight_at_once() {
        let connections = connections(10);
        let (mut first, mut second) = (connections.lend(&url(1)), connections.lend(&url(1)));
        assert_eq!(connections.held(), (1, 2));
        first.returned();
        second.returned();
        drop((first, second));
        answered(&connections, 1);
        assert_eq!(connections.held(), (1, 2), "they are used again");
        connections.lend(&"https://1.example:8443/hook".parse().unwrap()).returned();
        assert_eq!(connections.held(), (2, 3), "another port is another destination");
        drop(connections.lend(&url(1)));
        assert_eq!(connections.held(), (2, 2), "one that was not answered is closed");
    }

    #[tokio::test]
    async fn a_destination_that_never_answers_is_forgotten() {
        let connections = connections(10);
        for n in 0..1000 {
            drop(connections.lend(&url(n)));
        }
        assert_eq!(connections.held(), (0, 0));
        let (mut first, second) = (connections.lend(&url(1)), connections.lend(&url(1)));
        drop(second);
        first.returned();
        drop(first);
        assert_eq!(connections.held(), (1, 1), "another request was answered");
    }

    #[tokio::test]
    async fn whoever_was_idle_for_longest_goes_first() {
        let connections = connections(3);
        for n in [1, 2, 3, 1] {
            answered(&connections, n);
        }
        assert_eq!(connections.held(), (3, 3));
        let fourth = connections.lend(&url(4));
        assert!(!fourth.is_last);
        assert_eq!(connections.held(), (3, 3));
        let known: Vec<bool> = (1..=4)
            .map(|n| connections.open().destinations.contains_key(&url(n)[..Position::BeforePath]))
            .collect();
        assert_eq!(known, [true, false, true, true]);
    }

    #[tokio::test]
    async fn where_all_are_in_use_the_next_one_is_closed_after_its_request() {
        let connections = connections(2);
        let (mut first, mut second) = (connections.lend(&url(1)), connections.lend(&url(2)));
        let (mut third, mut again) = (connections.lend(&url(3)), connections.lend(&url(1)));
        assert!(!first.is_last && !second.is_last && third.is_last && again.is_last);
        assert_eq!(connections.held(), (3, 4));
        again.returned();
        drop(again);
        assert_eq!(connections.held(), (3, 3));
        third.returned();
        drop(third);
        assert_eq!(connections.held(), (2, 2));
        first.returned();
        second.returned();
        drop((first, second));
        assert_eq!(connections.held(), (2, 2));
        assert!(!connections.lend(&url(1)).is_last);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_long_is_forgotten() {
        let connections = connections(10);
        answered(&connections, 1);
        let second = connections.lend(&url(2));
        let mut others: Vec<_> = (0..3).map(|_| connections.lend(&url(2))).collect();
        others.iter_mut().for_each(Lent::returned);
        drop(others);
        tokio::time::advance(2 * CLOSED_AFTER).await;
        answered(&connections, 3);
        assert_eq!(connections.held(), (2, 5), "what has something in flight is known");
        answered(&connections, 2);
        assert_eq!(connections.held(), (2, 3), "but not what it had once");
        drop(second);
        assert_eq!(connections.held(), (2, 2));
    }
}

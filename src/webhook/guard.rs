//! Keeps webhooks out of networks that a buyer must not reach through us (SSRF).
//!
//! Two places check, and both are needed. [`GuardPolicy::check_url`] looks at what the URL itself
//! says, because an address literal never reaches a resolver. [`Resolver`] checks every address
//! of a DNS answer and hands only checked ones to the connection, so that nothing is resolved
//! again between check and use. A pooled connection skips the resolver: one policy, one client.
//!
//! The refused ranges are the union of AdCP's webhook URL validation, its conformance runner and
//! both SDKs: for IPv6 everything but global unicast, which covers mapped IPv4 too.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use url::{Host, Url};

/// What may be called. The default is what production wants.
#[derive(Debug, Clone, Default)]
pub struct GuardPolicy {
    /// Whether `http` URLs may be called; development only.
    pub allow_http: bool,
    /// Whether loopback and private addresses may be called; development only. Everything else
    /// that is refused, the metadata services of clouds above all, stays refused.
    pub allow_private: bool,
    /// The only ports that may be called; `None` means any.
    pub ports: Option<Vec<u16>>,
    /// Networks refused in addition.
    pub deny: Vec<IpNet>,
    /// Hosts refused in addition, with every host below them; lower case, A-labels.
    pub deny_hosts: Vec<String>,
}

impl GuardPolicy {
    /// Checks what the URL itself says: scheme, port, host name, address literal.
    ///
    /// # Errors
    /// [`AddressRefused`]; another attempt would be refused too.
    pub fn check_url(&self, url: &Url) -> Result<(), AddressRefused> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            _ => return Err(AddressRefused::Scheme),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(AddressRefused::UserInfo);
        }
        if let Some(ports) = &self.ports
            && !url.port_or_known_default().is_some_and(|port| ports.contains(&port))
        {
            return Err(AddressRefused::Port);
        }
        match url.host() {
            Some(Host::Ipv4(ip)) => self.check_ip(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => self.check_ip(IpAddr::V6(ip)),
            Some(Host::Domain(name)) => self.check_name(name),
            None => Err(AddressRefused::Name),
        }
    }

    /// Checks one address.
    ///
    /// # Errors
    /// [`AddressRefused::Address`].
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), AddressRefused> {
        let refused = Err(AddressRefused::Address);
        if METADATA.contains(&ip) || self.deny.iter().any(|net| net.contains(&ip)) {
            return refused;
        }
        if self.allow_private && PRIVATE.iter().any(|net| net.contains(&ip)) {
            return Ok(());
        }
        let reachable = match ip {
            IpAddr::V4(ip) => !REFUSED_V4.iter().any(|net| net.contains(&ip)),
            IpAddr::V6(ip) => {
                GLOBAL_V6.contains(&ip) && !REFUSED_V6.iter().any(|net| net.contains(&ip)) && !is_isatap(ip)
            }
        };
        if reachable { Ok(()) } else { refused }
    }

    /// Names that never leave the machine or the cloud's own network. `localhost` is refused
    /// here and not left to DNS, so that it counts as the URL's fault.
    fn check_name(&self, name: &str) -> Result<(), AddressRefused> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let within =
            |host: &str| name == host || name.strip_suffix(host).is_some_and(|sub| sub.ends_with('.'));
        if METADATA_NAMES.contains(&name.as_str())
            || (within("localhost") && !self.allow_private)
            || self.deny_hosts.iter().any(|host| within(host))
        {
            return Err(AddressRefused::Name);
        }
        Ok(())
    }
}

/// Resolves names for the HTTP client and refuses the whole name when one address is bad.
#[derive(Clone)]
pub struct Resolver {
    policy: Arc<GuardPolicy>,
    lookup: Arc<Lookup>,
    /// A lookup occupies a thread until the system gives up, and cannot be cancelled.
    lookups: Arc<Semaphore>,
}

type Lookup = dyn Fn(String) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;
type Answer = io::Result<Vec<IpAddr>>;

impl Resolver {
    /// A resolver that asks the system, at most `lookups` times at once.
    #[must_use]
    pub fn new(policy: impl Into<Arc<GuardPolicy>>, lookups: usize) -> Self {
        Self {
            policy: policy.into(),
            lookup: Arc::new(|name| Box::pin(ask_the_system(name))),
            lookups: Arc::new(Semaphore::new(lookups.max(1))),
        }
    }

    /// The same resolver with another way to find a name's addresses.
    #[must_use]
    pub fn with_lookup<F>(self, lookup: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Self { lookup: Arc::new(move |name| Box::pin(lookup(name))), ..self }
    }

    pub(super) fn policy(&self) -> &Arc<GuardPolicy> {
        &self.policy
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(|_| ResolveError::Closed)?;
        let answer = (self.lookup)(name.to_owned());
        // In a task of its own: the permit is held until the thread is free, also when the
        // attempt that asked has run out of time.
        let lookup = tokio::spawn(async move {
            let found = answer.await;
            drop(permit);
            found
        });
        let found = lookup.await.map_err(|_| ResolveError::Closed)?.map_err(ResolveError::Lookup)?;
        self.vet(found)
    }

    fn vet(&self, mut found: Vec<IpAddr>) -> Result<Vec<IpAddr>, ResolveError> {
        if found.is_empty() {
            return Err(ResolveError::Empty);
        }
        for ip in &found {
            self.policy.check_ip(*ip).map_err(ResolveError::Refused)?;
        }
        found.truncate(MAX_ADDRESSES);
        Ok(found)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("policy", &self.policy).finish_non_exhaustive()
    }
}

async fn ask_the_system(name: String) -> Answer {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|found| found.ip()).collect())
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = this.addresses(name.as_str()).await?;
            // The client puts the URL's port in place of 0.
            Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

/// Why a destination must not be called. Tells nothing about the network behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefused {
    /// Not `https`.
    #[error("only https may be called")]
    Scheme,
    /// A user name or password in the URL.
    #[error("a URL with a user name or password may not be called")]
    UserInfo,
    /// A port outside the configured list.
    #[error("this port may not be called")]
    Port,
    /// A name that only means something inside.
    #[error("this host may not be called")]
    Name,
    /// An address inside a refused network.
    #[error("this address may not be called")]
    Address,
}

/// Why a name gave no address to connect to; found by type in the client's error chain.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("the DNS answer was refused")]
    Refused(#[source] AddressRefused),
    #[error("the DNS lookup failed")]
    Lookup(#[source] io::Error),
    #[error("the DNS answer was empty")]
    Empty,
    #[error("the resolver is shutting down")]
    Closed,
}

/// How many addresses of one answer are handed to the connection, which tries them in turn: a
/// name with thousands of them must not make us knock at thousands of doors.
const MAX_ADDRESSES: usize = 8;

/// IANA's special-purpose IPv4 ranges.
const REFUSED_V4: &[Ipv4Net] = &[
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 31, 196, 0, 24),
    v4(192, 52, 193, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(192, 175, 48, 0, 24),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// The only IPv6 space that is handed out to hosts of the Internet (RFC 4291 §2.4).
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0], 3);

/// Within it: protocol assignments, documentation, 6to4 (which embeds IPv4), AS112 (as
/// 192.175.48.0/24), documentation.
const REFUSED_V6: &[Ipv6Net] = &[
    v6([0x2001, 0], 23),
    v6([0x2001, 0xdb8], 32),
    v6([0x2002, 0], 16),
    Ipv6Net::new_assert(Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48),
    v6([0x3fff, 0], 20),
];

/// Whether the address embeds an IPv4 address for an ISATAP router to unpack (RFC 5214 §6.1).
fn is_isatap(ip: Ipv6Addr) -> bool {
    matches!(ip.segments(), [_, _, _, _, 0 | 0x200, 0x5efe, _, _])
}

/// What `allow_private` opens.
const PRIVATE: &[IpNet] = &[
    IpNet::V4(v4(10, 0, 0, 0, 8)),
    IpNet::V4(v4(127, 0, 0, 0, 8)),
    IpNet::V4(v4(172, 16, 0, 0, 12)),
    IpNet::V4(v4(192, 168, 0, 0, 16)),
    IpNet::V6(v6([0xfc00, 0], 7)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];

/// Metadata services of clouds, refused whatever the policy: those of the AdCP Python SDK, Azure's
/// (a public address that its machines reach inside) and Google's over IPv6.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Their names: those of the AdCP conformance runner, and Google's short one.
const METADATA_NAMES: [&str; 4] =
    ["metadata", "metadata.google.internal", "metadata.packet.net", "metadata.goog"];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(head: [u16; 2], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(head[0], head[1], 0, 0, 0, 0, 0, 0), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        addresses: Vec<Sample>,
    }

    #[derive(serde::Deserialize)]
    struct Sample {
        ip: IpAddr,
        refused: bool,
    }

    fn check_url(policy: &GuardPolicy, url: &str) -> Result<(), AddressRefused> {
        policy.check_url(&Url::parse(url).unwrap())
    }

    #[test]
    fn the_ranges_are_the_union_of_every_list() {
        let vectors: Vectors =
            serde_json::from_str(include_str!("../../tests/vectors/ssrf-addresses.json")).unwrap();
        assert!(vectors.addresses.len() > 40);
        for Sample { ip, refused } in vectors.addresses {
            assert_eq!(GuardPolicy::default().check_ip(ip).is_err(), refused, "{ip}");
            let literal = format!("https://{}/", Target(ip));
            assert_eq!(check_url(&GuardPolicy::default(), &literal).is_err(), refused, "{literal}");
        }
    }

    struct Target(IpAddr);
    impl std::fmt::Display for Target {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match self.0 {
                IpAddr::V4(ip) => write!(f, "{ip}"),
                IpAddr::V6(ip) => write!(f, "[{ip}]"),
            }
        }
    }

    #[test]
    fn an_address_literal_is_refused_in_every_spelling() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://127.1/",
            "https://0177.0.0.1/",
            "https://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
            "https://\u{2460}\u{2461}\u{2466}.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[64:ff9b::7f00:1]/",
        ] {
            assert_eq!(check_url(&GuardPolicy::default(), url), Err(AddressRefused::Address), "{url}");
        }
    }

    #[test]
    fn names_schemes_and_ports_are_checked_before_any_lookup() {
        let strict = GuardPolicy { ports: Some(vec![443, 8443]), ..GuardPolicy::default() };
        for (url, expected) in [
            ("https://buyer.example/", Ok(())),
            ("https://buyer.example:8443/", Ok(())),
            ("https://buyer.example:22/", Err(AddressRefused::Port)),
            ("http://buyer.example/", Err(AddressRefused::Scheme)),
            ("https://u:p@buyer.example/", Err(AddressRefused::UserInfo)),
            ("https://localhost/", Err(AddressRefused::Name)),
            ("https://LocalHost./", Err(AddressRefused::Name)),
            ("https://a.localhost/", Err(AddressRefused::Name)),
            ("https://metadata.google.internal/", Err(AddressRefused::Name)),
        ] {
            assert_eq!(check_url(&strict, url), expected, "{url}");
        }
    }

    #[test]
    fn development_may_call_itself_but_no_metadata_service() {
        let open = GuardPolicy { allow_http: true, allow_private: true, ..GuardPolicy::default() };
        for url in ["http://localhost:1/", "http://127.0.0.1/", "https://[::1]/", "http://10.1.2.3/"] {
            assert_eq!(check_url(&open, url), Ok(()), "{url}");
        }
        for url in
            ["http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://metadata/", "http://0.0.0.0/"]
        {
            assert!(check_url(&open, url).is_err(), "{url}");
        }
        let deny = vec!["10.0.0.0/8".parse().unwrap(), "8.8.8.0/24".parse().unwrap()];
        let narrowed = GuardPolicy { deny, deny_hosts: vec!["bad.example".to_owned()], ..open };
        for url in ["http://10.1.2.3/", "https://8.8.8.8/", "https://bad.example/", "https://a.BAD.example./"]
        {
            assert!(check_url(&narrowed, url).is_err(), "{url}");
        }
        assert_eq!(check_url(&narrowed, "https://notbad.example/"), Ok(()));
    }

    #[tokio::test]
    async fn one_bad_address_refuses_the_whole_name() {
        let resolver = Resolver::new(GuardPolicy::default(), 4);
        let answer = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert!(resolver.vet(answer(&["8.8.8.8", "2400:cb00::1"])).is_ok());
        assert!(matches!(resolver.vet(answer(&["8.8.8.8", "127.0.0.1"])), Err(ResolveError::Refused(_))));
        assert!(matches!(resolver.vet(answer(&[])), Err(ResolveError::Empty)));
        let crowd: Vec<&str> = std::iter::repeat_n("8.8.8.8", 4_000).collect();
        assert_eq!(resolver.vet(answer(&crowd)).unwrap().len(), MAX_ADDRESSES);
        let crowd = [&crowd[..], &["127.0.0.1"]].concat();
        assert!(matches!(resolver.vet(answer(&crowd)), Err(ResolveError::Refused(_))));
        assert!(matches!(resolver.addresses("localhost").await, Err(ResolveError::Refused(_))));
    }
}

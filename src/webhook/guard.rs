//! Refuses destinations inside the network: checked where the connection is made.
//!
//! Every DNS answer is checked inside the resolver that the HTTP client connects with, so the
//! address that was checked is the address that is called, and a name that changes its answer
//! between two look-ups gains nothing. Address literals never reach a resolver: the URL itself
//! is checked before every attempt. One bad answer refuses the whole name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use url::Host;

use super::target::Target;

/// What may be called.
#[derive(Debug, Clone, Default)]
pub struct GuardPolicy {
    /// Plain http too. Only for development.
    pub allow_http: bool,
    /// Loopback and private networks too. Only for development.
    pub allow_private: bool,
    /// Only these ports; any when empty.
    pub ports: Vec<u16>,
    /// Never these hosts, nor hosts below them.
    pub deny: Vec<String>,
}

/// A URL or an address that must not be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// Not https.
    #[error("plain http is not allowed")]
    Scheme,
    /// A port outside the list.
    #[error("the port is not allowed")]
    Port,
    /// A host on the deny list, or one that names a cloud's metadata service.
    #[error("the host is not allowed")]
    Host,
    /// A literal address inside the network.
    #[error("the address is reserved or private")]
    Literal,
    /// A DNS answer inside the network.
    #[error("the host resolves to an address that is reserved or private")]
    Answer,
}

impl GuardPolicy {
    /// Checks what can be checked without asking DNS.
    ///
    /// # Errors
    /// [`GuardError`], for good: the URL will never be allowed.
    pub fn check(&self, target: &Target) -> Result<(), GuardError> {
        if !target.is_https() && !self.allow_http {
            return Err(GuardError::Scheme);
        }
        if !self.ports.is_empty() && !self.ports.contains(&target.port()) {
            return Err(GuardError::Port);
        }
        match target.host() {
            Host::Ipv4(address) if !self.allows(IpAddr::V4(*address)) => Err(GuardError::Literal),
            Host::Ipv6(address) if !self.allows(IpAddr::V6(*address)) => Err(GuardError::Literal),
            Host::Domain(name) if METADATA_HOSTS.contains(&name.as_str()) => Err(GuardError::Host),
            host => {
                let host = host.to_string();
                let denied = |entry: &String| {
                    host == *entry
                        || host.strip_suffix(entry.as_str()).is_some_and(|rest| rest.ends_with('.'))
                };
                if self.deny.iter().any(denied) { Err(GuardError::Host) } else { Ok(()) }
            }
        }
    }

    /// Whether an address may be called.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        is_public(address) || (self.allow_private && is_private(address))
    }
}

/// Whether an address belongs to the public internet (IANA special-purpose registries).
///
/// IPv6 is allowed only inside global unicast, without the ranges that carry an IPv4 address
/// inside (6to4, Teredo) or document things; mapped and NAT64 forms are outside it anyway.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !REFUSED_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !REFUSED_V6.iter().any(|net| net.contains(&address))
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback() || (address.is_private() && !METADATA_V4.contains(&address))
        }
        IpAddr::V6(address) => address.is_loopback() || (address.is_unique_local() && address != METADATA_V6),
    }
}

/// Resolves names and refuses those with a bad answer; the client connects to what it returns.
#[derive(Clone)]
pub struct GuardedResolver {
    policy: Arc<GuardPolicy>,
    lookups: Arc<Semaphore>,
}

impl GuardedResolver {
    /// A resolver under a policy.
    #[must_use]
    pub fn new(policy: GuardPolicy) -> Self {
        Self { policy: Arc::new(policy), lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            // getaddrinfo blocks a thread and cannot be cancelled: bound how many may hang.
            let _permit = this.lookups.acquire().await?;
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if addresses.iter().any(|address| !this.policy.allows(address.ip())) {
                return Err(GuardError::Answer.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// The union of what the AdCP spec and its SDKs refuse.
const REFUSED_V4: [Ipv4Net; 18] = [
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
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);
const REFUSED_V6: [Ipv6Net; 4] =
    [v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];
/// Cloud metadata services, refused even where private networks are allowed.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const METADATA_HOSTS: [&str; 3] = ["metadata.google.internal", "metadata", "metadata.packet.net"];
/// Look-ups at once.
const MAX_LOOKUPS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses and whether the union of the AdCP spec's and SDKs' deny lists refuses them.
    const ADDRESSES: &str = include_str!("../../tests/vectors/addresses.json");

    #[test]
    fn every_sample_address_is_judged_as_the_union_says() {
        let samples: Vec<(IpAddr, bool)> = serde_json::from_str(ADDRESSES).unwrap();
        assert_eq!(samples.len(), 43);
        let wrong: Vec<_> = samples.iter().filter(|(ip, refused)| is_public(*ip) == *refused).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn no_spelling_of_an_inside_address_passes() {
        let policy = GuardPolicy::default();
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f000001/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://0x7f.1/",
            "https://127.0.0.1./",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::127.0.0.1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://[2002:7f00:1::]/",
            "https://[2001:0:7f00:1::]/",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://169.254.169.254/",
            "https://user@10.0.0.1/",
            "https://１２７.0.0.1/",
            "https://①②⑦.0.0.1/",
            "https://metadata.google.internal/",
            "https://metadata/",
            "http://buyer.example/",
        ] {
            let refused = Target::parse(url).map_or(true, |target| policy.check(&target).is_err());
            assert!(refused, "{url}");
        }
        for url in ["https://buyer.example/", "https://8.8.8.8/", "https://[2606:4700::1111]:8443/"] {
            assert_eq!(policy.check(&Target::parse(url).unwrap()), Ok(()), "{url}");
        }
    }

    #[test]
    fn metadata_services_stay_refused_in_development() {
        let policy = GuardPolicy { allow_private: true, allow_http: true, ..GuardPolicy::default() };
        for (url, allowed) in [
            ("http://127.0.0.1:8080/", true),
            ("http://192.168.1.1/", true),
            ("http://169.254.169.254/", false),
            ("http://[fd00:ec2::254]/", false),
            ("http://100.100.100.200/", false),
        ] {
            assert_eq!(policy.check(&Target::parse(url).unwrap()).is_ok(), allowed, "{url}");
        }
    }

    #[test]
    fn a_denied_host_takes_its_subdomains_along() {
        let policy =
            GuardPolicy { deny: vec!["bad.example".into()], ports: vec![443], ..GuardPolicy::default() };
        let check = |url: &str| policy.check(&Target::parse(url).unwrap());
        assert_eq!(check("https://bad.example/"), Err(GuardError::Host));
        assert_eq!(check("https://www.bad.example/"), Err(GuardError::Host));
        assert_eq!(check("https://notbad.example/"), Ok(()));
        assert_eq!(check("https://good.example:8443/"), Err(GuardError::Port));
    }
}

//! Parses a callback URL into what is signed and what is sent, which agree by construction.
//!
//! A receiver rebuilds `@target-uri` and `@authority` from the request as it arrives. So the URL
//! is canonicalized (AdCP URL canonicalization, steps 1 to 8), parsed into the form that the
//! HTTP client sends, and that form is canonicalized again: the second result is signed. Where
//! the client's parser rewrites something that canonicalization leaves alone (a non-ASCII path,
//! `%2e%2e`, `127.1`), the signature covers what is on the wire.

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use url::Url;

/// A callback URL as it is signed and sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    url: Url,
    canonical: Canonical,
}

/// The two derived components of RFC 9421 that a URL gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Canonical {
    /// `@target-uri`.
    pub uri: String,
    /// `@authority`.
    pub authority: String,
}

impl Target {
    /// Parses a URL.
    ///
    /// # Errors
    /// [`TargetError`]: nothing may be signed for it.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let url = Url::parse(&canonicalize(text)?.uri).map_err(|_| TargetError::Host)?;
        if url.domain().is_some_and(|name| !name.bytes().all(is_host_byte)) {
            return Err(TargetError::Host);
        }
        let canonical = canonicalize(url.as_str())?;
        Ok(Self { url, canonical })
    }

    /// The URL that is sent.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// `@target-uri` (RFC 9421 §2.2.2), query included.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.canonical.uri
    }

    /// `@authority` (RFC 9421 §2.2.3): the host, and the port where it is not the scheme's own.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.canonical.authority
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({}://{})", self.url.scheme(), self.canonical.authority)
    }
}

/// Canonicalizes a URL as it was received. Step numbers are those of the AdCP page.
pub(crate) fn canonicalize(text: &str) -> Result<Canonical, TargetError> {
    let (scheme, rest) = text.split_once("://").ok_or(TargetError::Scheme)?;
    let scheme = scheme.to_ascii_lowercase(); // 1
    let default_port = match scheme.as_str() {
        "https" => "443",
        "http" => "80",
        _ => return Err(TargetError::Scheme),
    };
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before); // 8
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host); // 3
    let (host, port) = split_port(authority)?;
    let mut authority = canonical_host(host)?; // 2
    let number = port.trim_start_matches('0');
    if number.is_empty() && !port.is_empty() {
        return Err(TargetError::Port);
    }
    if !number.is_empty() && number != default_port {
        authority = format!("{authority}:{number}"); // 4
    }
    let path = canonical_escapes(&remove_dot_segments(path)); // 5, 6
    let query = query.map(|query| format!("?{query}")).unwrap_or_default(); // 7
    Ok(Canonical { uri: format!("{scheme}://{authority}{path}{query}"), authority })
}

/// Host and port digits; the port is empty when absent.
fn split_port(authority: &str) -> Result<(&str, &str), TargetError> {
    let (host, after) = if authority.starts_with('[') {
        let end = authority.find(']').ok_or(TargetError::Host)?;
        authority.split_at(end + 1)
    } else {
        authority.split_at(authority.find(':').unwrap_or(authority.len()))
    };
    let port = match after.strip_prefix(':') {
        Some(port) => port,
        None if after.is_empty() => "",
        None => return Err(TargetError::Host),
    };
    if host.is_empty() {
        return Err(TargetError::NoHost);
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(TargetError::Port);
    }
    Ok((host, port))
}

/// Lower case, A-labels, no root dot. IPv6 literals keep their spelling.
fn canonical_host(host: &str) -> Result<String, TargetError> {
    if let Some(literal) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        // A zone id (RFC 6874) does not parse, and means nothing on another machine.
        literal.parse::<std::net::Ipv6Addr>().map_err(|_| TargetError::Host)?;
        return Ok(host.to_ascii_lowercase());
    }
    let ascii = if host.is_ascii() {
        host.to_ascii_lowercase()
    } else {
        Uts46::new()
            .to_ascii(host.as_bytes(), AsciiDenyList::STD3, Hyphens::Check, DnsLength::Ignore)
            .map_err(|_| TargetError::Host)?
            .into_owned()
    };
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    if name.split('.').any(str::is_empty) {
        return Err(TargetError::EmptyLabel);
    }
    Ok(name.to_owned())
}

/// What a name is made of where it is called. URL parsers let more through, and HTTP clients less.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._".contains(&byte)
}

/// `remove_dot_segments` (RFC 3986 §5.2.4) for a path that is empty or starts with a slash;
/// consecutive slashes stay.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if last {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// Upper-case hex, unreserved characters decoded (RFC 3986 §6.2.2); a malformed `%` stays.
fn canonical_escapes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let escape = rest[at + 1..].get(..2).filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    out.push(char::from(byte));
                } else {
                    out.push_str(&format!("%{byte:02X}"));
                }
                rest = &rest[at + 3..];
            }
            None => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// Why nothing may be signed for a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither `https://` nor `http://`.
    #[error("it is not an absolute http or https URL")]
    Scheme,
    /// An authority with nothing but a port or user name, or nothing at all.
    #[error("it has no host")]
    NoHost,
    /// A host that is no name and no address, a zone id, or brackets that do not match.
    #[error("its host is neither a name nor an address")]
    Host,
    /// Two dots in a row, or more than one at the end.
    #[error("its host has an empty label")]
    EmptyLabel,
    /// A port with anything but ASCII digits, or the port 0.
    #[error("its port is not a number, or 0")]
    Port,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        url: String,
        /// `None`: refused.
        target_uri: Option<String>,
        authority: Option<String>,
        /// What is signed and sent, where the client's parser rewrites the URL further.
        sent: Option<String>,
    }

    #[test]
    fn every_url_of_the_vectors_canonicalizes_as_they_say() {
        for source in [
            include_str!("../../tests/vectors/url-canonicalization.json"),
            include_str!("../../tests/vectors/url-canonicalization-sdk.json"),
        ] {
            let vectors: Vectors = serde_json::from_str(source).unwrap();
            assert!(vectors.cases.len() > 10);
            for case in vectors.cases {
                let canonical = canonicalize(&case.url);
                assert_eq!(canonical.as_ref().ok().map(|c| &c.uri), case.target_uri.as_ref(), "{}", case.url);
                assert_eq!(
                    canonical.as_ref().ok().map(|c| &c.authority),
                    case.authority.as_ref(),
                    "{}",
                    case.url
                );
                let target = Target::parse(&case.url);
                let sent = case.sent.or(case.target_uri);
                assert_eq!(target.as_ref().ok().map(Target::uri), sent.as_deref(), "{}", case.url);
                if let Ok(target) = target {
                    let arrived = canonicalize(target.url().as_str()).unwrap();
                    assert_eq!(arrived, target.canonical, "the receiver sees what was signed: {}", case.url);
                }
            }
        }
    }

    #[test]
    fn a_target_shows_no_query_in_debug_output() {
        let target = Target::parse("https://buyer.example/hook/secret?token=secret").unwrap();
        assert_eq!(format!("{target:?}"), "Target(https://buyer.example)");
    }
}

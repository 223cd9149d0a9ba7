//! The canonical URL of a request: what is signed, and what is sent, from one parse.
//!
//! A receiver rebuilds `@target-uri` and `@authority` from what arrives, so what we send must
//! canonicalize to what we signed. Steps and order are those of AdCP's URL canonicalization
//! (RFC 9421 §2.2.2 and §2.2.3, RFC 3986 §6.2.2, UTS-46).

use url::{Host, Url};

/// A destination in its canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    uri: String,
    authority: String,
    host: Host<String>,
    port: u16,
    https: bool,
}

impl Target {
    /// Canonicalizes an absolute `http` or `https` URL.
    ///
    /// # Errors
    /// [`TargetError`] when no signature could be right for it.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let (scheme, rest) = text.split_once("://").ok_or(TargetError::NotAbsolute)?;
        let scheme = scheme.to_ascii_lowercase();
        let https = match scheme.as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(TargetError::Scheme),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = split_port(authority)?;
        let host = canonical_host(host)?;
        let default_port = if https { 443 } else { 80 };
        let port = port.unwrap_or(default_port);
        let authority = match port == default_port {
            true => host.to_string(),
            false => format!("{host}:{port}"),
        };
        let (path, query) = tail.split_at(tail.find('?').unwrap_or(tail.len()));
        let uri = format!("{scheme}://{authority}{}{}", canonical_path(path), encode(query));
        Ok(Self { uri, authority, host, port, https })
    }

    /// `@target-uri` (RFC 9421 §2.2.2).
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// `@authority` (RFC 9421 §2.2.3).
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host, an address literal recognized as such.
    #[must_use]
    pub fn host(&self) -> &Host<String> {
        &self.host
    }

    /// The port, the scheme's default filled in.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the scheme is `https`.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The URL to send to.
    ///
    /// # Errors
    /// [`TargetError::NotSendable`] when the HTTP client would put something else on the wire
    /// than what is signed: dot segments hidden in percent-encoding, for instance.
    pub fn to_url(&self) -> Result<Url, TargetError> {
        let url = Url::parse(&self.uri).map_err(|_| TargetError::Host)?;
        match Self::parse(url.as_str()) {
            Ok(sent) if sent.uri == self.uri => Ok(url),
            _ => Err(TargetError::NotSendable),
        }
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), TargetError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(inner) => {
            let end = inner.find(']').ok_or(TargetError::Host)? + 2;
            authority.split_at(end)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((host, None)),
        None => Err(TargetError::Host),
        Some("") => Ok((host, None)),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            let number = digits.trim_start_matches('0');
            let number = if number.is_empty() { "0" } else { number };
            Ok((host, Some(number.parse().map_err(|_| TargetError::Port)?)))
        }
        Some(_) => Err(TargetError::Port),
    }
}

fn canonical_host(host: &str) -> Result<Host<String>, TargetError> {
    if host.contains('%') {
        return Err(TargetError::Host);
    }
    // One root dot goes; what is still empty after that is no label.
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() || (!name.starts_with('[') && name.split('.').any(str::is_empty)) {
        return Err(TargetError::Host);
    }
    let parsed = Host::parse(name).map_err(|_| TargetError::Host)?;
    match &parsed {
        // Non-ASCII dots turn into dots: look once more.
        Host::Domain(name) if name.split('.').any(str::is_empty) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            match name.split('.').any(str::is_empty) {
                true => Err(TargetError::Host),
                false => Ok(Host::Domain(name.to_owned())),
            }
        }
        _ => Ok(parsed),
    }
}

fn canonical_path(path: &str) -> String {
    let path = remove_dot_segments(path);
    let encoded = encode(&path);
    let mut out = String::with_capacity(encoded.len());
    let bytes = encoded.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| encoded.get(at + 1..at + 3)).flatten();
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok().map(|byte| (hex, byte))) {
            Some((_, byte)) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte))
            }
            Some((hex, _)) => {
                out.push('%');
                out.push_str(&hex.to_ascii_uppercase());
            }
            None => {
                out.push(char::from(bytes[at]));
                at += 1;
                continue;
            }
        }
        at += 3;
    }
    if out.is_empty() { "/".to_owned() } else { out }
}

/// What HTTP cannot carry as it is goes out percent-encoded, and is signed that way.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            0x21..=0x7e if !b"\"<>`".contains(&byte) => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// RFC 3986 §5.2.4; empty segments stay.
fn remove_dot_segments(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let Some(rest) = path.strip_prefix('/') else { return path.to_owned() };
    let segments: Vec<&str> = rest.split('/').collect();
    for (n, segment) in segments.iter().enumerate() {
        let last = n + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    out.pop();
                }
                if last {
                    out.push("");
                }
            }
            segment => out.push(segment),
        }
    }
    format!("/{}", out.join("/"))
}

/// Why a URL has no canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// No scheme.
    #[error("the URL is not absolute")]
    NotAbsolute,
    /// Neither http nor https.
    #[error("the URL is neither http nor https")]
    Scheme,
    /// No host, an empty label, a zone id or a bad literal.
    #[error("the URL's host cannot be called")]
    Host,
    /// Not a number from 0 to 65535.
    #[error("the URL's port is no port")]
    Port,
    /// Would arrive otherwise than signed.
    #[error("the URL cannot be sent as it would have to be signed")]
    NotSendable,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AdCP 3.2.0-beta.5, request-signing canonicalization vectors.
    const VECTORS: &str = include_str!("../../tests/vectors/canonicalization.json");

    #[test]
    fn the_specs_canonicalization_vectors_hold() {
        let cases: Vec<(String, Option<(String, String)>)> = serde_json::from_str(VECTORS).unwrap();
        assert_eq!(cases.len(), 37);
        let mut wrong = Vec::new();
        for (url, expected) in cases {
            let found = Target::parse(&url).ok().map(|target| (target.uri, target.authority));
            if found != expected {
                wrong.push(format!("{url}: {found:?}, expected {expected:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn what_is_sent_is_what_is_signed() {
        for (url, sent) in [
            ("https://h.example/p?q=%7ea%2fb", Some("https://h.example/p?q=%7ea%2fb")),
            ("https://h.example/a b?c d", Some("https://h.example/a%20b?c%20d")),
            ("https://bücher.example/ü", Some("https://xn--bcher-kva.example/%C3%BC")),
            ("https://h.example/p?", Some("https://h.example/p?")),
            ("https://h.example/%2e%2e/x", None),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(target.to_url().ok().map(|url| url.to_string()).as_deref(), sent, "{url}");
        }
    }
}

//! Who may look at the page: whoever is on this machine, or holds the token.
//!
//! Without a token the page is for loopback only, and then the name that the browser asked for
//! must be one of loopback: a name of somebody else's that resolves to 127.0.0.1 (DNS rebinding)
//! would let their script read the answers. With a token that is no danger, since the cookie
//! belongs to the name under which it was set.

use aws_lc_rs::hmac;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};

/// Knows the token, if there is one.
pub struct Gate {
    token: Option<hmac::Key>,
}

impl Gate {
    /// A gate that asks for a token, or one for loopback.
    #[must_use]
    pub fn new(token: Option<&SecretString>) -> Self {
        let key = |token: &SecretString| hmac::Key::new(hmac::HMAC_SHA256, token.expose_secret().as_bytes());
        Self { token: token.map(key) }
    }

    /// Whether the page may be asked for under this name.
    pub(super) fn knows_host(&self, headers: &HeaderMap) -> bool {
        self.token.is_some() || names_loopback(headers)
    }

    /// Whether the request carries the token, or the cookie that stands for it.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.token else { return true };
        let bearer =
            headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if bearer.is_some_and(|token| is_token(key, token)) {
            return true;
        }
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='))
            .filter_map(|value| URL_SAFE_NO_PAD.decode(value).ok())
            // In constant time.
            .any(|tag| hmac::verify(key, COOKIE_MEANS, &tag).is_ok())
    }

    /// The `Set-Cookie` for whoever has the token. The cookie is not the token: it opens this
    /// page and nothing else, and ends with the token.
    /// Beyond loopback a browser sends it over TLS only.
    pub(super) fn cookie_for(&self, token: &str, headers: &HeaderMap) -> Option<String> {
        let key = self.token.as_ref().filter(|key| is_token(key, token))?;
        let value = URL_SAFE_NO_PAD.encode(hmac::sign(key, COOKIE_MEANS));
        let secure = if names_loopback(headers) { "" } else { "; Secure" };
        Some(format!(
            "{COOKIE_NAME}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_SECONDS}{secure}"
        ))
    }
}

/// Compares what two keys make of the same bytes, in constant time: neither length nor content
/// of the token shows.
fn is_token(key: &hmac::Key, typed: &str) -> bool {
    let typed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, typed.as_bytes()), LOGIN_MEANS);
    hmac::verify(key, LOGIN_MEANS, typed.as_ref()).is_ok()
}

/// Whether it was asked for under a name of loopback.
fn names_loopback(headers: &HeaderMap) -> bool {
    headers.get(HOST).and_then(|host| host.to_str().ok()).is_some_and(is_loopback)
}

/// `localhost`, a name below it, or a loopback address; any port.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        || name == "localhost"
        || name.ends_with(".localhost")
}

const COOKIE_NAME: &str = "taskbell_page";
const COOKIE_MEANS: &[u8] = b"taskbell page cookie v1";
const LOGIN_MEANS: &[u8] = b"taskbell page login v1";
/// A working day.
const COOKIE_SECONDS: u32 = 43_200;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: axum::http::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn without_a_token_only_names_of_loopback_are_known() {
        let open = Gate::new(None);
        for (host, known) in [
            ("localhost:9464", true),
            ("LOCALHOST", true),
            ("127.0.0.1:9464", true),
            ("127.8.9.1", true),
            ("[::1]:9464", true),
            ("taskbell.localhost:80", true),
            ("evil.example:9464", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:9464", false),
            ("192.168.1.4:9464", false),
            ("[2001:db8::1]:9464", false),
            ("", false),
        ] {
            assert_eq!(open.knows_host(&headers(HOST, host)), known, "{host}");
        }
        assert!(!open.knows_host(&HeaderMap::new()));
        assert!(open.admits(&HeaderMap::new()));
    }

    #[test]
    fn the_token_opens_and_so_does_its_cookie_until_the_token_changes() {
        let token = |text: &str| SecretString::from(text);
        let gate = Gate::new(Some(&token("correct horse battery")));
        assert!(gate.knows_host(&headers(HOST, "ops.example")));
        assert!(!gate.admits(&HeaderMap::new()));
        assert!(gate.admits(&headers(AUTHORIZATION, "Bearer correct horse battery")));
        for wrong in ["Bearer correct horse", "Bearer ", "Basic correct horse battery"] {
            assert!(!gate.admits(&headers(AUTHORIZATION, wrong)), "{wrong}");
        }
        assert_eq!(gate.cookie_for("correct horse", &HeaderMap::new()), None);
        let cookie = |host: &str| gate.cookie_for("correct horse battery", &headers(HOST, host)).unwrap();
        for (host, secure) in [("localhost:9464", false), ("[::1]:1", false), ("ops.example", true)] {
            assert_eq!(cookie(host).ends_with("; Secure"), secure, "{host}");
        }
        let set = cookie("ops.example");
        assert!(set.contains("HttpOnly; SameSite=Strict") && !set.contains("horse"), "{set}");
        let pair = set.split(';').next().unwrap();
        assert!(gate.admits(&headers(COOKIE, &format!("other=1; {pair}"))));
        let mut forged = pair.to_owned();
        forged.pop();
        assert!(!gate.admits(&headers(COOKIE, &forged)));
        assert!(!Gate::new(Some(&token("another token here"))).admits(&headers(COOKIE, pair)));
    }
}

//! Connection strings as PostgreSQL's own clients write them, understood by ours.
//!
//! `tokio_postgres` refuses what only libpq knows. Keys that mean the same here are
//! translated, keys without a meaning here are dropped, and those whose promise could not be
//! kept, such as client certificates, are refused by name.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};

/// A connection string that was understood.
pub(super) struct Dsn {
    /// For the driver.
    pub(super) config: tokio_postgres::Config,
    /// `sslrootcert`, where it is a file.
    pub(super) ca_file: Option<PathBuf>,
}

impl Dsn {
    /// Understands a URL or a list of `key=value`.
    ///
    /// # Errors
    /// [`DsnError`], which names keys but never repeats values.
    pub(super) fn parse(text: &str) -> Result<Self, DsnError> {
        let mut ca_file = None;
        let text = text.trim();
        let rewritten = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            url(text, &mut ca_file)?
        } else {
            pairs(text, &mut ca_file)?
        };
        let mut config = tokio_postgres::Config::from_str(&rewritten).map_err(|_| DsnError::Malformed)?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(DsnError::NoHost);
        }
        // libpq ignores `sslmode` on a socket; the driver would ask for TLS and fail.
        if !config.get_hosts().is_empty()
            && config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)))
        {
            config.ssl_mode(SslMode::Disable);
        }
        // The kernel keeps resending a query to a vanished server for a quarter of an hour.
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(USER_TIMEOUT);
        }
        Ok(Self { config, ca_file })
    }
}

/// Translates the query of a URL and leaves the rest as it is.
fn url(text: &str, ca_file: &mut Option<PathBuf>) -> Result<String, DsnError> {
    // As the driver reads it, user and password go to the first `@`; either may hold a `?`.
    let after_credentials = text.find('@').map_or(0, |at| at + 1);
    let Some(at) = text[after_credentials..].find('?') else { return Ok(text.to_owned()) };
    let (base, query) = text.split_at(after_credentials + at);
    let mut kept = url::form_urlencoded::Serializer::new(String::new());
    // Form decoding would read a plus as a space; libpq does not.
    for (key, value) in url::form_urlencoded::parse(query[1..].replace('+', "%2B").as_bytes()) {
        if let Some((key, value)) = translate(&key, &value, ca_file)? {
            kept.append_pair(&key, &value);
        }
    }
    let kept = kept.finish().replace('+', "%20");
    Ok(if kept.is_empty() { base.to_owned() } else { format!("{base}?{kept}") })
}

/// Translates `key=value` pairs, whose values may be quoted.
fn pairs(text: &str, ca_file: &mut Option<PathBuf>) -> Result<String, DsnError> {
    let mut kept = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or(DsnError::Malformed)?;
        let (value, after) = value(after.trim_start())?;
        if let Some((key, value)) = translate(key.trim_end(), &value, ca_file)? {
            kept.push(format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")));
        }
        rest = after.trim_start();
    }
    Ok(kept.join(" "))
}

/// One value, and what follows it. A backslash takes the next character as it is.
fn value(text: &str) -> Result<(String, &str), DsnError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next().ok_or(DsnError::Malformed)?.1),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if c.is_whitespace() && !quoted => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(DsnError::Malformed) } else { Ok((value, "")) }
}

/// What a key and its value are called by the driver; `None` for what it need not know.
fn translate(
    key: &str,
    value: &str,
    ca_file: &mut Option<PathBuf>,
) -> Result<Option<(String, String)>, DsnError> {
    let keep = |value: &str| Ok(Some((key.to_owned(), value.to_owned())));
    match key {
        "sslrootcert" => {
            *ca_file = (value != "system" && !value.is_empty()).then(|| value.into());
            Ok(None)
        }
        // Certificate and name are always verified here once TLS is spoken.
        "sslmode" => match value {
            "disable" | "prefer" | "require" => keep(value),
            "verify-ca" | "verify-full" => keep("require"),
            "allow" => keep("prefer"),
            _ => Err(DsnError::Value("sslmode")),
        },
        "target_session_attrs" => match value {
            "any" | "read-write" | "read-only" => keep(value),
            "primary" => keep("read-write"),
            _ => Err(DsnError::Value("target_session_attrs")),
        },
        // Milliseconds in libpq, seconds in the driver.
        "tcp_user_timeout" => {
            let milliseconds: u64 = value.parse().map_err(|_| DsnError::Value("tcp_user_timeout"))?;
            keep(&milliseconds.div_ceil(1000).to_string())
        }
        "gssencmode" if value == "require" => Err(DsnError::Unsupported("gssencmode")),
        key if WITHOUT_MEANING.contains(&key) => Ok(None),
        key => match UNSUPPORTED.iter().find(|unsupported| **unsupported == key) {
            Some(unsupported) => Err(DsnError::Unsupported(unsupported)),
            None if KNOWN.contains(&key) => keep(value),
            None => Err(DsnError::Unknown),
        },
    }
}

/// Why a connection string cannot be used. Unknown keys are not named: half a password looks
/// like one where quotes or percent signs are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DsnError {
    /// Neither a URL nor pairs.
    #[error(
        "is no connection string: write postgres://user:password@host/database, with @ : / ? # and % in a \
         password percent-encoded, or host=… user=… dbname=…, with such values in single quotes"
    )]
    Malformed,
    /// Nowhere to connect to.
    #[error(
        "names no host; for a socket write host=/var/run/postgresql, or ?host=/var/run/postgresql in a URL"
    )]
    NoHost,
    /// A key with a value that it cannot have.
    #[error("has a value for {0} that cannot be used")]
    Value(&'static str),
    /// A key whose promise could not be kept.
    #[error("has {0}, which is not supported")]
    Unsupported(&'static str),
    /// A key that PostgreSQL does not know.
    #[error("has a key that PostgreSQL does not know; is a value with a space or an & in it quoted?")]
    Unknown,
}

/// What the driver understands as libpq does.
const KNOWN: [&str; 12] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "sslnegotiation",
    "channel_binding",
    "load_balance_hosts",
];
/// Tuning that we do ourselves, and options of things that we never do.
const WITHOUT_MEANING: [&str; 14] = [
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcompression",
    "sslsni",
];
const UNSUPPORTED: [&str; 14] = [
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "ssl_max_protocol_version",
    "sslcert",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslpassword",
];
const USER_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    /// Host, password, mode and CA file of a connection string.
    fn check(text: &str, host: &str, password: Option<&str>, mode: SslMode, ca_file: Option<&str>) {
        let dsn = Dsn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(dsn.config.get_hosts(), [Host::Tcp(host.to_owned())], "{text}");
        assert_eq!(dsn.config.get_password(), password.map(str::as_bytes), "{text}");
        assert_eq!(dsn.config.get_ssl_mode(), mode, "{text}");
        assert_eq!(dsn.ca_file, ca_file.map(PathBuf::from), "{text}");
    }

    #[test]
    fn what_libpq_users_write_is_understood() {
        use SslMode::{Disable, Prefer, Require};
        check("postgres://u@h/d", "h", None, Prefer, None);
        check("postgresql://u:p@h/d?sslmode=disable", "h", Some("p"), Disable, None);
        check(
            "postgres://h/d?sslmode=verify-full&sslrootcert=%2Fa%20b.pem",
            "h",
            None,
            Require,
            Some("/a b.pem"),
        );
        check("postgres://h/d?sslrootcert=system&gssencmode=disable", "h", None, Prefer, None);
        check("postgres://u:p?w@h/d?sslmode=verify-ca", "h", Some("p?w"), Require, None);
        check("postgres://h/d?password=a%2Bb+c%26d", "h", Some("a+b+c&d"), Prefer, None);
        check("host=h sslmode=verify-ca dbname=d", "h", None, Require, None);
        check("host=h password='a b' sslmode=verify-full", "h", Some("a b"), Require, None);
        check(
            r"host = h password='it\'s \\' sslrootcert='/c a.pem'",
            "h",
            Some(r"it's \"),
            Prefer,
            Some("/c a.pem"),
        );
        check(
            r"password=a\ b host=h keepalives_count=3 client_encoding=UTF8",
            "h",
            Some("a b"),
            Prefer,
            None,
        );
    }

    #[test]
    fn a_socket_never_speaks_tls() {
        for text in ["postgres:///d?host=/run/pg&sslmode=require", "host=/run/pg sslmode=verify-full"] {
            assert_eq!(
                Dsn::parse(text).ok().map(|dsn| dsn.config.get_ssl_mode()),
                Some(SslMode::Disable),
                "{text}"
            );
        }
    }

    #[test]
    fn libpq_counts_the_user_timeout_in_milliseconds() {
        for (text, seconds) in [("host=h tcp_user_timeout=4500", 5), ("host=h", 20)] {
            let timeout = Dsn::parse(text).ok().and_then(|dsn| dsn.config.get_tcp_user_timeout().copied());
            assert_eq!(timeout, Some(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_without_repeating_it() {
        for (text, expected) in [
            ("postgres://u:hush@h/d?sslcert=/c.pem", DsnError::Unsupported("sslcert")),
            ("host=h gssencmode=require password=hush", DsnError::Unsupported("gssencmode")),
            ("service=prod", DsnError::Unsupported("service")),
            ("host=h target_session_attrs=standby", DsnError::Value("target_session_attrs")),
            ("host=h sslmode=hush", DsnError::Value("sslmode")),
            ("host=h password=very hush=x", DsnError::Unknown),
            ("host=h password=very hush", DsnError::Malformed),
            ("host=h password='hush", DsnError::Malformed),
            ("12345", DsnError::Malformed),
            ("postgres://h:port/d", DsnError::Malformed),
            ("postgres:///d", DsnError::NoHost),
        ] {
            let error = Dsn::parse(text).err();
            assert_eq!(error, Some(expected), "{text}");
            assert!(!expected.to_string().contains("hush"), "{text}");
        }
    }
}

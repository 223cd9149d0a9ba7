//! Reads the signature headers: the part of RFC 8941 that the profile uses, and no more.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::super::sign::LABEL;

/// The member `sig1` of a `Signature-Input`.
pub(super) struct SignatureInput<'a> {
    /// Names of the covered components, in order, without their quotes.
    pub components: Vec<&'a str>,
    params: Vec<(&'a str, Value<'a>)>,
    /// The member as it stands: the value of `@signature-params`.
    pub raw: &'a str,
}

/// The six parameters that the profile requires.
pub(super) struct Params<'a> {
    pub created: u64,
    pub expires: u64,
    pub nonce: &'a str,
    pub keyid: &'a str,
    pub alg: &'a str,
    pub tag: &'a str,
}

enum Value<'a> {
    Integer(u64),
    Text(Cow<'a, str>),
}

impl<'a> SignatureInput<'a> {
    /// Parses the header; `None` when it is malformed or has no `sig1`.
    pub fn parse(text: &'a str) -> Option<Self> {
        let raw = member(text)?;
        let (components, mut rest) = raw.strip_prefix('(')?.split_once(')')?;
        let components = components
            .split(' ')
            .map(|item| item.strip_prefix('"')?.strip_suffix('"').filter(|name| !name.contains('"')))
            .collect::<Option<Vec<_>>>()?;
        let mut params: Vec<(&str, Value<'_>)> = Vec::new();
        while !rest.is_empty() {
            let (name, value) = rest.strip_prefix(';')?.split_once('=')?;
            let (value, after) = if value.starts_with('"') { text_value(value)? } else { integer(value)? };
            if name.is_empty() || params.iter().any(|(other, _)| *other == name) {
                return None;
            }
            params.push((name, value));
            rest = after;
        }
        Some(Self { components, params, raw })
    }

    /// The required parameters; `None` when one is missing or is not of its type. A nonce has at
    /// least 16 bytes and no padding.
    pub fn required(&self) -> Option<Params<'_>> {
        let find = |name| self.params.iter().find(|(other, _)| *other == name).map(|(_, value)| value);
        let text = |name| match find(name) {
            Some(Value::Text(text)) => Some(text.as_ref()),
            _ => None,
        };
        let integer = |name| match find(name) {
            Some(Value::Integer(integer)) => Some(*integer),
            _ => None,
        };
        let nonce = text("nonce")?;
        if URL_SAFE_NO_PAD.decode(nonce).ok()?.len() < 16 {
            return None;
        }
        Some(Params {
            created: integer("created")?,
            expires: integer("expires")?,
            nonce,
            keyid: text("keyid")?,
            alg: text("alg")?,
            tag: text("tag")?,
        })
    }
}

/// The bytes of `sig1` in a `Signature`: base64url without padding, in no other alphabet.
pub(super) fn signature(text: &str) -> Option<Vec<u8>> {
    let token = member(text)?.strip_prefix(':')?.strip_suffix(':')?;
    URL_SAFE_NO_PAD.decode(token).ok()
}

/// The `sha-256` of a `Content-Digest` (RFC 9530), in either base64 alphabet: AdCP's prose and
/// its vectors differ.
pub(super) fn sha256(text: &str) -> Option<Vec<u8>> {
    text.split(',').find_map(|entry| {
        let token = entry.trim().strip_prefix("sha-256=:")?.strip_suffix(':')?;
        STANDARD.decode(token).or_else(|_| URL_SAFE_NO_PAD.decode(token)).ok()
    })
}

/// The member `sig1` of a dictionary; `None` when there is none or more than one.
fn member(text: &str) -> Option<&str> {
    let mut found = None;
    for entry in split_outside_strings(text) {
        if let Some(value) = entry.trim().strip_prefix(LABEL).and_then(|rest| rest.strip_prefix('='))
            && found.replace(value).is_some()
        {
            return None;
        }
    }
    found
}

/// Splits at commas that are not inside a quoted string.
fn split_outside_strings(text: &str) -> Vec<&str> {
    let (mut entries, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                entries.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    entries.push(&text[start..]);
    entries
}

/// A non-negative integer of at most 15 digits (RFC 8941 §3.3.1), and what follows it.
fn integer(text: &str) -> Option<(Value<'_>, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (1..=15)
        .contains(&digits.len())
        .then(|| digits.parse().ok())?
        .map(|number| (Value::Integer(number), rest))
}

/// An sf-string (RFC 8941 §3.3.3), and what follows it.
fn text_value(quoted: &str) -> Option<(Value<'_>, &str)> {
    let body = quoted.strip_prefix('"')?;
    let mut unescaped = String::new();
    let mut bytes = body.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                let plain = &body[..at];
                let text = if plain.contains('\\') { Cow::Owned(unescaped) } else { Cow::Borrowed(plain) };
                return Some((Value::Text(text), &body[at + 1..]));
            }
            b'\\' => match bytes.next() {
                Some((_, escaped @ (b'"' | b'\\'))) => unescaped.push(char::from(escaped)),
                _ => return None,
            },
            0x20..=0x7e => unescaped.push(char::from(byte)),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_inputs_are_refused() {
        for text in [
            "",
            "sig1",
            "sig1=",
            "sig1=()",
            "sig2=(\"@method\");created=1",
            "sig1=(\"@method\"  \"@authority\");created=1",
            "sig1=(\"@method\";req);created=1",
            "sig1=(\"@method\");created=1;created=2",
            "sig1=(\"@method\");created=-1",
            "sig1=(\"@method\");created=1234567890123456",
            "sig1=(\"@method\");keyid=\"a",
            "sig1=(\"@method\");keyid=\"a\\b\"",
            "sig1=(\"@method\");keyid=\"\u{e9}\"",
            "sig1=(\"@method\");created=1, sig1=(\"@method\");created=1",
        ] {
            assert!(SignatureInput::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn commas_and_quotes_inside_strings_separate_nothing() {
        let text = r#"other=("a");keyid="x, sig1=(", sig1=("@method");keyid="a, \"b\" \\""#;
        let input = SignatureInput::parse(text).unwrap();
        assert_eq!(input.components, ["@method"]);
        assert!(matches!(&input.params[0].1, Value::Text(text) if text == r#"a, "b" \"#));
    }

    #[test]
    fn signatures_have_one_alphabet_and_digests_two() {
        assert_eq!(signature("sig1=:_-8:"), Some(vec![0xff, 0xef]));
        for text in ["sig1=:/+8=:", "sig1=:_+8:", "sig1=:_-8=:", "sig1=_-8", "x=:_-8:"] {
            assert_eq!(signature(text), None, "{text}");
        }
        assert_eq!(sha256("md5=:AAAA:, sha-256=:/+8=:"), Some(vec![0xff, 0xef]));
        assert_eq!(sha256("sha-256=:_-8:"), Some(vec![0xff, 0xef]));
    }

    #[test]
    fn short_nonces_count_as_missing() {
        for (nonce, accepted) in [
            ("AAAAAAAAAAAAAAAAAAAAAA", true),
            ("AAAAAAAAAAAAAAAAAAAA", false),
            ("AAAAAAAAAAAAAAAAAAAAAA==", false),
        ] {
            let text =
                format!(r#"sig1=("@method");created=1;expires=2;nonce="{nonce}";keyid="k";alg="a";tag="t""#);
            assert_eq!(SignatureInput::parse(&text).unwrap().required().is_some(), accepted, "{nonce}");
        }
    }
}

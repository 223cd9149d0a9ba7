//! Copies a stored JSON document into a body: white space dropped, duplicate keys refused.
//!
//! Nothing is parsed into values and written again, because that would lose digits and spellings
//! that the buyer compares: every token is copied byte for byte. The input is a
//! [`RawValue`](serde_json::value::RawValue) and so already well formed; the scan is a loop with
//! a stack of its own, so that nesting cannot exhaust the thread's.

use std::borrow::Cow;
use std::collections::HashSet;

/// Why a document is not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// One object has the same key twice, compared after unescaping.
    DuplicateKey,
    /// Nested too deeply.
    TooDeep,
    /// A key that is no Unicode text, such as a lone surrogate.
    Key,
}

/// Appends the well-formed document `text`, nested at most `max_depth` deep, to `out`.
pub(super) fn copy_compact(text: &str, max_depth: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
    let bytes = text.as_bytes();
    let mut open: Vec<Level> = Vec::new();
    // What has been read and is to be copied begins here: up to the next white space, in one piece.
    let (mut at, mut from) = (0, 0);
    while let Some(&byte) = bytes.get(at) {
        let mut end = at + 1;
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                out.extend_from_slice(&bytes[from..at]);
                from = end;
            }
            b'"' => {
                end = string_end(bytes, at);
                if let Some(Level::Object { keys, key_next: key_next @ true }) = open.last_mut() {
                    *key_next = false;
                    if !keys.insert(unescape(&text[at..end])?) {
                        return Err(Fault::DuplicateKey);
                    }
                }
            }
            b'{' => open.push(Level::Object { keys: Keys::default(), key_next: true }),
            b'[' => open.push(Level::Array),
            b'}' | b']' => {
                open.pop();
            }
            b',' => {
                if let Some(Level::Object { key_next, .. }) = open.last_mut() {
                    *key_next = true;
                }
            }
            _ => {}
        }
        if open.len() > max_depth {
            return Err(Fault::TooDeep);
        }
        at = end;
    }
    out.extend_from_slice(&bytes[from..]);
    Ok(())
}

/// One object or array that is still open.
enum Level<'a> {
    Object { keys: Keys<'a>, key_next: bool },
    Array,
}

/// The keys of one object: most have so few that comparing costs less than hashing, which took a twentieth of the
/// processor time of a delivery.
#[derive(Default)]
struct Keys<'a> {
    few: Vec<Cow<'a, str>>,
    many: HashSet<Cow<'a, str>>,
}

impl<'a> Keys<'a> {
    /// Whether the key is new.
    fn insert(&mut self, key: Cow<'a, str>) -> bool {
        if self.few.contains(&key) {
            return false;
        }
        if self.few.len() < FEW_KEYS {
            self.few.push(key);
            return true;
        }
        self.many.insert(key)
    }
}

/// Where the string that opens at `start` ends, its closing quote included.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// What a quoted key says.
fn unescape(quoted: &str) -> Result<Cow<'_, str>, Fault> {
    match quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => serde_json::from_str(quoted).map(Cow::Owned).map_err(|_| Fault::Key),
    }
}

/// Deepest nesting that is copied. Receivers stop earlier, the AdCP Python SDK at 100; this only
/// bounds the work done on a hostile document.
pub(super) const MAX_DEPTH: usize = 512;
const FEW_KEYS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, Fault>) {
        let mut out = Vec::new();
        let copied = copy_compact(text, MAX_DEPTH, &mut out);
        let copied = copied.map(|()| String::from_utf8(out).unwrap());
        assert_eq!(copied, expected.map(str::to_owned), "{text}");
    }

    #[test]
    fn tokens_are_copied_and_white_space_is_dropped() {
        check(
            " { \"a b\" : [ 1e2 , 0.1000 , 12345678901234567890123 ] } ",
            Ok(r#"{"a b":[1e2,0.1000,12345678901234567890123]}"#),
        );
        check(r#"{"a": "x , \" : y\\", "b": {"a": null}}"#, Ok(r#"{"a":"x , \" : y\\","b":{"a":null}}"#));
        check("\"\u{e9} \\u00e9\"", Ok("\"\u{e9} \\u00e9\""));
        check("null", Ok("null"));
    }

    #[test]
    fn duplicate_keys_are_found_at_any_depth_and_in_any_spelling() {
        check(r#"{"a":1,"a":2}"#, Err(Fault::DuplicateKey));
        check(r#"[[{"x":{"a":1,"\u0061":2}}]]"#, Err(Fault::DuplicateKey));
        check(r#"{"a":"a","b":["a","a"],"c":{"a":1}}"#, Ok(r#"{"a":"a","b":["a","a"],"c":{"a":1}}"#));
        let keys: Vec<String> = (0..3 * FEW_KEYS).map(|n| format!("\"k{n}\":{n}")).collect();
        let object = format!("{{{}}}", keys.join(","));
        check(&object, Ok(&object));
        for again in [0, FEW_KEYS - 1, FEW_KEYS, 3 * FEW_KEYS - 1] {
            check(&format!("{{{},\"k{again}\":0}}", keys.join(",")), Err(Fault::DuplicateKey));
        }
    }

    #[test]
    fn hostile_documents_are_refused() {
        check(&format!("{}{}", "[".repeat(513), "]".repeat(513)), Err(Fault::TooDeep));
        check(r#"{"\ud800":1}"#, Err(Fault::Key));
    }
}

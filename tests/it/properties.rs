//! A few hundred random inputs for each property; the fuzz targets try millions.

use proptest::collection::vec;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;
use proptest::test_runner::Config;

use crate::support::properties;

/// Texts made of pieces that mean something where they come, and of anything.
fn text_of(pieces: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    vec(prop_oneof![8 => select(pieces).prop_map(str::to_owned), 1 => "\\PC{0,4}"], 0..most)
        .prop_map(|pieces| pieces.concat())
}

fn url() -> impl Strategy<Value = String> {
    (
        select(&["https://", "http://", "HTTPS://", ""][..]),
        text_of(HOST, 8),
        text_of(PORT, 3),
        text_of(PATH, 8),
    )
        .prop_map(|(scheme, host, port, path)| format!("{scheme}{host}{port}{path}"))
}

const HOST: &[&str] = &[
    "buyer",
    "example",
    ".",
    ".",
    ".",
    "localhost",
    "127",
    "0",
    "1",
    "0x7f",
    "0177",
    "2130706433",
    "10",
    "169.254",
    "[",
    "]",
    "::1",
    "::ffff:",
    "64:ff9b::",
    "2002:",
    "2606:4700::1111",
    "%25eth0",
    "%2e",
    "%61",
    "%E3%80%82",
    "xn--",
    "-",
    "_",
    "@",
    "\u{3002}",
    "\u{ad}",
    "\u{ff11}",
    "\u{2460}",
    "\u{fc}",
    "\\",
    "\t",
    "",
];
const PORT: &[&str] = &[":", "443", "80", "8443", "0", "65536", "\u{ff14}"];
const PATH: &[&str] = &[
    "/", "/", "..", ".", "%2e", "%2E", "%7e", "%2f", "%", "%%32e", "a", "\u{e9}", "?", "x=1", "&", "#", "@",
    "\\", "\"", "'", "{", "|", "^", "`", "<", " ",
];

fn config() -> impl Strategy<Value = String> {
    let text = |pieces: &'static [&'static str]| {
        prop_oneof![4 => text_of(pieces, 3), 1 => "\\PC{0,40}"]
            .prop_map(|text| serde_json::Value::from(text).to_string())
    };
    let scheme = select(&["[\"Bearer\"]", "[\"HMAC-SHA256\"]", "[\"Basic\"]", "[]", "\"Bearer\""][..]);
    let secret = text(&["0123456789abcdef0123456789abcdef", "a", "\u{e9}", "\r\n"]);
    let authentication = prop_oneof![
        Just("null".to_owned()),
        (scheme, secret)
            .prop_map(|(schemes, secret)| format!(r#"{{"schemes":{schemes},"credentials":{secret}}}"#)),
    ];
    let url = prop_oneof![3 => Just("https://buyer.example/hook".to_owned()), 1 => url()]
        .prop_map(|url| serde_json::Value::from(url).to_string());
    (url, text(&["op_1", ":", "a.b-c"]), text(&["0123456789abcdef", " 0123456789abcde\u{e9} "]), authentication).prop_map(
        |(url, operation, token, authentication)| {
            format!(r#"{{"url":{url},"operation_id":{operation},"token":{token},"authentication":{authentication}}}"#)
        },
    )
}

/// A JSON document as somebody may have written it: white space, odd numbers, keys twice.
fn document() -> BoxedStrategy<String> {
    let text = prop_oneof![
        select(
            &["\"a\"", "\"\\u0061\"", "\"b\"", "\"\\\\\\\"\"", "\"\"", "\"errors\"", "\"adcp_error\""][..]
        )
        .prop_map(str::to_owned),
        "\\PC{0,6}".prop_map(|text| serde_json::Value::from(text).to_string()),
    ];
    let leaf = prop_oneof![
        select(&["null", "true", "1", "-0.0", "1e400", "12345678901234567890123", "1.50"][..])
            .prop_map(str::to_owned),
        text.clone(),
    ];
    let space = select(&["", "", " ", "\n\t"][..]);
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            (vec(inner.clone(), 0..5), space.clone())
                .prop_map(|(items, space)| format!("[{space}{}]", items.join(&format!("{space},")))),
            (vec((text.clone(), inner), 0..5), space.clone()).prop_map(|(members, space)| {
                let members: Vec<_> =
                    members.iter().map(|(name, value)| format!("{name}{space}:{space}{value}")).collect();
                format!("{{{}{space}}}", members.join(","))
            }),
        ]
    })
    .boxed()
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::with_cases(400) })]

    #[test]
    fn what_is_sent_is_what_was_signed_and_never_goes_inside(url in url()) {
        properties::url(&url);
    }

    #[test]
    fn an_accepted_registration_is_kept_as_it_came(config in config()) {
        properties::registration(&config);
    }

    #[test]
    fn a_body_has_its_documents_byte_for_byte_and_no_key_twice(
        failed in any::<bool>(),
        result in document(),
        context in prop_oneof![Just("null".to_owned()), document()],
    ) {
        properties::envelope(failed, &result, &context);
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused(
        edits in vec((any::<u16>(), 0_u8..40, text_of(HEADER, 3)), 0..4),
    ) {
        properties::verification(&edits);
    }
}

const HEADER: &[&str] =
    &["\n", "sig1=", ", ", ";", "\"", "=", ":", "(", ")", "a", "A", "created=1", "\\", "sha-256=:"];

//! Callback URLs: any text.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| properties::url(text));

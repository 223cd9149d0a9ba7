//! A `push_notification_config`: any JSON text.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| properties::registration(text));

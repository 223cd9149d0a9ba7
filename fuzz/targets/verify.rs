//! A signed request, changed here and there.
#![no_main]

libfuzzer_sys::fuzz_target!(|edits: Vec<(u16, u8, String)>| properties::verification(&edits));

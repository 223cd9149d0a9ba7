//! Stored documents on their way into a body: a result, and after a line of `---` a context. A
//! text that starts with `!` is of a task that failed.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (failed, text) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
    let (result, context) = text.split_once("\n---\n").unwrap_or((text, "null"));
    properties::envelope(failed, result, context);
});

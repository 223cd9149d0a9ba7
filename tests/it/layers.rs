//! The arrows between modules go one way, as ARCHITECTURE.md draws them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What each module may use of the crate.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("task", &[]),
    ("registry", &["task", "migrations"]),
    ("migrations", &[]),
    ("listener", &[]),
    ("webhook", &["task"]),
    ("outbox", &["task", "webhook"]),
    ("metrics", &["task", "webhook", "outbox"]),
    ("worker", &["task", "webhook", "outbox", "listener", "metrics"]),
    ("daemon", &["task", "registry", "migrations", "listener", "webhook", "outbox", "metrics", "worker"]),
];

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_arrow_between_modules_is_one_that_the_architecture_draws() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    let mut arrows = 0;
    for file in files {
        let relative = file.strip_prefix(&source).unwrap().to_str().unwrap();
        let module = relative.split(['/', '.']).next().unwrap();
        let Some(allowed) = allowed.get(module) else { continue };
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            for target in line.split("crate::").skip(1) {
                let target: String =
                    target.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if target == module || target.is_empty() {
                    continue;
                }
                arrows += 1;
                assert!(allowed.contains(&target.as_str()), "{relative} uses crate::{target}");
            }
        }
    }
    assert!(arrows > 20, "only {arrows} arrows were found: does this test still read the code?");
}

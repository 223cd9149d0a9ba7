//! docs/configuration.md is made from config/taskbell.toml, which is the reference and the defaults.

use std::fmt::Write;

use taskbell::daemon::config::REFERENCE;

const PAGE: &str = "docs/configuration.md";

#[test]
fn the_page_about_the_configuration_says_what_the_reference_says() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    assert!(page == render(REFERENCE), "{PAGE} is not that of config/taskbell.toml: run `just reference`");
    for expected in [
        "| `url_file` | `\"\"` | `TASKBELL_DATABASE__URL_FILE` |",
        "## `[metrics.sla]`",
        "| `jitter` | `0.2` |",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
#[ignore = "it writes the page: `just reference`"]
fn write() {
    std::fs::write(PAGE, render(REFERENCE)).unwrap();
}

/// A section for each table, a row for each key. A comment belongs to the keys that follow it, or
/// to the section where none does.
fn render(reference: &str) -> String {
    let mut page = "# Configuration\n\nMade from [config/taskbell.toml](../config/taskbell.toml) by `just reference`.\n\n".to_owned();
    let (mut section, mut comment, mut in_table) = (String::new(), Vec::<&str>::new(), false);
    let mut lines = reference.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push(text.trim());
            if lines.peek().is_none_or(|next| !next.is_empty()) {
                continue;
            }
            paragraph(&mut page, &mut comment, &mut in_table);
        } else if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
            in_table = false;
            writeln!(page, "## `[{section}]`\n").unwrap();
            paragraph(&mut page, &mut comment, &mut in_table);
        } else if let Some((key, value)) = line.split_once(" = ") {
            let mut value = value.to_owned();
            while value.starts_with('[') && !value.ends_with(']') {
                let more = lines.next().unwrap().trim();
                let space = if value.ends_with('[') || more == "]" { "" } else { " " };
                write!(value, "{space}{more}").unwrap();
            }
            if !in_table {
                page.push_str("| key | default | environment | |\n|---|---|---|---|\n");
                in_table = true;
            }
            let variable = format!("TASKBELL_{section}__{key}").replace('.', "__").to_uppercase();
            let says = comment.join(" ").replace('|', "\\|");
            comment.clear();
            writeln!(page, "| `{key}` | `{value}` | `{variable}` | {says} |").unwrap();
        } else {
            assert!(line.is_empty(), "{line:?} is neither comment, table, key nor empty");
            if in_table {
                page.push('\n');
            }
            in_table = false;
        }
    }
    page
}

fn paragraph(page: &mut String, comment: &mut Vec<&str>, in_table: &mut bool) {
    if comment.is_empty() {
        return;
    }
    if std::mem::take(in_table) {
        page.push('\n');
    }
    writeln!(page, "{}\n", comment.join("\n")).unwrap();
    comment.clear();
}

//! Charts of what the tables in `docs/performance.md` say, so that pictures and figures agree.
//!
//! `cargo bench --bench system -- charts docs` reads `docs/performance.md` and writes
//! `docs/drain.svg` and `docs/latency.svg`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::figures::Quantiles;

/// Bars of one colour each, under one another.
struct Bar {
    name: String,
    value: f64,
    text: String,
    ours: bool,
}

pub fn draw(directory: &Path) {
    let text = fs::read_to_string(directory.join("performance.md")).unwrap();
    let rates = rows(&text, "### Drain:");
    let mut names: Vec<&str> = Vec::new();
    rates.iter().filter_map(|row| row.first()).for_each(|name| {
        if !names.contains(name) {
            names.push(name);
        }
    });
    let drain = names.iter().map(|name| {
        let of = rates.iter().filter(|row| row[0] == *name).map(|row| number(row[1]));
        let value = Quantiles::of(of.collect()).median();
        Bar { name: (*name).to_owned(), value, text: format!("{value:.0}/s"), ours: *name == "taskbell" }
    });
    write(
        directory,
        "drain.svg",
        "Webhooks a second from a backlog of 50,000 (median of the rounds)",
        &drain.collect::<Vec<_>>(),
    );
    let latency = rows(&text, "### Latency:").into_iter().map(|row| Bar {
        name: format!("{}, {}", row[0], row[1]),
        value: number(row[3]),
        text: format!("{} ms", row[3]),
        ours: row[0] == "taskbell",
    });
    write(
        directory,
        "latency.svg",
        "Milliseconds from the commit to the webhook's arrival (median)",
        &latency.collect::<Vec<_>>(),
    );
}

/// The cells of the table under a heading that begins like this.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, after) = text.split_once(heading).unwrap_or_else(|| panic!("no table under {heading}"));
    let lines = after.lines().skip(1).skip_while(|line| !line.starts_with('|'));
    let table = lines.take_while(|line| line.starts_with('|')).skip(2);
    table.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

fn number(text: &str) -> f64 {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

/// A logarithmic scale where the longest bar would leave the others without a length.
fn write(directory: &Path, file: &str, title: &str, bars: &[Bar]) {
    let highest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let lowest = bars.iter().map(|bar| bar.value).fold(f64::INFINITY, f64::min);
    let logarithmic = highest > 30.0 * lowest;
    let length = |value: f64| {
        let share = if logarithmic {
            (value / lowest * 2.0).ln() / (highest / lowest * 2.0).ln()
        } else {
            value / highest
        };
        share * WIDTH
    };
    let height = 56 + bars.len() * 30;
    let scale = if logarithmic { " (logarithmic)" } else { "" };
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" font-family="system-ui, sans-serif" font-size="14">
<rect width="860" height="{height}" rx="8" fill="#fff"/>
<text x="20" y="30" font-size="16" fill="#222">{title}{scale}</text>
"##
    );
    for (n, bar) in bars.iter().enumerate() {
        let y = 46 + n * 30;
        let colour = if bar.ours { "#2f6fdb" } else { "#b8c0cc" };
        let (long, text) = (length(bar.value), y + 16);
        writeln!(
            svg,
            r##"<text x="340" y="{text}" text-anchor="end" fill="#222">{}</text><rect x="350" y="{y}" width="{long:.1}" height="22" rx="3" fill="{colour}"/><text x="{:.1}" y="{text}" fill="#222">{}</text>"##,
            bar.name,
            358.0 + long,
            bar.text,
        )
        .unwrap();
    }
    svg.push_str("</svg>\n");
    fs::write(directory.join(file), svg).unwrap();
}

/// Of the longest bar.
const WIDTH: f64 = 400.0;

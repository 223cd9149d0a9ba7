//! Draws the panels of the dashboard as one SVG picture, from what Prometheus answers: plainly, where
//! Grafana has many options.

use std::fmt::Write;

use serde_json::Value;

use super::prometheus::Prometheus;

/// A span of time to draw, in Unix seconds.
pub struct Span {
    pub from: f64,
    pub to: f64,
}

/// One line of a panel: its legend, and a value at each moment that has one.
struct Line {
    legend: String,
    points: Vec<(f64, f64)>,
}

/// Where a panel stands, in pixels.
struct Place {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// The whole dashboard. `substituted` replaces the variables in a query.
pub async fn draw(
    dashboard: &Value,
    prometheus: &Prometheus,
    span: &Span,
    substituted: impl Fn(&str) -> String,
) -> String {
    let mut body = String::new();
    let mut bottom = 0.0_f64;
    for panel in dashboard["panels"].as_array().unwrap() {
        let at = |key: &str| panel["gridPos"][key].as_f64().unwrap();
        let place = Place {
            x: at("x") * COLUMN + GAP,
            y: at("y") * ROW + GAP,
            width: at("w") * COLUMN - GAP,
            height: at("h") * ROW - GAP,
        };
        bottom = bottom.max(place.y + place.height);
        let title = escaped(panel["title"].as_str().unwrap());
        if panel["type"] == "row" {
            writeln!(body, "<text class='row' x='{:.0}' y='{:.0}'>{title}</text>", place.x, place.y + 17.0)
                .unwrap();
            continue;
        }
        writeln!(
            body,
            "<rect class='card' x='{:.0}' y='{:.0}' width='{:.0}' height='{:.0}' rx='4'/>\
             <text class='title' x='{:.0}' y='{:.0}'>{title}</text>",
            place.x,
            place.y,
            place.width,
            place.height,
            place.x + 10.0,
            place.y + 18.0
        )
        .unwrap();
        let mut lines = Vec::new();
        for target in panel["targets"].as_array().unwrap() {
            let query = substituted(target["expr"].as_str().unwrap());
            let legend = target["legendFormat"].as_str().unwrap();
            lines.extend(prometheus.range(&query, span).await.iter().map(|series| line(series, legend)));
        }
        match panel["type"].as_str().unwrap() {
            "stat" => stat(&mut body, panel, &place, &lines),
            _ => graph(&mut body, panel, &place, &mut lines, span),
        }
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0:.0} {1:.0}' width='{0:.0}' height='{1:.0}'>\n\
         <style>{STYLE}</style>\n<rect class='page' width='100%' height='100%'/>\n{body}</svg>\n",
        24.0 * COLUMN + GAP,
        bottom + GAP
    )
}

fn line(series: &Value, legend: &str) -> Line {
    let mut legend = legend.to_owned();
    for (label, value) in series["metric"].as_object().unwrap() {
        legend = legend.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap());
    }
    let pairs = series["values"].as_array().unwrap().iter();
    let points = pairs.map(|pair| (pair[0].as_f64().unwrap(), pair[1].as_str().unwrap().parse().unwrap()));
    Line { legend, points: points.filter(|(_, value): &(f64, f64)| value.is_finite()).collect() }
}

fn stat(body: &mut String, panel: &Value, place: &Place, lines: &[Line]) {
    let defaults = &panel["fieldConfig"]["defaults"];
    let value = lines.first().and_then(|line| line.points.last()).map(|point| point.1);
    let steps = defaults["thresholds"]["steps"].as_array().unwrap();
    let reached =
        |step: &&Value| step["value"].as_f64().is_none_or(|bound| value.is_some_and(|value| value >= bound));
    let color = match steps.iter().rev().find(reached).unwrap()["color"].as_str().unwrap() {
        "green" => "#2a7f3f",
        "orange" => "#c2570c",
        "red" => "#c02626",
        _ => "#24292f",
    };
    let text =
        value.map_or_else(|| "no data".to_owned(), |value| shown(value, defaults["unit"].as_str().unwrap()));
    writeln!(
        body,
        "<text class='stat' style='fill:{color}' x='{:.0}' y='{:.0}'>{text}</text>",
        place.x + place.width / 2.0,
        place.y + place.height / 2.0 + 20.0
    )
    .unwrap();
}

fn graph(body: &mut String, panel: &Value, place: &Place, lines: &mut Vec<Line>, span: &Span) {
    let defaults = &panel["fieldConfig"]["defaults"];
    let unit = defaults["unit"].as_str().unwrap();
    let stacked = defaults["custom"]["stacking"]["mode"] == "normal";
    let log = defaults["custom"]["scaleDistribution"]["type"] == "log";
    // A line that is zero all the time is shown where there is room for it.
    let crowded = lines.len() > 4;
    lines.retain(|line| {
        !line.points.is_empty() && (!crowded || line.points.iter().any(|point| point.1 > 0.0))
    });
    let legend = legend(lines, place);
    let legend_rows = legend.last().map_or(0.0, |(_, row)| row + 1.0);
    let (left, right) = (place.x + 56.0, place.x + place.width - 18.0);
    let (top, bottom) = (place.y + 30.0, place.y + place.height - 28.0 - 13.0 * legend_rows);
    let x = |at: f64| left + (at - span.from) / (span.to - span.from) * (right - left);
    let floors = stack(lines, stacked);
    let values = || floors.iter().flatten().map(|point| point.2);
    let ticks = match log {
        true => log_ticks(values()),
        false => ticks(values().fold(0.0, f64::max), unit),
    };
    let (low, high) = (*ticks.first().unwrap(), *ticks.last().unwrap());
    let y = |value: f64| {
        let share = match log {
            true => (value.max(low).ln() - low.ln()) / (high.ln() - low.ln()),
            false => (value - low) / (high - low),
        };
        bottom - share * (bottom - top)
    };
    for tick in &ticks {
        let at = y(*tick);
        let label = shown(*tick, unit);
        writeln!(
            body,
            "<path class='grid' d='M{left:.0} {at:.1}H{right:.0}'/><text class='tick' x='{:.0}' y='{:.1}'>{label}</text>",
            left - 6.0,
            at + 3.5
        )
        .unwrap();
    }
    for part in 0..=3 {
        let seconds = ((span.to - span.from) * f64::from(part) / 3.0).round();
        let (minutes, rest) = ((seconds / 60.0).floor(), (seconds % 60.0).floor());
        writeln!(
            body,
            "<text class='time' x='{:.0}' y='{:.0}'>{minutes:.0}:{rest:02.0}</text>",
            x(span.from + seconds),
            bottom + 14.0
        )
        .unwrap();
    }
    for (n, points) in floors.iter().enumerate().flat_map(|(n, line)| runs(line).map(move |run| (n, run))) {
        let color = COLORS[n % COLORS.len()];
        let upper: Vec<String> =
            points.iter().map(|(at, _, value)| format!("{:.1} {:.1}", x(*at), y(*value))).collect();
        if stacked {
            let lower = points.iter().rev().map(|(at, floor, _)| format!("{:.1} {:.1}", x(*at), y(*floor)));
            let around = upper.iter().cloned().chain(lower).collect::<Vec<_>>().join("L");
            writeln!(body, "<path d='M{around}Z' fill='{color}' fill-opacity='.35'/>").unwrap();
        }
        writeln!(body, "<path d='M{}' fill='none' stroke='{color}' stroke-width='1.6'/>", upper.join("L"))
            .unwrap();
    }
    for (n, (line, (column, row))) in lines.iter().zip(legend).enumerate() {
        let at = (place.x + column, bottom + 31.0 + 13.0 * row);
        writeln!(
            body,
            "<rect x='{:.0}' y='{:.0}' width='9' height='3' fill='{}'/><text class='legend' x='{:.0}' y='{:.0}'>{}</text>",
            at.0,
            at.1 - 4.5,
            COLORS[n % COLORS.len()],
            at.0 + 13.0,
            at.1,
            escaped(&line.legend)
        )
        .unwrap();
    }
}

/// Where each line's name stands: its distance from the left, and its row.
fn legend(lines: &[Line], place: &Place) -> Vec<(f64, f64)> {
    let mut at = (12.0, 0.0);
    let next = |line: &Line| {
        let wide = 20.0 + 6.0 * f64::from(u32::try_from(line.legend.chars().count()).unwrap());
        if at.0 + wide > place.width && at.0 > 12.0 {
            at = (12.0, at.1 + 1.0);
        }
        let here = at;
        at.0 += wide + 4.0;
        here
    };
    lines.iter().map(next).collect()
}

/// Runs of points without a gap: a line that is absent for a while is not drawn there.
fn runs(points: &[(f64, f64, f64)]) -> impl Iterator<Item = &[(f64, f64, f64)]> {
    points.chunk_by(|one, next| next.0 - one.0 < 2.0 * STEP)
}

/// Each line's points with what they stand on: zero, or the line below.
fn stack(lines: &[Line], stacked: bool) -> Vec<Vec<(f64, f64, f64)>> {
    let mut heights = std::collections::BTreeMap::<u64, f64>::new();
    let on_top = |line: &Line| {
        let point = |&(at, value): &(f64, f64)| {
            let floor = heights.entry(at.to_bits()).or_default();
            let below = *floor;
            *floor += if stacked { value } else { 0.0 };
            (at, below, below + value)
        };
        line.points.iter().map(point).collect()
    };
    lines.iter().map(on_top).collect()
}

/// From zero up to the first round number that nothing exceeds.
fn ticks(highest: f64, unit: &str) -> Vec<f64> {
    if highest == 0.0 {
        return vec![0.0, 1.0];
    }
    let decimal = (-4..10).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
    let times =
        [60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 43_200.0, 86_400.0];
    let steps: Vec<f64> = match unit {
        "bytes" => decimal.map(|step| step * MEBIBYTE).collect(),
        "s" => decimal.filter(|step| *step < 60.0).chain(times).collect(),
        // What is counted has no halves.
        "short" => decimal.filter(|step| *step >= 1.0).collect(),
        _ => decimal.collect(),
    };
    let step = steps.into_iter().find(|step| highest / step <= 4.0).unwrap_or(highest.max(1.0));
    let count = (highest / step).ceil().max(1.0);
    (0..=4).map(f64::from).filter(|n| *n <= count).map(|n| n * step).collect()
}

fn log_ticks(values: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let all = [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0];
    let positive = values.filter(|value| *value > 0.0);
    let (low, high) = (positive.clone().fold(f64::MAX, f64::min), positive.fold(0.0, f64::max));
    let first = all.iter().rposition(|tick| *tick <= low).unwrap_or(0);
    let last = all.iter().position(|tick| *tick >= high).unwrap_or(all.len() - 1);
    all[first..=last.max(first + 1)].to_vec()
}

fn shown(value: f64, unit: &str) -> String {
    let plain = |value: f64| {
        let digits = if value >= 100.0 || value.fract().abs() < 0.005 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        };
        let text = format!("{value:.digits$}");
        if digits > 0 { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match unit {
        "s" if value == 0.0 => "0 s".to_owned(),
        "s" if value < 1.0 => format!("{} ms", plain(value * 1000.0)),
        "s" if value < 120.0 => format!("{} s", plain(value)),
        "s" if value < 3600.0 => format!("{} min", plain(value / 60.0)),
        "s" if value < 172_800.0 => format!("{} h", plain(value / 3600.0)),
        "s" => format!("{} d", plain(value / 86_400.0)),
        "bytes" => format!("{} MiB", plain(value / MEBIBYTE)),
        "percentunit" => format!("{} %", plain(value * 100.0)),
        "reqps" | "ops" => format!("{}/s", plain(value)),
        _ => plain(value),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Seconds from one point to the next.
pub const STEP: f64 = 2.0;
const MEBIBYTE: f64 = 1_048_576.0;
const COLUMN: f64 = 50.0;
const ROW: f64 = 27.0;
const GAP: f64 = 8.0;
const COLORS: [&str; 8] =
    ["#2563ad", "#d9730d", "#2a8f4f", "#b02a78", "#6b4fbb", "#8a6d1f", "#17858f", "#6e7781"];
const STYLE: &str = "text{font:11px system-ui,sans-serif;fill:#24292f}.page{fill:#f6f8fa}\
    .card{fill:#fff;stroke:#d0d7de}.row{font-size:16px;font-weight:600}.title{font-size:12px;font-weight:600}\
    .tick{text-anchor:end;fill:#57606a;font-size:10px}.time{text-anchor:middle;fill:#57606a;font-size:10px}\
    .grid{stroke:#e5e9ed;fill:none}.legend{font-size:11px}.stat{font-size:28px;font-weight:600;text-anchor:middle}";

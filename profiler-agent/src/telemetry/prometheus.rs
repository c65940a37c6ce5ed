//! The text format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use super::{
    figures::Figures,
    histogram::Histogram,
    table::{Kind, METRICS, Metric, Points},
};

/// All metrics of which there is something to say.
pub fn prometheus(figures: &Figures) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let name = prometheus_name(metric);
        let mut points = String::new();
        // Writing to a string cannot fail.
        match metric.points {
            Points::Numbers(read) => read(figures, &mut |attributes, value| {
                let _ = writeln!(points, "{name}{} {value}", labels(attributes));
            }),
            Points::Seconds(read) => read(figures, &mut |attributes, value| {
                let _ = writeln!(points, "{name}{} {value}", labels(attributes));
            }),
            Points::Histogram(read) => {
                if let Some(histogram) = read(figures) {
                    histogram_points(&mut points, &name, histogram);
                }
            }
        }
        if !points.is_empty() {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::UpDownCounter | Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let help = metric.description.replace('\\', "\\\\").replace('\n', "\\n");
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{points}");
        }
    }
    text
}

/// Its name by the rules of <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>.
pub fn prometheus_name(metric: &Metric) -> String {
    let mut name = metric.name.replace('.', "_");
    name += match metric.unit {
        "By" => "_bytes",
        "s" => "_seconds",
        _ => "",
    };
    if metric.kind == Kind::Counter {
        name += "_total";
    }
    name
}

fn labels(attributes: &[(&str, &str)]) -> String {
    let labels: Vec<String> = attributes
        .iter()
        .map(|(key, value)| {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{}=\"{value}\"", key.replace('.', "_"))
        })
        .collect();
    if labels.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", labels.join(","))
    }
}

fn histogram_points(points: &mut String, name: &str, histogram: &Histogram) {
    // Writing to a string cannot fail.
    for (limit, count) in histogram.cumulative() {
        let _ = writeln!(points, "{name}_bucket{{le=\"{limit}\"}} {count}");
    }
    let count = histogram.count();
    let _ = writeln!(points, "{name}_bucket{{le=\"+Inf\"}} {count}");
    let _ = writeln!(points, "{name}_sum {}\n{name}_count {count}", histogram.sum());
}

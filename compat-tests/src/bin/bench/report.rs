//! Figures, and the tables made of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// What a figure counts, and whether less or more of it is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Less is better.
    Microseconds,
    /// Less is better.
    Seconds,
    /// More is better.
    PerSecond,
    /// More is better.
    MiBPerSecond,
    /// Less is better.
    KiB,
    /// Less is better.
    MiB,
}

impl Unit {
    fn more_is_better(self) -> bool {
        matches!(self, Unit::PerSecond | Unit::MiBPerSecond)
    }

    fn show(self, value: f64) -> String {
        let digits = if value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        };
        let label = match self {
            Unit::Microseconds if value >= 10_000.0 => return format!("{:.1} ms", value / 1000.0),
            Unit::Microseconds => "µs",
            Unit::Seconds => "s",
            Unit::PerSecond => "/s",
            Unit::MiBPerSecond => "MiB/s",
            Unit::KiB => "KiB",
            Unit::MiB => "MiB",
        };
        format!("{value:.digits$} {label}")
    }
}

/// One figure of one turn.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) value: f64,
}

pub(crate) fn figure(name: impl Into<String>, unit: Unit, value: f64) -> Figure {
    Figure { name: name.into(), unit, value }
}

/// `count` things in a time.
pub(crate) fn rate(name: impl Into<String>, count: usize, time: Duration) -> Figure {
    figure(name, Unit::PerSecond, count as f64 / time.as_secs_f64())
}

/// The median and the 99th of a hundred of what was waited for.
pub(crate) fn latencies(name: &str, mut times: Vec<Duration>) -> Vec<Figure> {
    times.sort_unstable();
    let at =
        |share: f64| times.get((times.len() as f64 * share) as usize).or(times.last()).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
    vec![figure(format!("{name}, median"), Unit::Microseconds, at(0.5)), figure(format!("{name}, p99"), Unit::Microseconds, at(0.99))]
}

/// The figures of all sides and turns of a workload.
#[derive(Default)]
pub(crate) struct Table {
    order: Vec<(String, Unit)>,
    values: BTreeMap<(String, usize), Vec<f64>>,
    syncs: BTreeMap<usize, BTreeMap<String, u64>>,
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (count, half) if count % 2 == 0 => f64::midpoint(values[half - 1], values[half]),
        (_, half) => values[half],
    }
}

impl Table {
    pub(crate) fn add(&mut self, side: usize, figures: Vec<Figure>) {
        for Figure { name, unit, value } in figures {
            if !self.order.iter().any(|(known, _)| *known == name) {
                self.order.push((name.clone(), unit));
            }
            self.values.entry((name, side)).or_default().push(value);
        }
    }

    pub(crate) fn add_syncs(&mut self, side: usize, counts: BTreeMap<String, u64>) {
        self.syncs.insert(side, counts);
    }

    /// A table in Markdown: medians, least and greatest, and how many times better each side is than the first.
    pub(crate) fn show(&self, title: &str, sides: &[String]) -> String {
        let mut out = format!("\n### {title}\n\n| |");
        for (i, side) in sides.iter().enumerate() {
            let _ = write!(out, " {side} |");
            if i > 0 {
                out.push_str(" ratio |");
            }
        }
        out.push_str("\n|---|");
        out.push_str(&"---|".repeat(2 * sides.len() - 1));
        out.push('\n');
        for (name, unit) in &self.order {
            let _ = write!(out, "| {name} |");
            let values = |side: usize| self.values.get(&(name.clone(), side)).map(Vec::as_slice).unwrap_or_default();
            let first = median(values(0));
            for side in 0..sides.len() {
                let own = values(side);
                let middle = median(own);
                if middle.is_nan() {
                    out.push_str(if side > 0 { " | |" } else { " |" });
                    continue;
                }
                let least = own.iter().copied().fold(f64::INFINITY, f64::min);
                let greatest = own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let _ = write!(out, " {}", unit.show(middle));
                if own.len() > 1 {
                    let _ = write!(out, " ({} … {})", unit.show(least), unit.show(greatest));
                }
                out.push_str(" |");
                if side > 0 {
                    let ratio = if unit.more_is_better() { middle / first } else { first / middle };
                    let _ = if ratio.is_nan() { write!(out, " |") } else { write!(out, " **{ratio:.2}×** |") };
                }
            }
            out.push('\n');
        }
        if !self.syncs.is_empty() {
            out.push_str("| calls that wait for the disk |");
            for side in 0..sides.len() {
                let counts = self.syncs.get(&side);
                let text: Vec<String> = counts.into_iter().flatten().map(|(call, count)| format!("{call} {count}")).collect();
                let none = if counts.is_some() { "none" } else { "" };
                let _ = write!(out, " {} |", if text.is_empty() { none.to_owned() } else { text.join(", ") });
                if side > 0 {
                    out.push_str(" |");
                }
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_much_better() {
        let mut table = Table::default();
        for (turn, (slow, fast)) in [(9.0, 2.0), (4.0, 1.0), (5.0, 0.5)].into_iter().enumerate() {
            table.add(0, vec![figure("time", Unit::Seconds, slow), figure("rate", Unit::PerSecond, 10.0)]);
            table.add(1, vec![figure("time", Unit::Seconds, fast), figure("rate", Unit::PerSecond, 5.0 + turn as f64)]);
        }
        table.add_syncs(1, BTreeMap::from([("fsync".to_owned(), 3)]));
        let shown = table.show("B0", &["a".to_owned(), "b".to_owned()]);
        assert!(shown.contains("| time | 5.00 s (4.00 s … 9.00 s) | 1.00 s (0.50 s … 2.00 s) | **5.00×** |"), "{shown}");
        assert!(shown.contains("| rate | 10.0 /s (10.0 /s … 10.0 /s) | 6.00 /s (5.00 /s … 7.00 /s) | **0.60×** |"), "{shown}");
        assert!(shown.contains("|  | fsync 3 | |"), "{shown}");
    }
}

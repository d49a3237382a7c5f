//! The text. A name is written once, with what it means, and then its samples.

use crate::Histogram;
use std::fmt::{Display, Write};

/// Of the answer that carries a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// Sum and count alone: no quantiles are kept.
    Summary,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

#[derive(Debug, Default)]
pub struct Page(String);

/// One name on its page. Its samples differ in their labels.
pub struct Family<'a> {
    page: &'a mut String,
    name: &'a str,
}

impl Page {
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        debug_assert!(!self.0.contains(&format!("# TYPE {name} ")), "{name} is there already");
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        append(&mut self.0, format_args!("# HELP {name} {help}\n"));
        append(&mut self.0, format_args!("# TYPE {name} {}\n", kind.name()));
        Family { page: &mut self.0, name }
    }

    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help).sample(&[], value);
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, Kind::Histogram, help).histogram(&[], histogram);
    }

    pub fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let snapshot = histogram.snapshot();
        for (bound, count) in &snapshot.buckets {
            self.line("_bucket", labels, Some(&bound.to_string()), count);
        }
        self.line("_bucket", labels, Some("+Inf"), snapshot.count);
        self.total(labels, snapshot.sum, snapshot.count);
    }

    /// Of a summary, or at the end of a histogram.
    pub fn total(&mut self, labels: &[(&str, &str)], sum: f64, count: u64) {
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        bound: Option<&str>,
        value: impl Display,
    ) {
        append(self.page, format_args!("{}{suffix}", self.name));
        let bound = bound.map(|bound| ("le", bound));
        for (i, (label, text)) in labels.iter().copied().chain(bound).enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            append(self.page, format_args!("{open}{label}=\""));
            for c in text.chars() {
                match c {
                    '\\' => self.page.push_str("\\\\"),
                    '"' => self.page.push_str("\\\""),
                    '\n' => self.page.push_str("\\n"),
                    c => self.page.push(c),
                }
            }
            self.page.push('"');
        }
        let close = if labels.is_empty() && bound.is_none() { "" } else { "}" };
        append(self.page, format_args!("{close} {value}\n"));
    }
}

fn append(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = page.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_kit::exposition::Exposition;
    use std::time::Duration;

    #[test]
    fn a_strict_reader_finds_what_was_written() {
        let times = Histogram::of_seconds(&[0.001, 0.5]);
        for ms in [1, 2, 2000] {
            times.observe_duration(Duration::from_millis(ms));
        }
        let mut page = Page::default();
        page.counter("a_total", "Back\\slash and\nnew line.", 7);
        page.gauge("b", "A half.", 0.5);
        let mut family = page.family("c_seconds", Kind::Histogram, "Times.");
        family.histogram(&[("of", "x\\y\"z\n")], &times);
        family.histogram(&[("of", "nothing")], &Histogram::of_seconds(&[0.001]));
        page.family("d_seconds", Kind::Summary, "Sum and count.").total(&[("e", "f")], 1.5, 3);

        let read = Exposition::parse(&page.into_text()).expect("it is well-formed");
        assert_eq!(read.value("a_total", &[]), Some(7.0));
        assert_eq!(read.value("b", &[]), Some(0.5));
        let of = ("of", "x\\y\"z\n");
        let bucket = |le| read.value("c_seconds_bucket", &[of, ("le", le)]);
        assert_eq!([bucket("0.001"), bucket("0.5"), bucket("+Inf")], [1.0, 2.0, 3.0].map(Some));
        assert_eq!(read.value("c_seconds_sum", &[of]), Some(2.003));
        assert_eq!(read.value("d_seconds_count", &[("e", "f")]), Some(3.0));
    }

    #[test]
    fn a_value_on_a_bound_is_counted_below_it() {
        let sizes = Histogram::of_counts(&[1, 8]);
        for size in [0, 1, 8, 9] {
            sizes.observe(size);
        }
        assert_eq!(sizes.snapshot().buckets, [(1.0, 2), (8.0, 3)]);
        assert_eq!((sizes.snapshot().count, sizes.snapshot().sum), (4, 18.0));
    }
}

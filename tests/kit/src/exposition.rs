//! A strict reader of Prometheus' text format 0.0.4. What a lenient one would let pass is an error: a
//! name without help and type, a family in two places, a sample twice, a histogram that does not add up.

use std::collections::{BTreeMap, BTreeSet};

type Labels = BTreeMap<String, String>;

#[derive(Debug, Default)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
}

#[derive(Debug)]
struct Family {
    kind: String,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

impl Exposition {
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.ends_with('\n') {
            return Err("the last line has no end".into());
        }
        let mut read = Self::default();
        let mut current: Option<String> = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let within = |e: String| format!("{e}: {line}");
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').ok_or_else(|| within("no help".into()))?;
                if help.trim().is_empty() || !is_name(name, true) {
                    return Err(within("a bad name or no help".into()));
                }
                let kind = lines.next().unwrap_or_default();
                let kind = kind.strip_prefix("# TYPE ").and_then(|t| t.strip_prefix(name));
                let kind = kind.ok_or_else(|| within("no type follows".into()))?.trim();
                if !["counter", "gauge", "histogram", "summary"].contains(&kind) {
                    return Err(within(format!("a kind `{kind}`")));
                }
                let family = Family { kind: kind.into(), samples: Vec::new() };
                if read.families.insert(name.into(), family).is_some() {
                    return Err(within("the family is there already".into()));
                }
                current = Some(name.into());
                continue;
            }
            let sample = sample(line).map_err(within)?;
            let name = current.as_ref().ok_or_else(|| within("a sample of no family".into()))?;
            let family = read.families.get_mut(name).ok_or("a family")?;
            if !belongs(name, &family.kind, &sample.name) {
                return Err(within(format!("not of the family {name}")));
            }
            family.samples.push(sample);
        }
        for (name, family) in &read.families {
            family.check(name).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(read)
    }

    /// Of the one sample with exactly these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        self.samples(name).find(|(labels, _)| **labels == wanted).map(|(_, value)| value)
    }

    /// Over all labels; 0 where there is no sample.
    pub fn sum(&self, name: &str) -> f64 {
        self.samples(name).map(|(_, value)| value).sum()
    }

    pub fn samples(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        let all = self.families.values().flat_map(|family| &family.samples);
        all.filter(move |sample| sample.name == name).map(|sample| (&sample.labels, sample.value))
    }

    /// Names of all families.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }

    /// Samples that may never go down: counters, and what histograms and summaries count.
    pub fn monotone(&self) -> BTreeMap<(String, Labels), f64> {
        let grows = |kind: &str| kind != "gauge";
        let families = self.families.values().filter(|family| grows(&family.kind));
        let samples = families.flat_map(|family| &family.samples);
        samples.map(|s| ((s.name.clone(), s.labels.clone()), s.value)).collect()
    }
}

impl Family {
    fn check(&self, name: &str) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            if !seen.insert((&sample.name, &sample.labels)) {
                return Err(format!("twice: {sample:?}"));
            }
            let grows = self.kind != "gauge";
            if grows && (sample.value.is_nan() || sample.value < 0.0) {
                return Err(format!("no count: {sample:?}"));
            }
        }
        match self.kind.as_str() {
            "counter" if !name.ends_with("_total") => Err("a counter ends in _total".into()),
            "histogram" => self.check_histogram(name),
            _ => Ok(()),
        }
    }

    fn check_histogram(&self, name: &str) -> Result<(), String> {
        let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        let bucket = format!("{name}_bucket");
        for sample in self.samples.iter().filter(|sample| sample.name == bucket) {
            let mut labels = sample.labels.clone();
            let bound = labels.remove("le").ok_or("a bucket without le")?;
            let bound = number(&bound)?;
            series.entry(labels).or_default().push((bound, sample.value));
        }
        for (labels, buckets) in &series {
            if !buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
                return Err(format!("buckets of {labels:?} do not cumulate: {buckets:?}"));
            }
            let total = |suffix: &str| {
                let name = format!("{name}{suffix}");
                let found = self.samples.iter().find(|s| s.name == name && s.labels == *labels);
                found.map(|sample| sample.value).ok_or(format!("no {suffix} of {labels:?}"))
            };
            total("_sum")?;
            if buckets.last() != Some(&(f64::INFINITY, total("_count")?)) {
                return Err(format!("{labels:?}: the last bucket is not the count"));
            }
        }
        Ok(())
    }
}

fn belongs(family: &str, kind: &str, sample: &str) -> bool {
    let Some(suffix) = sample.strip_prefix(family) else { return false };
    match kind {
        "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
        "summary" => ["_sum", "_count"].contains(&suffix),
        _ => suffix.is_empty(),
    }
}

fn is_name(name: &str, colons: bool) -> bool {
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    name.starts_with(starts) && name.chars().all(|c| starts(c) || c.is_ascii_digit())
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err(format!("a bad name `{name}`"));
    }
    let mut labels = Labels::new();
    let value = match rest.strip_prefix('{') {
        None => rest,
        Some(rest) => labels_of(rest, &mut labels)?,
    };
    let value = value.strip_prefix(' ').ok_or("no space before the value")?;
    Ok(Sample { name: name.into(), labels, value: number(value)? })
}

/// Reads to the closing brace; what follows it is left.
fn labels_of<'a>(mut rest: &'a str, labels: &mut Labels) -> Result<&'a str, String> {
    loop {
        let (label, text) = rest.split_once("=\"").ok_or("a label without a value")?;
        let (value, after) = quoted(text)?;
        if !is_name(label, false) || labels.insert(label.into(), value).is_some() {
            return Err(format!("a bad label `{label}`, or one that is there twice"));
        }
        rest = match after.strip_prefix(',') {
            Some(more) => more,
            None => return after.strip_prefix('}').ok_or("labels do not end".into()),
        };
    }
}

/// The text up to the closing quote, unescaped, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('\\' | '"'))) => c,
                other => return Err(format!("a bad escape {other:?}")),
            }),
            c => value.push(c),
        }
    }
    Err("a value does not end".into())
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        text if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            text.parse().map_err(|e| format!("`{text}`: {e}"))
        }
        text => Err(format!("`{text}` is no number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_malformed_is_refused() {
        let of = |samples: &str| format!("# HELP a Of a test.\n# TYPE a gauge\n{samples}");
        assert!(Exposition::parse(&of("a{b=\"c\"} 1\n")).is_ok());
        let histogram = "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\n";
        for bad in [
            of("a 1"),
            of("a 1\na 2\n"),
            of("a one\n"),
            of("a  1\n"),
            of("b 1\n"),
            of("a{} 1\n"),
            of("a{b=\"\\t\"} 1\n"),
            of("a{b=\"c\",b=\"d\"} 1\n"),
            of("a{0=\"c\"} 1\n"),
            of("a{b=\"c} 1\n"),
            "a 1\n".to_owned(),
            "# HELP a \n# TYPE a gauge\n".to_owned(),
            "# HELP a A.\n# TYPE a counter\na 1\n".to_owned(),
            [of("a 1\n"), of("a 1\n")].concat(),
            format!("{histogram}h_sum 1\nh_count 2\n"),
            format!("{histogram}h_bucket{{le=\"+Inf\"}} 1\nh_sum 1\nh_count 1\n"),
            format!("{histogram}h_bucket{{le=\"+Inf\"}} 3\nh_sum 1\nh_count 2\n"),
            format!("{histogram}h_bucket{{le=\"+Inf\"}} 3\nh_count 3\n"),
        ] {
            assert!(Exposition::parse(&bad).is_err(), "{bad}");
        }
    }
}

//! Numbers, sizes and times as people read them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// `1,234,567`
pub fn count(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if n < 0 { format!("-{out}") } else { out }
}

/// `1.2 M`: three digits and a unit, for axes.
pub fn short_count(n: i64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    match units.into_iter().find(|(size, _)| n >= *size) {
        None => n.to_string(),
        Some((size, unit)) if n % size == 0 => format!("{} {unit}", n / size),
        Some((size, unit)) => format!("{:.1} {unit}", n as f64 / size as f64),
    }
}

/// `3.7 MB`, in powers of ten.
pub fn bytes(n: i64) -> String {
    match n {
        n if n >= 1_000_000_000 => format!("{:.1} GB", n as f64 / 1e9),
        n if n >= 1_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        n => format!("{} kB", (n + 999) / 1000),
    }
}

/// An error's text as a sentence: with a capital and a full stop.
pub fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let stop = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{stop}", letters.as_str())
}

/// `24 Nov 2026, 08:31 UTC`
pub fn moment(at: OffsetDateTime) -> String {
    let shape =
        format_description!("[day padding:none] [month repr:short] [year], [hour]:[minute] UTC");
    at.format(&shape).unwrap_or_default()
}

/// For the `datetime` attribute.
pub fn iso(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// `just now`, `4 min ago`, `3 h ago`, then the moment itself.
pub fn ago(at: OffsetDateTime, now: OffsetDateTime) -> String {
    match (now - at).whole_seconds() {
        ..60 => "just now".to_owned(),
        s @ 60..3600 => format!("{} min ago", s / 60),
        s @ 3600..86_400 => format!("{} h ago", s / 3600),
        _ => moment(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn numbers_are_grouped_and_shortened() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(-1_234_567), "-1,234,567");
        assert_eq!(short_count(950), "950");
        assert_eq!(short_count(2_000), "2 k");
        assert_eq!(short_count(1_250_000), "1.2 M");
        assert_eq!(sentence("no such thing"), "No such thing.");
        assert_eq!(sentence("It waits."), "It waits.");
        assert_eq!(bytes(1), "1 kB");
        assert_eq!(bytes(3_718_136), "3.7 MB");
    }

    #[test]
    fn times_are_near_or_exact() {
        let now = datetime!(2026-11-24 08:31:00 UTC);
        assert_eq!(ago(now, now), "just now");
        assert_eq!(ago(datetime!(2026-11-24 08:01:00 UTC), now), "30 min ago");
        assert_eq!(ago(datetime!(2026-11-20 08:01:00 UTC), now), "20 Nov 2026, 08:01 UTC");
    }
}

//! How much of the processor a process uses.

use std::fs;

/// Processor time that a process has used so far, in seconds, all its threads together. None when
/// there is no such process, or on systems without Linux's /proc.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    /// The kernel's unit of these counters, the same on every architecture that Linux supports.
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_with_work() {
        let before = cpu_seconds(std::process::id()).expect("Linux");
        let started = std::time::Instant::now();
        let mut sum = 0u64;
        while started.elapsed().as_millis() < 100 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let after = cpu_seconds(std::process::id()).expect("Linux");
        assert!(after > before, "{before} {after}");
        assert_eq!(cpu_seconds(u32::MAX), None);
    }
}

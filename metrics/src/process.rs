//! What the kernel says of this process, under the names that Prometheus' own clients give it.

use crate::{Kind, Page};
use std::fs;

/// Ticks of `/proc/PID/stat`, fixed for programs whatever the kernel's own are.
const TICKS_PER_SECOND: f64 = 100.0;

impl Page {
    /// What cannot be read is left out.
    pub fn process(&mut self) {
        let help = "Memory in RAM.";
        let mut family = self.family("process_resident_memory_bytes", Kind::Gauge, help);
        if let Some(bytes) = resident_bytes() {
            family.sample(&[], bytes);
        }
        let help = "Processor time, of the program and of the kernel on its behalf.";
        let mut family = self.family("process_cpu_seconds_total", Kind::Counter, help);
        if let Some(seconds) = cpu_seconds(std::process::id()) {
            family.sample(&[], seconds);
        }
        let help = "Open files and sockets.";
        let mut family = self.family("process_open_fds", Kind::Gauge, help);
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            family.sample(&[], open.count());
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Processor time that a process has used so far, all its threads together. None when there is no such
/// process, or on systems without Linux's /proc.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, parentheses too.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_kit::exposition::Exposition;
    use std::time::Instant;

    #[test]
    fn memory_time_and_files_are_this_processs_own() {
        let read = || {
            let mut page = Page::default();
            page.process();
            Exposition::parse(&page.into_text()).expect("well-formed")
        };
        let value = |page: &Exposition, name| page.value(name, &[]).expect(name);
        let before = read();
        let memory = vec![1u8; 64 << 20];
        let began = Instant::now();
        while began.elapsed().as_millis() < 200 {
            std::hint::black_box(&memory);
        }
        let files: Vec<_> = (0..20).map(|_| fs::File::open("/proc/self/stat")).collect();
        let after = read();
        let grown = |name| value(&after, name) - value(&before, name);
        assert!(grown("process_resident_memory_bytes") > f64::from(32 << 20));
        assert!(grown("process_cpu_seconds_total") > 0.0);
        assert_eq!(cpu_seconds(u32::MAX), None, "no such process");
        assert!(grown("process_open_fds") >= files.len() as f64);
    }
}

//! Where and with what a measurement was made: it is worth little without.

use lorikeet_compute::backend::cuda::probe;
use serde::Serialize;
use std::fs;
use std::process::{Command, Stdio};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The frame of a result file.
#[derive(Serialize)]
pub struct Setting {
    /// UTC.
    date: String,
    version: &'static str,
    /// That was built, as the build script found it.
    commit: Option<&'static str>,
    /// As it was typed, without keys.
    command: String,
    machine: Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    card: Option<Card>,
}

#[derive(Serialize)]
struct Machine {
    cpu: Option<String>,
    cores: usize,
    memory_bytes: Option<u64>,
    kernel: Option<String>,
    /// Runnable threads of everybody, averaged over the last minute.
    load: Option<f64>,
}

#[derive(Serialize)]
pub struct Card {
    name: String,
    /// Version of CUDA that the driver supports, 13000 for 13.0.
    driver_cuda: i32,
    /// As nvidia-smi tells it, where there is one: driver, clocks now and at most, in MHz.
    nvidia_smi: Option<String>,
}

impl Setting {
    pub fn new(card: Option<Card>) -> Self {
        Self {
            date: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("LORIKEET_COMMIT"),
            command: without_keys(std::env::args()),
            machine: Machine {
                cpu: line("/proc/cpuinfo", "model name"),
                cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
                memory_bytes: line("/proc/meminfo", "MemTotal").and_then(|text| {
                    let kib: u64 = text.trim_end_matches("kB").trim().parse().ok()?;
                    Some(kib * 1024)
                }),
                kernel: read("/proc/sys/kernel/osrelease"),
                load: read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
            },
            card,
        }
    }
}

impl Card {
    pub fn probe(ordinal: u32) -> anyhow::Result<Self> {
        let found = probe(ordinal)?;
        let query = "--query-gpu=driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem";
        let id = format!("--id={ordinal}");
        let nvidia_smi = output("nvidia-smi", &[query, "--format=csv,noheader,nounits", &id]);
        Ok(Self { name: found.name, driver_cuda: found.driver, nvidia_smi })
    }
}

/// What a program prints, if there is one and all goes well.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The value of the first `name : value` in a file of the kernel's.
fn line(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let found = text.lines().filter_map(|line| line.split_once(':'));
    found.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

fn without_keys(arguments: impl Iterator<Item = String>) -> String {
    let mut shown: Vec<String> = Vec::new();
    for argument in arguments {
        let follows_flag = shown.last().is_some_and(|last| last == "--api-key");
        shown.push(match argument.split_once('=') {
            _ if follows_flag => "...".into(),
            Some(("--api-key", _)) => "--api-key=...".into(),
            _ => argument,
        });
    }
    shown.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_get_into_a_result_file() {
        let line =
            "lorikeet bench serve --api-key lk_live_1,lk_live_2 --api-key=lk_live_3 --seed 1";
        let shown = without_keys(line.split(' ').map(str::to_owned));
        assert_eq!(shown, "lorikeet bench serve --api-key ... --api-key=... --seed 1");
    }
}

//! Keeps the deciding parts free of everything that is not state and `now`.

use std::fs;
use std::path::{Path, PathBuf};

const PURE: [&str; 3] = ["scheduler", "kv", "adapters/residency"];

/// What pure code may name of this crate: other pure code and plain data.
const PLAIN: [&str; 7] = [
    "crate::kv::",
    "crate::scheduler::",
    "crate::sampling::",
    "crate::backend::batch::SequenceId",
    "crate::backend::{AdapterSlot, HostAdapter}",
    "crate::backend::HostAdapter",
    "crate::backend::AdapterSlot",
];

fn files(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.file_name().unwrap() != "tests.rs" {
            into.push(path);
        }
    }
}

fn is_pure(import: &str) -> bool {
    let own = ["std::", "lorikeet_contract::", "super::", "crate::adapters::residency::"];
    let keys = import.starts_with("crate::adapters::{Adapter") && !import.contains("oader");
    let key = import.starts_with("crate::adapters::Adapter");
    let local = !import.contains("::") || import.chars().next().is_some_and(char::is_lowercase);
    let local = local && !import.starts_with("crate::") && !is_foreign(import);
    own.iter().chain(&PLAIN).any(|path| import.starts_with(path)) || keys || key || local
}

/// A path whose first part is a crate that the node depends on.
fn is_foreign(import: &str) -> bool {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let first = import.split("::").next().unwrap_or_default();
    manifest.lines().any(|line| line.replace('-', "_").starts_with(&format!("{first}.")))
}

#[test]
fn scheduler_kv_and_residency_use_std_and_contract_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut pure = Vec::new();
    PURE.iter().for_each(|part| files(&source.join(part), &mut pure));
    assert!(pure.len() > 10, "the files have moved");
    for path in pure {
        let text = fs::read_to_string(&path).unwrap();
        let code: String = text.split("mod tests {").next().unwrap_or_default().to_owned();
        for import in code.split("\nuse ").skip(1).chain(code.split("\npub use ").skip(1)) {
            let import = import.split(';').next().unwrap_or_default();
            assert!(is_pure(import), "{}: use {import}", path.display());
        }
        for word in ["Instant::now", "SystemTime", "cfg(feature", "tokio", "candle", "std::thread"]
        {
            assert!(!code.contains(word), "{}: {word}", path.display());
        }
    }
}

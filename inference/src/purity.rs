//! Keeps the deciding parts free of everything that is not state and `now`.

use std::fs;
use std::path::{Path, PathBuf};

const PURE: [&str; 3] = ["scheduler", "kv", "adapters/residency"];

/// What pure code may name of our crates: other pure code, and plain data.
const PLAIN: [&str; 12] = [
    "crate::adapters::residency",
    "crate::adapters::{Adapter",
    "crate::adapters::Adapter",
    "lorikeet_compute::backend::batch::SequenceId",
    "lorikeet_compute::backend::{AdapterSlot, HostAdapter}",
    "lorikeet_compute::backend::AdapterSlot",
    "lorikeet_compute::backend::HostAdapter",
    "lorikeet_compute::backend::BlockId",
    "lorikeet_compute::backend::BlockMove",
    "crate::kv::",
    "lorikeet_compute::sampling::",
    "crate::share::",
];

/// Clocks, threads, runtimes, devices and switches.
const FORBIDDEN: [&str; 7] =
    ["Instant::now", "SystemTime", "std::thread", "std::fs", "tokio", "candle", "cfg(feature"];

fn files(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some("tests" | "tests.rs") => {}
            _ if path.is_dir() => files(&path, into),
            _ => into.push(path),
        }
    }
}

/// The paths that `use` and `pub use` name, each up to its semicolon.
fn imports(code: &str) -> impl Iterator<Item = &str> {
    let lines = code.match_indices("use ").filter(|(at, _)| {
        let before = code[..*at].trim_end_matches("pub ");
        before.is_empty() || before.ends_with('\n')
    });
    lines.map(|(at, word)| code[at + word.len()..].split(';').next().unwrap_or_default())
}

fn is_pure(import: &str, modules: &str) -> bool {
    let first = import.split("::").next().unwrap_or_default();
    match first {
        "std" | "lorikeet_contract" | "super" => true,
        "crate" | "lorikeet_compute" => PLAIN.iter().any(|plain| import.starts_with(plain)),
        module => modules.contains(&format!("mod {module};")),
    }
}

#[test]
fn scheduler_kv_and_residency_use_std_and_contract_only() {
    let source = lorikeet_kit::workspace().join("inference/src");
    let mut seen = 0;
    for part in PURE {
        let mut pure = Vec::new();
        files(&source.join(part), &mut pure);
        for path in pure {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for import in imports(code) {
                seen += 1;
                assert!(is_pure(import, code), "{}: use {import}", path.display());
            }
            for word in FORBIDDEN {
                assert!(!code.contains(word), "{}: {word}", path.display());
            }
        }
    }
    assert!(seen > 40, "the files have moved");
}

#[test]
fn an_import_that_is_not_pure_is_noticed() {
    let code =
        "use std::time::Instant;\nuse tokio::sync::{\n    mpsc,\n};\npub use crate::engine::X;\n";
    let found: Vec<_> = imports(code).map(|import| is_pure(import, code)).collect();
    assert_eq!(found, [true, false, false]);
}

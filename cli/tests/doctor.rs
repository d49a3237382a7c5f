//! `lorikeet doctor`: what is missing is named with the line that fixes it.

use std::net::TcpListener;
use std::process::{Command, Output};

/// On ports that are free whatever runs on this machine, unless `args` name one.
fn doctor(args: &[&str]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lorikeet"));
    command.arg("doctor").args(args);
    for port in [
        "--control-plane-port",
        "--node-port",
        "--s3-port",
        "--grpc-port",
        "--control-plane-metrics-port",
        "--node-metrics-port",
    ] {
        if !args.contains(&port) {
            command.args([port, "0"]);
        }
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

#[test]
fn a_machine_with_everything_passes() {
    let model = lorikeet_kit::model_path();
    let data = tempfile::tempdir().unwrap();
    let data = data.path().join("data");
    let (output, text) =
        doctor(&["--model", model.to_str().unwrap(), "--data", data.to_str().unwrap()]);
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("PROBLEM"), "{text}");
    assert!(!data.exists(), "looking creates nothing");
}

#[test]
fn each_problem_comes_with_its_fix() {
    let squatter = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = squatter.local_addr().unwrap().port().to_string();
    let (output, text) = doctor(&[
        "--model",
        "/nonexistent/model.gguf",
        "--data",
        "/etc/passwd/lorikeet",
        "--postgres-bin",
        "/nonexistent",
        "--s3-port",
        &port,
    ]);
    assert_eq!(output.status.code(), Some(1));
    for part in [
        "/nonexistent/model.gguf",
        "scripts/fetch-model",
        "scripts/setup",
        "--data",
        "--s3-port",
        &port,
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    assert_eq!(text.matches("PROBLEM").count(), 4, "{text}");
}

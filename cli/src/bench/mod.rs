//! `lorikeet bench`: what the engine can do, and what clients get of it.

mod adapters;
mod compare;
pub mod engine;
mod http;
mod machine;
mod model;
mod overload;
mod progress;
mod serve;
mod table;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use std::fs;
use std::path::Path;
use tokio::runtime::{Builder, Runtime};

#[derive(Subcommand)]
pub enum Command {
    /// Load the engine in this process: no HTTP, no tokenizer
    Engine(engine::Args),
    /// Load the engine with more adapters than fit its device, and compare with all of them there
    Overload(overload::Args),
    /// Load a server over HTTP, and measure what its clients see
    Serve(serve::Args),
    /// Measure this node and llama-server in turn, against the bars that this node must clear
    Compare(compare::Args),
    /// Measure what HTTP, events and detokenisation cost over the engine alone
    Http(http::Args),
    /// Write random adapters, for load tests
    Adapters(adapters::Args),
    /// Write a random model, for measuring the start
    Model(model::Args),
}

pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Engine(args) => many_threads()?.block_on(engine::run(args)),
        Command::Overload(args) => many_threads()?.block_on(overload::run(args)),
        Command::Http(args) => many_threads()?.block_on(http::run(args)),
        // One thread: the client often shares few cores with the server that it measures.
        Command::Serve(args) => one_thread()?.block_on(serve::run(args)),
        Command::Compare(args) => one_thread()?.block_on(compare::run(args)),
        Command::Adapters(args) => adapters::run(&args),
        Command::Model(args) => model::run(&args),
    }
}

fn one_thread() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn many_threads() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

/// The upper one of two; NaN of no values.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Writes a result, if a file is wanted.
fn save(path: Option<&Path>, document: &impl Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(document)?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

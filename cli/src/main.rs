//! `lorikeet`: the one program. Each subcommand is a module; this file only chooses.

mod adapters;
mod args;
mod bench;
mod cache;
mod chat;
mod client;
#[cfg(test)]
mod compose;
mod demo;
mod doctor;
mod kernels;
#[cfg(test)]
mod link_tls;
mod logging;
mod migrate;
mod nodes;
mod panics;
mod predecessor;
mod signals;
mod sse;
mod variables;

use args::{Cli, Command};
use clap::Parser;
use lorikeet_inference::node::EngineStopped;
use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};

/// Of a node whose engine has stopped, so that whoever watches it knows that a new start helps
/// (`EX_SOFTWARE` of sysexits.h). Every other error is 1.
const ENGINE_STOPPED: u8 = 70;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(cli.log_format);
    panics::log_without_messages();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<EngineStopped>() {
                return ExitCode::from(ENGINE_STOPPED);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(args) => {
            // On this very thread: the demo's parts are tied to the thread that starts them.
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(demo::run(args))
        }
        Command::ControlPlane(flags) => {
            let config = lorikeet_control_plane::Config::from_vars(|name| flags.var(name))?;
            runtime()?
                .block_on(async { lorikeet_control_plane::run(config, signals::shutdown()?).await })
        }
        Command::Node(flags) => {
            let config = lorikeet_inference::config::Config::from_vars(|name| flags.var(name))?;
            runtime()?.block_on(async {
                for address in [Some(config.listen), config.metrics_listen].into_iter().flatten() {
                    predecessor::wait_until_gone(address).await;
                }
                lorikeet_inference::node::run(config, signals::shutdown()?).await
            })
        }
        Command::Migrate(args) => runtime()?.block_on(migrate::run(args)),
        Command::Doctor(args) => doctor::run(&args),
        Command::Chat(args) => runtime()?.block_on(chat::run(args)),
        Command::Adapters(command) => runtime()?.block_on(adapters::run(command)),
        Command::Nodes(command) => nodes::run(command),
        Command::Bench(command) => bench::run(command),
        Command::Kernels(command) => kernels::run(command),
        Command::DemoPostgres(args) => demo::postgres::exec(&args),
        Command::DemoS3(args) => runtime()?.block_on(demo::s3::run(args)),
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

//! `lorikeet kernels`: the GPU's kernels, checked and timed.

mod check;
mod steps;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// Run every kernel, then whole random models, and compare; needs a GPU.
    Check(check::CheckArgs),
    /// Time whole steps on random weights, and what they take less without each kind of kernel.
    Steps(steps::StepsArgs),
}

pub fn run(command: KernelsCommand) -> anyhow::Result<()> {
    match command {
        KernelsCommand::Check(args) => check::run(args),
        KernelsCommand::Steps(args) => steps::run(args),
    }
}

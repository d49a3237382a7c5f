//! No part outlives a demo that dies, not even by kill -9: the kernel tells them
//! (PR_SET_PDEATHSIG). It does so when the *thread* that started them ends, therefore parts are
//! started on the main thread only.

use rustix::process::{
    Pid, Signal, getppid, parent_process_death_signal, set_parent_process_death_signal,
};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program gets `signal` when the thread that starts it ends.
pub fn end_with_parent(command: &mut Command, signal: Signal) {
    let parent = Pid::from_raw(std::process::id().cast_signed());
    let ask = move || {
        set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before we asked.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// For a program that this process is about to become under another account, which clears the
/// signal: asks for it again. A process started by hand has none, and keeps none.
pub fn keep_across_exec(command: &mut Command) -> io::Result<()> {
    let Some(signal) = parent_process_death_signal()? else { return Ok(()) };
    let ask = move || Ok(set_parent_process_death_signal(Some(signal))?);
    // SAFETY: before exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(ask) };
    Ok(())
}

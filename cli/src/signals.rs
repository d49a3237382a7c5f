//! SIGINT and SIGTERM as a token, so that servers end their work before the process ends.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancelled by the first SIGINT or SIGTERM; the second ends the process at once. Needs a running tokio
/// runtime.
pub fn shutdown() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            }
        };
        next().await;
        cancelled.cancel();
        let again = next().await;
        eprintln!("a second signal: ended at once");
        // What a shell says of a process that a signal has ended.
        std::process::exit(128 + again.as_raw_value());
    });
    Ok(token)
}

//! How far a measurement is. On standard error, and only where somebody looks.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const TICK: Duration = Duration::from_millis(200);

/// A bar over time, or over a count.
pub struct Bar {
    bar: ProgressBar,
    clock: Option<JoinHandle<()>>,
}

impl Bar {
    /// Follows the clock for so long.
    pub fn over_time(message: &str, length: Duration) -> Self {
        let bar = bar(message, length.as_millis() as u64, "{msg:14} {wide_bar} {elapsed}");
        let moving = bar.clone();
        let clock = tokio::spawn(async move {
            let started = Instant::now();
            loop {
                moving.set_position(started.elapsed().as_millis() as u64);
                tokio::time::sleep(TICK).await;
            }
        });
        Self { bar, clock: Some(clock) }
    }

    /// For what takes nobody knows how long.
    pub fn unmeasured(message: &str) -> Self {
        let bar = bar(message, 0, "{spinner} {msg} {elapsed}");
        bar.enable_steady_tick(TICK);
        Self { bar, clock: None }
    }

    pub fn over_count(message: &str, count: u64) -> Self {
        let template = "{msg:14} {wide_bar} {pos}/{len} {elapsed}";
        Self { bar: bar(message, count, template), clock: None }
    }

    /// Counts one, where the bar counts.
    pub fn step(&self) {
        if self.clock.is_none() {
            self.bar.inc(1);
        }
    }

    pub fn say(&self, message: &'static str) {
        self.bar.set_message(message);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(clock) = &self.clock {
            clock.abort();
        }
        self.bar.finish_and_clear();
    }
}

fn bar(message: &str, length: u64, template: &str) -> ProgressBar {
    // A template that cannot be read would be this file's mistake; the default then does.
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_message(message.to_owned())
}

//! What both planes count with, and the text that Prometheus reads (format 0.0.4).
//!
//! Counting is an atomic addition, so that the thread that counts is never held up by the one that
//! reads. What is known anyway, such as a queue's length, is not counted but asked for when a page is
//! written. There is no global registry: a node owns its metrics, and two nodes of a test share none.

mod counter;
mod histogram;
mod method;
mod page;
mod process;

pub use counter::{Counter, CounterBy};
pub use histogram::Histogram;
pub use method::method_label;
pub use page::{CONTENT_TYPE, Family, Kind, Page};
pub use process::cpu_seconds;

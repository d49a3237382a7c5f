//! The engine: one thread that owns scheduler, KV cache, residency and backend.

mod config;
#[expect(dead_code, reason = "the thread that reads the commands is not here yet")]
mod handle;
pub mod request;
mod stats;

pub use config::EngineConfig;
pub use handle::{EngineHandle, Revocation};
pub use request::{EngineEvent, EngineRequest, FinishReason, RequestError, SubmitError, Usage};
pub use stats::{EngineState, EngineStats, KvUse, StepReport};

//! The engine: one thread that owns scheduler, KV cache, residency and backend.

pub mod request;

pub use request::{EngineEvent, EngineRequest, FinishReason, RequestError, SubmitError, Usage};

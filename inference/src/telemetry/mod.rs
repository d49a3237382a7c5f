//! What a node tells of itself: metrics, one access line and one trace for each request. Never what a
//! customer sends or gets: ids, names of adapters, counts and times alone pass through here.
//!
//! ```text
//! engine thread ── EngineMetrics (atomics) ──┐
//! a request ── Observation ── Course ────────┤── RequestMetrics ── page ── GET /metrics
//!                   │  └──────────────────── access line
//!                   └─────────────────────── spans ── OTLP
//! ```

mod access;
mod course;
mod engine;
mod http;
mod observation;
mod page;
mod requests;
mod routers;
mod top;
mod trace;

use lorikeet_contract::{AdapterVersionId, TenantId};
use std::sync::Arc;

pub use course::{Course, Outcome};
pub use engine::{EngineMetrics, Move, MoveEnd, Moves, Tier};
pub use http::{Unfinished, X_REQUEST_ID, observe};
pub use observation::{ErrorCode, Observation};
pub use page::{Sources, router};
pub use requests::RequestMetrics;
pub use trace::{TRACERESPONSE, TraceConfig, Traces};

/// What requests are observed with.
pub struct Telemetry {
    pub requests: RequestMetrics,
    pub traces: Traces,
}

impl Telemetry {
    pub fn new(traces: Traces) -> Arc<Self> {
        Arc::new(Self { requests: RequestMetrics::default(), traces })
    }
}

/// What a generation runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub tenant: TenantId,
    /// The base model's id, or an adapter's name and version: `name@3`. Never free text.
    pub model: String,
    /// None: the base model.
    pub adapter: Option<AdapterVersionId>,
}

impl Served {
    /// As most requests call the adapter; None of the base model.
    fn adapter_name(&self) -> Option<&str> {
        let name = self.model.rsplit_once('@').map_or(self.model.as_str(), |(name, _)| name);
        self.adapter.map(|_| name)
    }
}

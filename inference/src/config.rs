//! The node's configuration, parsed once, before anything binds.

mod backend;
mod engine;
mod http;
mod link;
mod residency;
#[cfg(test)]
mod tests;
mod tools;
mod vars;

pub use backend::Device;
pub use tools::ToolCalls;
pub use vars::ConfigError;

use crate::adapters::{ResidencyConfig, S3Config};
use crate::scheduler::SchedulerConfig;
use crate::telemetry::TraceConfig;
use crate::usage::LogConfig;
use axum::http::HeaderValue;
use lorikeet_http::Patience;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tower_http::cors::AllowOrigin;
use vars::Vars;

#[derive(Clone)]
pub struct Config {
    /// Where customers' requests come in.
    pub listen: SocketAddr,
    /// Where metrics are read. None: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    pub trace: TraceConfig,
    /// See [`crate::node`] for what is in it.
    pub data: PathBuf,
    /// Shown to operators. Empty: the name in the node's token.
    pub name: String,
    /// The control plane's gRPC address: https, or http on loopback.
    pub control_plane: String,
    /// The only CA believed to know the control plane, a PEM file. Given when the address is https.
    pub control_plane_ca: Option<PathBuf>,
    pub token_file: PathBuf,
    /// A GGUF file, or a directory in Hugging Face's layout.
    pub model: PathBuf,
    /// None: from the model's path.
    pub model_name: Option<String>,
    pub tool_calls: ToolCalls,
    /// Where customers reach this node, ends in /v1.
    pub public_api_url: String,
    /// The dashboard, which may call this node from a browser.
    pub dashboard_origin: Option<HeaderValue>,
    /// Other pages that may; `*`: any.
    pub cors_origins: Vec<HeaderValue>,
    /// With a read-only credential.
    pub s3: S3Config,
    pub device: Device,
    pub scheduler: SchedulerConfig,
    pub residency: ResidencyConfig,
    pub max_requests: usize,
    pub patience: Patience,
    /// For a request's whole body; then it is a 408.
    pub read_body_within: Duration,
    /// For a request that generates, from its arrival to its end; then it is a 504.
    pub request_within: Duration,
    pub usage: LogConfig,
    pub drain: DrainConfig,
}

/// How a node that is told to stop ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// So long it goes on serving and is not ready, for load balancers to turn away.
    pub grace: Duration,
    /// After that, how long requests under way may take to end.
    pub timeout: Duration,
}

impl Config {
    /// Whose pages may call the API from a browser; None: nobody's.
    pub fn cors_origins(&self) -> Option<AllowOrigin> {
        if self.cors_origins.iter().any(|origin| origin == "*") {
            return Some(AllowOrigin::any());
        }
        let origins: Vec<_> =
            self.dashboard_origin.iter().chain(&self.cors_origins).cloned().collect();
        (!origins.is_empty()).then(|| AllowOrigin::list(origins))
    }

    /// `var` looks a variable up; an empty value counts as unset.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars(&var);
        let listen: SocketAddr = vars.or("LORIKEET_NODE_LISTEN", "127.0.0.1:7710")?;
        let scheduler = engine::scheduler(vars)?;
        let (control_plane, control_plane_ca) = link::control_plane(vars)?;
        Ok(Self {
            listen,
            metrics_listen: http::metrics_listen(vars)?,
            trace: link::trace(vars)?,
            data: vars.required(
                "LORIKEET_NODE_DATA",
                "the directory of the manifest, the usage log and the adapters' disk cache",
            )?,
            name: vars.optional("LORIKEET_NODE_NAME")?.unwrap_or_default(),
            control_plane,
            control_plane_ca,
            token_file: vars.required(
                "LORIKEET_NODE_TOKEN_FILE",
                "the file of the token that `lorikeet nodes token` issues",
            )?,
            model: vars.required(
                "LORIKEET_MODEL",
                "the base model, a GGUF file or a Hugging Face directory",
            )?,
            model_name: vars.optional("LORIKEET_MODEL_NAME")?,
            tool_calls: tools::tool_calls(vars)?,
            public_api_url: http::public_api_url(vars, listen)?,
            dashboard_origin: http::dashboard_origin(vars)?,
            cors_origins: http::cors_origins(vars)?,
            s3: link::s3(vars)?,
            device: backend::device(vars, scheduler)?,
            scheduler,
            residency: residency::residency(vars)?,
            max_requests: engine::max_requests(vars)?,
            patience: http::patience(vars)?,
            read_body_within: http::read_body_within(vars)?,
            request_within: engine::request_within(vars)?,
            usage: LogConfig::default(),
            drain: DrainConfig {
                grace: vars.seconds("LORIKEET_DRAIN_GRACE_SECONDS", 5)?,
                timeout: vars.seconds("LORIKEET_DRAIN_SECONDS", 30)?,
            },
        })
    }
}

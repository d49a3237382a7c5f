//! The node's configuration, parsed once, before anything binds.

use crate::adapters::{ResidencyConfig, S3Config};
use crate::scheduler::SchedulerConfig;
use crate::telemetry::TraceConfig;
use crate::usage::LogConfig;
use axum::http::{HeaderValue, Uri};
use lorikeet_compute::backend::cpu::CpuConfig;
use lorikeet_compute::backend::cuda::{CudaConfig, Precision};
use lorikeet_compute::backend::sim::SimConfig;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tower_http::cors::AllowOrigin;

/// Requests that a node holds at once, waiting or running, unless told otherwise. One more gets 429.
const MAX_REQUESTS: usize = 512;

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

/// What executes the model.
#[derive(Clone)]
pub enum Device {
    /// The GPU if there is one that can be used, else the CPU.
    Auto {
        cpu: CpuConfig,
        cuda: CudaConfig,
    },
    Cpu(CpuConfig),
    Cuda(CudaConfig),
    /// No model is computed: tokens are made up, at a GPU's pace.
    Sim(SimConfig),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is not set: {what}")]
    Missing { name: &'static str, what: &'static str },
    #[error("{name} is not valid: `{value}`: {reason}")]
    Invalid { name: &'static str, value: String, reason: String },
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
        let scheduler = scheduler(&vars)?;
        let (control_plane, control_plane_ca) = control_plane(&vars)?;
        Ok(Self {
            listen,
            metrics_listen: metrics_listen(&vars)?,
            trace: trace(&vars)?,
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
            public_api_url: public_api_url(&vars, listen)?,
            dashboard_origin: dashboard_origin(&vars)?,
            cors_origins: cors_origins(&vars)?,
            s3: s3(&vars)?,
            device: device(&vars, scheduler)?,
            scheduler,
            residency: residency(&vars)?,
            max_requests: vars
                .positive("LORIKEET_MAX_REQUESTS")?
                .map_or(MAX_REQUESTS, |n| n as usize),
            usage: LogConfig::default(),
            drain: DrainConfig {
                grace: vars.seconds("LORIKEET_DRAIN_GRACE_SECONDS", 5)?,
                timeout: vars.seconds("LORIKEET_DRAIN_SECONDS", 30)?,
            },
        })
    }
}

fn metrics_listen<F>(vars: &Vars<'_, F>) -> Result<Option<SocketAddr>, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let name = "LORIKEET_METRICS_LISTEN";
    let text: String = vars.or(name, "127.0.0.1:7711")?;
    if text == "off" {
        return Ok(None);
    }
    let reason = |_| "an address such as 127.0.0.1:7711 is wanted, or off".into();
    text.parse().map(Some).map_err(|e| ConfigError::Invalid {
        name,
        value: text,
        reason: reason(e),
    })
}

/// By the names that OpenTelemetry gives them.
fn trace<F>(vars: &Vars<'_, F>) -> Result<TraceConfig, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let name = "OTEL_TRACES_SAMPLER_ARG";
    let sampled: f64 = vars.or(name, "1")?;
    if !(0.0..=1.0).contains(&sampled) {
        let reason = "a part between 0 and 1 is wanted".into();
        return Err(ConfigError::Invalid { name, value: sampled.to_string(), reason });
    }
    Ok(TraceConfig {
        endpoint: vars.optional("OTEL_EXPORTER_OTLP_ENDPOINT")?,
        ca: vars.optional("OTEL_EXPORTER_OTLP_CERTIFICATE")?,
        sampled,
    })
}

/// The node's token, key hashes and usage cross this link: beyond this machine it is never in the
/// clear.
fn control_plane<F>(vars: &Vars<'_, F>) -> Result<(String, Option<PathBuf>), ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let (name, ca_name) = ("LORIKEET_CONTROL_PLANE", "LORIKEET_CONTROL_PLANE_CA");
    let url: String = vars.or(name, "http://127.0.0.1:7730")?;
    let ca = vars.optional(ca_name)?;
    let uri: Uri = url.parse().unwrap_or_default();
    let reason = match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(_)) if ca.is_some() => return Ok((url, ca)),
        (Some("https"), Some(_)) => {
            let what = "the file with the CA (PEM) that issued the control plane's certificate";
            return Err(ConfigError::Missing { name: ca_name, what });
        }
        (Some("http"), Some(host)) if is_loopback(host) => return Ok((url, ca)),
        (Some("http"), Some(_)) => {
            "the link would be in the clear: use https, with the control plane's CA in \
             LORIKEET_CONTROL_PLANE_CA (http is accepted on loopback only)"
        }
        _ => "an address is wanted, such as https://control-plane.example:7730",
    };
    Err(ConfigError::Invalid { name, value: url, reason: reason.into() })
}

fn is_loopback(host: &str) -> bool {
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

fn public_api_url<F>(vars: &Vars<'_, F>, listen: SocketAddr) -> Result<String, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let name = "LORIKEET_PUBLIC_API_URL";
    let url: String = vars.or(name, &format!("http://{listen}/v1"))?;
    if url.parse::<Uri>().is_ok_and(|uri| uri.scheme().is_some()) && url.ends_with("/v1") {
        return Ok(url);
    }
    Err(ConfigError::Invalid {
        name,
        value: url,
        reason: "a URL that ends in /v1 is wanted".into(),
    })
}

fn dashboard_origin<F>(vars: &Vars<'_, F>) -> Result<Option<HeaderValue>, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let name = "LORIKEET_DASHBOARD_ORIGIN";
    vars.optional::<String>(name)?.map(|text| origin(name, &text)).transpose()
}

fn cors_origins<F>(vars: &Vars<'_, F>) -> Result<Vec<HeaderValue>, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let name = "LORIKEET_CORS_ORIGINS";
    let list: String = vars.or(name, "")?;
    let origins = list.split(',').map(str::trim).filter(|text| !text.is_empty());
    origins
        .map(
            |text| if text == "*" { Ok(HeaderValue::from_static("*")) } else { origin(name, text) },
        )
        .collect()
}

fn origin(name: &'static str, text: &str) -> Result<HeaderValue, ConfigError> {
    let origin = text.trim_end_matches('/');
    let is_origin = origin.parse::<Uri>().is_ok_and(|uri| {
        uri.scheme().is_some() && matches!(uri.path(), "" | "/") && uri.query().is_none()
    });
    match HeaderValue::from_str(origin) {
        Ok(value) if is_origin => Ok(value),
        _ => Err(ConfigError::Invalid {
            name,
            value: text.to_owned(),
            reason: "an origin is wanted, such as https://lorikeet.example".into(),
        }),
    }
}

fn s3<F: Fn(&str) -> Option<String>>(vars: &Vars<'_, F>) -> Result<S3Config, ConfigError> {
    Ok(S3Config {
        endpoint: vars.required("LORIKEET_S3_ENDPOINT", "the object store's URL")?,
        bucket: vars.or("LORIKEET_S3_BUCKET", "lorikeet")?,
        region: vars.or("LORIKEET_S3_REGION", "us-east-1")?,
        access_key: vars.required("LORIKEET_S3_ACCESS_KEY", "a read-only access key")?,
        secret_key: vars.required("LORIKEET_S3_SECRET_KEY", "the access key's secret")?,
    })
}

/// A number, or auto.
const MAX_ROWS: &str = "LORIKEET_MAX_NUM_BATCHED_TOKENS";

fn scheduler<F>(vars: &Vars<'_, F>) -> Result<SchedulerConfig, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let default = SchedulerConfig::default();
    Ok(SchedulerConfig {
        max_num_seqs: vars
            .positive("LORIKEET_MAX_NUM_SEQS")?
            .map_or(default.max_num_seqs, |n| n as usize),
        max_num_batched_tokens: match vars.optional::<String>(MAX_ROWS)?.as_deref() {
            // The backend's own measure then bounds it.
            Some("auto") => usize::MAX,
            _ => vars.positive(MAX_ROWS)?.map_or(default.max_num_batched_tokens, |n| n as usize),
        },
        adapter_timeout: vars
            .positive("LORIKEET_ADAPTER_WAIT_SECONDS")?
            .map_or(default.adapter_timeout, Duration::from_secs),
    })
}

fn residency<F>(vars: &Vars<'_, F>) -> Result<ResidencyConfig, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let default = ResidencyConfig::default();
    Ok(ResidencyConfig {
        host_bytes: vars.positive("LORIKEET_ADAPTER_HOST_BYTES")?.unwrap_or(default.host_bytes),
        disk_bytes: vars.positive("LORIKEET_ADAPTER_DISK_BYTES")?.unwrap_or(default.disk_bytes),
        load_deadline: vars
            .positive("LORIKEET_ADAPTER_LOAD_SECONDS")?
            .map_or(default.load_deadline, Duration::from_secs),
        ..default
    })
}

/// Pinning takes half a second for each GiB: what is beyond follows when it is needed.
const MOST_PINNED_AT_START: u64 = 16 << 30;

fn device<F>(vars: &Vars<'_, F>, scheduler: SchedulerConfig) -> Result<Device, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let name = "LORIKEET_DEVICE";
    let kv_tokens = vars.positive("LORIKEET_KV_TOKENS")?;
    let adapter_bytes = vars.positive("LORIKEET_ADAPTER_DEVICE_BYTES")?;
    let is_auto = scheduler.max_num_batched_tokens == usize::MAX;
    let rows = match is_auto {
        true => SchedulerConfig::default().max_num_batched_tokens,
        false => scheduler.max_num_batched_tokens,
    };
    let default = CpuConfig::default();
    let cpu = CpuConfig {
        kv_tokens: kv_tokens.map_or(default.kv_tokens, |n| n as usize),
        adapter_bytes: adapter_bytes.unwrap_or(default.adapter_bytes),
        max_rows: rows,
        ..default
    };
    let host_bytes = vars
        .positive("LORIKEET_ADAPTER_HOST_BYTES")?
        .unwrap_or(ResidencyConfig::default().host_bytes);
    let quantization = "LORIKEET_QUANTIZATION";
    let precision = match vars.or::<String>(quantization, "none")?.as_str() {
        "none" => Precision::Bf16,
        "fp8" => Precision::Fp8,
        other => {
            return Err(ConfigError::Invalid {
                name: quantization,
                value: other.into(),
                reason: "none or fp8 is wanted".into(),
            });
        }
    };
    let default = CudaConfig::default();
    let cuda = |ordinal| CudaConfig {
        ordinal,
        kv_tokens,
        adapter_bytes: adapter_bytes.unwrap_or(default.adapter_bytes),
        max_rows: (!is_auto).then(|| u32::try_from(rows).unwrap_or(u32::MAX)),
        precision,
        pinned_bytes: host_bytes.min(MOST_PINNED_AT_START),
        ..default.clone()
    };
    let wanted = vars.or::<String>(name, "auto")?;
    match wanted.as_str() {
        "auto" => Ok(Device::Auto { cpu, cuda: cuda(0) }),
        "cpu" => Ok(Device::Cpu(cpu)),
        "cuda" => Ok(Device::Cuda(cuda(0))),
        "sim" => {
            let mut sim = SimConfig::default();
            let block_size = u64::from(sim.capacity.block_size);
            let blocks = kv_tokens.map(|n| u32::try_from(n.div_ceil(block_size)));
            if let Some(blocks) = blocks {
                sim.capacity.num_blocks = blocks.unwrap_or(u32::MAX);
            }
            sim.capacity.adapter_bytes = adapter_bytes.unwrap_or(sim.capacity.adapter_bytes);
            // For tests of what follows: nothing in a request can bring it about.
            sim.faults.panic_at_step = vars.positive("LORIKEET_SIM_PANIC_AT_STEP")?;
            Ok(Device::Sim(sim))
        }
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(ordinal) => Ok(Device::Cuda(cuda(ordinal))),
            None => Err(ConfigError::Invalid {
                name,
                value: other.into(),
                reason: "auto, cpu, cuda, cuda:N or sim is wanted".into(),
            }),
        },
    }
}

struct Vars<'a, F>(&'a F);

impl<F: Fn(&str) -> Option<String>> Vars<'_, F> {
    fn optional<T>(&self, name: &'static str) -> Result<Option<T>, ConfigError>
    where
        T: FromStr<Err: Display>,
    {
        let Some(value) = (self.0)(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(e) => Err(ConfigError::Invalid { name, value, reason: e.to_string() }),
        }
    }

    fn or<T: FromStr<Err: Display>>(
        &self,
        name: &'static str,
        default: &str,
    ) -> Result<T, ConfigError> {
        if let Some(value) = self.optional(name)? {
            return Ok(value);
        }
        let reason =
            |e: T::Err| ConfigError::Invalid { name, value: default.into(), reason: e.to_string() };
        default.parse().map_err(reason)
    }

    fn required<T>(&self, name: &'static str, what: &'static str) -> Result<T, ConfigError>
    where
        T: FromStr<Err: Display>,
    {
        self.optional(name)?.ok_or(ConfigError::Missing { name, what })
    }

    fn seconds(&self, name: &'static str, default: u64) -> Result<Duration, ConfigError> {
        Ok(Duration::from_secs(self.optional(name)?.unwrap_or(default)))
    }

    fn positive(&self, name: &'static str) -> Result<Option<u64>, ConfigError> {
        let value: Option<u64> = self.optional(name)?;
        if value != Some(0) {
            return Ok(value);
        }
        Err(ConfigError::Invalid { name, value: "0".into(), reason: "at least 1 is wanted".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [(&str, &str); 6] = [
        ("LORIKEET_NODE_DATA", "/data"),
        ("LORIKEET_NODE_TOKEN_FILE", "/token"),
        ("LORIKEET_MODEL", "/model.gguf"),
        ("LORIKEET_S3_ENDPOINT", "http://127.0.0.1:7720"),
        ("LORIKEET_S3_ACCESS_KEY", "reader"),
        ("LORIKEET_S3_SECRET_KEY", "secret"),
    ];

    fn config(more: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let find = |vars: &[(&str, &str)], name: &str| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        Config::from_vars(|name| find(more, name).or_else(|| find(&NEEDED, name)))
    }

    #[test]
    fn what_is_not_said_has_the_documented_default() {
        let config = config(&[("LORIKEET_MODEL_NAME", "")]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7710");
        assert_eq!(config.public_api_url, "http://127.0.0.1:7710/v1");
        assert_eq!(config.control_plane, "http://127.0.0.1:7730");
        assert_eq!((config.model_name, config.dashboard_origin), (None, None));
        assert!(matches!(config.device, Device::Auto { .. }));
        assert_eq!(config.metrics_listen, "127.0.0.1:7711".parse().ok());
        assert_eq!(config.trace, TraceConfig { endpoint: None, ca: None, sampled: 1.0 });
    }

    #[test]
    fn metrics_may_be_off() {
        let config = config(&[("LORIKEET_METRICS_LISTEN", "off")]).unwrap();
        assert_eq!(config.metrics_listen, None);
    }

    #[test]
    fn what_is_missing_is_named_with_what_it_is() {
        for (missing, _) in NEEDED {
            let error = config(&[(missing, "")]).err().unwrap().to_string();
            assert!(error.starts_with(missing), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value() {
        for (name, value) in [
            ("LORIKEET_NODE_LISTEN", "7710"),
            ("LORIKEET_CONTROL_PLANE", "control-plane:7730"),
            ("LORIKEET_PUBLIC_API_URL", "http://node/"),
            ("LORIKEET_DASHBOARD_ORIGIN", "https://lorikeet.example/adapters"),
            ("LORIKEET_CORS_ORIGINS", "b.example/x"),
            ("LORIKEET_DEVICE", "abacus"),
            ("LORIKEET_KV_TOKENS", "many"),
            ("LORIKEET_MAX_NUM_SEQS", "0"),
            ("LORIKEET_DRAIN_SECONDS", "-1"),
            ("LORIKEET_METRICS_LISTEN", "7711"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ] {
            let error = config(&[(name, value)]).err().unwrap().to_string();
            assert!(error.starts_with(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn the_control_plane_is_reached_with_tls_and_a_pinned_ca_or_on_loopback() {
        let name = "LORIKEET_CONTROL_PLANE";
        for url in ["http://localhost:1", "http://127.8.0.1:1", "http://[::1]:1"] {
            assert_eq!(config(&[(name, url)]).unwrap().control_plane, url);
        }
        let ca = ("LORIKEET_CONTROL_PLANE_CA", "/keys/ca.pem");
        let with_ca = config(&[(name, "https://plane:7730"), ca]).unwrap();
        assert_eq!(with_ca.control_plane_ca, Some("/keys/ca.pem".into()));

        let error = config(&[(name, "https://plane:7730")]).err().unwrap().to_string();
        assert!(error.starts_with("LORIKEET_CONTROL_PLANE_CA is not set"), "{error}");
        for url in ["http://plane:7730", "http://10.0.0.1:7730", "http://localhost.example"] {
            let error = config(&[(name, url), ca]).err().unwrap().to_string();
            assert!(error.contains(url) && error.contains("use https"), "{error}");
        }
    }

    #[test]
    fn sizes_reach_the_device_that_was_chosen() {
        let sizes = [
            ("LORIKEET_KV_TOKENS", "100"),
            ("LORIKEET_ADAPTER_DEVICE_BYTES", "5000"),
            ("LORIKEET_MAX_NUM_BATCHED_TOKENS", "64"),
        ];
        let Device::Auto { cpu, cuda } = config(&sizes).unwrap().device else { panic!("either") };
        assert_eq!((cpu.kv_tokens, cpu.adapter_bytes, cpu.max_rows), (100, 5000, 64));
        assert_eq!(
            (cuda.kv_tokens, cuda.adapter_bytes, cuda.max_rows),
            (Some(100), 5000, Some(64))
        );
        let second = config(&[("LORIKEET_DEVICE", "cuda:1")]).unwrap().device;
        assert!(matches!(second, Device::Cuda(CudaConfig { ordinal: 1, .. })));
        let sim = [&sizes[..], &[("LORIKEET_DEVICE", "sim")]].concat();
        let Device::Sim(sim) = config(&sim).unwrap().device else { panic!("the simulation") };
        assert_eq!((sim.capacity.num_blocks, sim.capacity.adapter_bytes), (7, 5000));
    }
}

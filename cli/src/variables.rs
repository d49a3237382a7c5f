//! The variables that configure the servers, each with its flag: LORIKEET_NODE_LISTEN is
//! `--node-listen`. The planes' own `config.rs` parses the values and knows the defaults; here is
//! only what `--help` says of them.

use clap::{Arg, ArgMatches, Command};
use std::collections::HashMap;
use std::marker::PhantomData;

pub struct Variable {
    pub name: &'static str,
    /// The name without LORIKEET_, in kebab case; OTEL_ is OpenTelemetry's and stays.
    flag: &'static str,
    help: &'static str,
    /// Not to be shown by `--help`.
    secret: bool,
}

const fn plain(name: &'static str, flag: &'static str, help: &'static str) -> Variable {
    Variable { name, flag, help, secret: false }
}

const fn secret(name: &'static str, flag: &'static str, help: &'static str) -> Variable {
    Variable { name, flag, help, secret: true }
}

#[rustfmt::skip]
pub const CONTROL_PLANE: &[Variable] = &[
    plain("LORIKEET_LISTEN", "listen", "Address of the dashboard and /api/v1 [default: 127.0.0.1:7700]"),
    plain("LORIKEET_METRICS_LISTEN", "metrics-listen", "Address of /metrics, for operators; off: none [default: 127.0.0.1:7701]"),
    plain("LORIKEET_GRPC_LISTEN", "grpc-listen", "Address of the nodes' link [default: 127.0.0.1:7730]"),
    plain("LORIKEET_GRPC_TLS_CERT", "grpc-tls-cert", "File of the link's certificate (PEM); needed unless the link is on loopback"),
    plain("LORIKEET_GRPC_TLS_KEY", "grpc-tls-key", "File of the certificate's private key (PEM)"),
    plain("LORIKEET_PUBLIC_URL", "public-url", "Where browsers reach the dashboard; https unless on loopback [default: http://127.0.0.1:7700]"),
    plain("LORIKEET_API_BASE_URL", "api-base-url", "Where customers reach the nodes; ends in /v1 [default: http://127.0.0.1:7710/v1]"),
    plain("LORIKEET_TRUSTED_PROXIES", "trusted-proxies", "How many proxies in front append to X-Forwarded-For [default: 0]"),
    secret("LORIKEET_DATABASE_URL", "database-url", "PostgreSQL, logging in as lk_app: postgres://lk_app@host/lorikeet"),
    secret("LORIKEET_INGEST_DATABASE_URL", "ingest-database-url", "The same as lk_ingest [default: LORIKEET_DATABASE_URL with that user]"),
    secret("LORIKEET_OPERATOR_DATABASE_URL", "operator-database-url", "The same as lk_operator [default: LORIKEET_DATABASE_URL with that user]"),
    plain("LORIKEET_S3_ENDPOINT", "s3-endpoint", "The object store's URL"),
    plain("LORIKEET_S3_PUBLIC_ENDPOINT", "s3-public-endpoint", "The object store's URL as browsers reach it [default: LORIKEET_S3_ENDPOINT]"),
    plain("LORIKEET_S3_BUCKET", "s3-bucket", "[default: lorikeet]"),
    plain("LORIKEET_S3_REGION", "s3-region", "[default: us-east-1]"),
    plain("LORIKEET_S3_ACCESS_KEY", "s3-access-key", "A credential that may read and write"),
    secret("LORIKEET_S3_SECRET_KEY", "s3-secret-key", "Its secret"),
    plain("LORIKEET_NODE_SIGNING_KEY", "node-signing-key", "File of the Ed25519 key (PKCS#8 PEM) that signs node tokens; made when missing"),
];

#[rustfmt::skip]
pub const NODE: &[Variable] = &[
    plain("LORIKEET_NODE_LISTEN", "node-listen", "Address of /v1 [default: 127.0.0.1:7710]"),
    plain("LORIKEET_METRICS_LISTEN", "metrics-listen", "Address of /metrics, for operators; off: none [default: 127.0.0.1:7711]"),
    plain("OTEL_EXPORTER_OTLP_ENDPOINT", "otel-exporter-otlp-endpoint", "gRPC address of the collector that traces go to, such as http://127.0.0.1:4317"),
    plain("OTEL_EXPORTER_OTLP_CERTIFICATE", "otel-exporter-otlp-certificate", "File of the CA (PEM) of an https collector"),
    plain("OTEL_TRACES_SAMPLER_ARG", "otel-traces-sampler-arg", "Of the requests whose caller has not decided, the part that is traced [default: 1]"),
    plain("LORIKEET_NODE_DATA", "node-data", "Directory of the manifest, the usage log and the adapters' disk cache"),
    plain("LORIKEET_NODE_NAME", "node-name", "What operators see [default: the host's name]"),
    plain("LORIKEET_CONTROL_PLANE", "control-plane", "The control plane's gRPC address; https unless on loopback [default: http://127.0.0.1:7730]"),
    plain("LORIKEET_CONTROL_PLANE_CA", "control-plane-ca", "File of the only CA (PEM) believed for an https control plane"),
    plain("LORIKEET_NODE_TOKEN_FILE", "node-token-file", "File of the token that `lorikeet nodes token` issues"),
    plain("LORIKEET_MODEL", "model", "The base model: a GGUF file or a Hugging Face directory"),
    plain("LORIKEET_MODEL_NAME", "model-name", "What /v1/models calls it [default: from the model]"),
    plain("LORIKEET_TOOL_CALL_PARSER", "tool-call-parser", "How the model writes calls of tools: auto (from its chat template), llama3, hermes, mistral, mistral-v11 or none [default: auto]"),
    plain("LORIKEET_PUBLIC_API_URL", "public-api-url", "Where customers reach this node; ends in /v1"),
    plain("LORIKEET_CORS_ORIGINS", "cors-origins", "Other origins whose pages may, separated by commas; *: any"),
    plain("LORIKEET_DASHBOARD_ORIGIN", "dashboard-origin", "Origin of the pages that may call /v1 from a browser"),
    plain("LORIKEET_S3_ENDPOINT", "s3-endpoint", "The object store's URL"),
    plain("LORIKEET_S3_BUCKET", "s3-bucket", "[default: lorikeet]"),
    plain("LORIKEET_S3_REGION", "s3-region", "[default: us-east-1]"),
    plain("LORIKEET_S3_ACCESS_KEY", "s3-access-key", "A credential that may only read"),
    secret("LORIKEET_S3_SECRET_KEY", "s3-secret-key", "Its secret"),
    plain("LORIKEET_DRAIN_GRACE_SECONDS", "drain-grace-seconds", "After SIGTERM, how long to serve on and not be ready, for load balancers [default: 5]"),
    plain("LORIKEET_DRAIN_SECONDS", "drain-seconds", "After that, how long requests under way may take to end [default: 30]"),
    plain("LORIKEET_MAX_CONNECTIONS", "max-connections", "Customers' connections at once; further ones wait [default: 8192]"),
    plain("LORIKEET_CLIENT_HEAD_SECONDS", "client-head-seconds", "How long a request's head may take, and a connection be idle [default: 65]"),
    plain("LORIKEET_CLIENT_BODY_SECONDS", "client-body-seconds", "How long a request's body may take [default: 60]"),
    plain("LORIKEET_CLIENT_READ_SECONDS", "client-read-seconds", "How long a client may take for 16 KiB of the answer that waits for it, before it is cut off [default: 30]"),
    plain("LORIKEET_DEVICE", "device", "auto, cpu, cuda, cuda:N or sim [default: auto]"),
    plain("LORIKEET_QUANTIZATION", "quantization", "On a GPU: none, or fp8 for e4m3 weights made at the start [default: none]"),
    plain("LORIKEET_KV_CACHE_DTYPE", "kv-cache-dtype", "On a GPU: auto for the model's own, or fp8 for e4m3 keys and values, of which twice as many fit [default: auto]"),
    plain("LORIKEET_KV_TOKENS", "kv-tokens", "Tokens that the KV cache always has room for; on the CPU all that it has"),
    plain("LORIKEET_MAX_REQUESTS", "max-requests", "Most requests held at once, waiting or running; one more gets 429 [default: 512]"),
    plain("LORIKEET_QUEUE_SECONDS", "queue-seconds", "How long a request may wait for its adapter and its turn; then it fails with 503 [default: 120]"),
    plain("LORIKEET_REQUEST_SECONDS", "request-seconds", "How long a request may take from its arrival to its end; then it fails with 504 [default: 3600]"),
    plain("LORIKEET_MAX_NUM_SEQS", "max-num-seqs", "Most sequences in one step"),
    plain("LORIKEET_MAX_NUM_BATCHED_TOKENS", "max-num-batched-tokens", "Most tokens in one step; auto: a GPU measures which number is best"),
    plain("LORIKEET_ADAPTER_DEVICE_BYTES", "adapter-device-bytes", "Memory that adapters ready to run always have, in bytes; on the CPU all that they have"),
    plain("LORIKEET_ADAPTER_HOST_BYTES", "adapter-host-bytes", "Memory for adapters one copy away, in bytes"),
    plain("LORIKEET_ADAPTER_DISK_BYTES", "adapter-disk-bytes", "Disk for adapters that were used once, in bytes"),
    plain("LORIKEET_ADAPTER_DOWNLOAD_SECONDS", "adapter-download-seconds", "How long one download of an adapter may take [default: 120]"),
];

/// A table of variables, as a type for [`Flags`].
pub trait Table {
    const VARIABLES: &[Variable];
}

#[derive(Debug)]
pub struct ControlPlane;
#[derive(Debug)]
pub struct Node;

impl Table for ControlPlane {
    const VARIABLES: &[Variable] = CONTROL_PLANE;
}

impl Table for Node {
    const VARIABLES: &[Variable] = NODE;
}

/// A server's command line: one flag for each variable of the table.
#[derive(Debug)]
pub struct Flags<T> {
    values: HashMap<&'static str, String>,
    table: PhantomData<T>,
}

impl<T> Flags<T> {
    /// The flag's value, else the environment's.
    pub fn var(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned().or_else(|| std::env::var(name).ok())
    }
}

impl<T: Table> clap::Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        command.args(T::VARIABLES.iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Table> clap::FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |v: &Variable| Some((v.name, matches.get_one::<String>(v.name)?.clone()));
        Ok(Self { values: T::VARIABLES.iter().filter_map(value).collect(), table: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.values.extend(Self::from_arg_matches(matches)?.values);
        Ok(())
    }
}

fn arg(variable: &Variable) -> Arg {
    Arg::new(variable.name)
        .long(variable.flag)
        .env(variable.name)
        .hide_env_values(variable.secret)
        .value_name("VALUE")
        .help(variable.help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    #[test]
    fn each_flag_is_its_variables_name() {
        for variable in CONTROL_PLANE.iter().chain(NODE) {
            let kebab = variable.name.to_lowercase().replace('_', "-");
            assert_eq!(kebab.strip_prefix("lorikeet-").unwrap_or(&kebab), variable.flag);
        }
    }

    fn names(table: &[Variable]) -> BTreeSet<String> {
        table.iter().map(|variable| variable.name.to_owned()).collect()
    }

    /// Something that each of the variables accepts.
    fn sample(name: &str) -> Option<String> {
        let value = match name {
            n if n.ends_with("DATABASE_URL") => "postgres://lk_app@localhost/lorikeet",
            n if n.ends_with("LISTEN") => "127.0.0.1:0",
            "LORIKEET_API_BASE_URL" | "LORIKEET_PUBLIC_API_URL" => "http://127.0.0.1:7710/v1",
            n if n.ends_with("URL")
                | n.ends_with("ENDPOINT")
                | n.ends_with("ORIGIN")
                | n.ends_with("ORIGINS") =>
            {
                "http://127.0.0.1:7700"
            }
            "LORIKEET_QUANTIZATION" => "none",
            "LORIKEET_KV_CACHE_DTYPE" => "auto",
            "LORIKEET_TOOL_CALL_PARSER" => "hermes",
            "OTEL_TRACES_SAMPLER_ARG" => "0.5",
            "LORIKEET_CONTROL_PLANE" => "http://127.0.0.1:7730",
            "LORIKEET_DEVICE" => "cpu",
            n if n.ends_with("TOKENS")
                | n.ends_with("SEQS")
                | n.ends_with("REQUESTS")
                | n.ends_with("CONNECTIONS")
                | n.ends_with("PROXIES") =>
            {
                "4096"
            }
            n if n.ends_with("SECONDS") => "10",
            n if n.ends_with("BYTES") => "1048576",
            _ => "x",
        };
        Some(value.to_owned())
    }

    #[test]
    fn every_variable_that_the_control_plane_reads_has_a_flag_and_the_other_way_round() {
        let asked = RefCell::new(BTreeSet::new());
        let config = lorikeet_control_plane::Config::from_vars(|name| {
            asked.borrow_mut().insert(name.to_owned());
            sample(name)
        });
        assert_eq!(config.err(), None);
        assert_eq!(asked.into_inner(), names(CONTROL_PLANE));
    }

    #[test]
    fn every_variable_that_a_node_reads_has_a_flag_and_the_other_way_round() {
        let asked = RefCell::new(BTreeSet::new());
        let config = lorikeet_inference::config::Config::from_vars(|name| {
            asked.borrow_mut().insert(name.to_owned());
            sample(name)
        });
        assert_eq!(config.err(), None);
        assert_eq!(asked.into_inner(), names(NODE));
    }
}

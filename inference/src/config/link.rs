//! What the node reaches: the control plane, the object store, a collector of traces.

use super::vars::{ConfigError, Vars};
use crate::adapters::S3Config;
use crate::telemetry::TraceConfig;
use axum::http::Uri;
use std::net::IpAddr;
use std::path::PathBuf;

/// The node's token, key hashes and usage cross this link: beyond this machine it is never in the
/// clear.
pub(super) fn control_plane(vars: Vars<'_>) -> Result<(String, Option<PathBuf>), ConfigError> {
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

pub(super) fn s3(vars: Vars<'_>) -> Result<S3Config, ConfigError> {
    Ok(S3Config {
        endpoint: vars.required("LORIKEET_S3_ENDPOINT", "the object store's URL")?,
        bucket: vars.or("LORIKEET_S3_BUCKET", "lorikeet")?,
        region: vars.or("LORIKEET_S3_REGION", "us-east-1")?,
        access_key: vars.required("LORIKEET_S3_ACCESS_KEY", "a read-only access key")?,
        secret_key: vars.required("LORIKEET_S3_SECRET_KEY", "the access key's secret")?,
    })
}

/// By the names that OpenTelemetry gives them.
pub(super) fn trace(vars: Vars<'_>) -> Result<TraceConfig, ConfigError> {
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

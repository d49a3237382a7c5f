//! Where the node is spoken to, by whose pages, and how patiently.

use super::vars::{ConfigError, Vars};
use axum::http::{HeaderValue, Uri};
use lorikeet_http::Patience;
use std::net::SocketAddr;
use std::time::Duration;

/// 4 MiB at half a megabit a second.
const READ_BODY_WITHIN: Duration = Duration::from_secs(60);

pub(super) fn metrics_listen(vars: Vars<'_>) -> Result<Option<SocketAddr>, ConfigError> {
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

pub(super) fn public_api_url(vars: Vars<'_>, listen: SocketAddr) -> Result<String, ConfigError> {
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

pub(super) fn dashboard_origin(vars: Vars<'_>) -> Result<Option<HeaderValue>, ConfigError> {
    let name = "LORIKEET_DASHBOARD_ORIGIN";
    vars.optional::<String>(name)?.map(|text| origin(name, &text)).transpose()
}

/// `*` stands for any.
pub(super) fn cors_origins(vars: Vars<'_>) -> Result<Vec<HeaderValue>, ConfigError> {
    let name = "LORIKEET_CORS_ORIGINS";
    let list: String = vars.or(name, "")?;
    let origins = list.split(',').map(str::trim).filter(|text| !text.is_empty());
    origins
        .map(|text| match text {
            "*" => Ok(HeaderValue::from_static("*")),
            _ => origin(name, text),
        })
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

pub(super) fn patience(vars: Vars<'_>) -> Result<Patience, ConfigError> {
    let default = Patience::default();
    let most = vars.positive("LORIKEET_MAX_CONNECTIONS")?;
    let head = vars.positive("LORIKEET_CLIENT_HEAD_SECONDS")?;
    let reading = vars.positive("LORIKEET_CLIENT_READ_SECONDS")?;
    Ok(Patience {
        max_connections: most
            .map_or(default.max_connections, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        head: head.map_or(default.head, Duration::from_secs),
        reading: reading.map_or(default.reading, Duration::from_secs),
    })
}

pub(super) fn read_body_within(vars: Vars<'_>) -> Result<Duration, ConfigError> {
    let within = vars.positive("LORIKEET_CLIENT_BODY_SECONDS")?;
    Ok(within.map_or(READ_BODY_WITHIN, Duration::from_secs))
}

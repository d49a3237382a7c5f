//! The control plane's configuration, parsed once, before anything binds.

use sqlx::postgres::PgConnectOptions;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use url::{Host, Url};

/// A value that must not reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    /// Pages and `/api/v1`.
    pub listen: SocketAddr,
    /// Where metrics are read. None: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// The nodes' link.
    pub grpc_listen: SocketAddr,
    /// `None`: in the clear, on loopback only.
    pub grpc_tls: Option<TlsFiles>,
    /// Where browsers reach this server: decides the cookie's name and the accepted origin.
    pub public_url: Url,
    /// Where customers reach the nodes; ends in `/v1`.
    pub api_base_url: String,
    /// Proxies in front that append to `X-Forwarded-For`. Zero: the header is not believed.
    pub trusted_proxies: usize,
    pub database: DatabaseConfig,
    pub objects: ObjectStoreConfig,
    /// Ed25519 key (PKCS#8 PEM) that signs and checks the nodes' tokens.
    pub node_signing_key: PathBuf,
}

/// PEM files: a certificate with those that lead to its CA, and its private key.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// One login per role; none may bypass row-level security.
#[derive(Clone)]
pub struct DatabaseConfig {
    pub app: PgConnectOptions,
    pub ingest: PgConnectOptions,
    pub operator: PgConnectOptions,
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Connection options print their password.
        f.debug_struct("DatabaseConfig").field("host", &self.app.get_host()).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub struct ObjectStoreConfig {
    pub endpoint: Url,
    /// What presigned URLs name, as browsers and clients reach it.
    pub public_endpoint: Url,
    pub bucket: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: Secret,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is not set: {what}")]
    Missing { name: &'static str, what: &'static str },
    #[error("{name} is not valid: {reason}")]
    Invalid { name: &'static str, reason: String },
}

impl Config {
    /// `var` looks a variable up; an empty value counts as unset.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let vars = Vars(&var);
        let endpoint: Url = vars.required("LORIKEET_S3_ENDPOINT", "the object store's URL")?;
        let grpc_listen = vars.or("LORIKEET_GRPC_LISTEN", "127.0.0.1:7730")?;
        Ok(Self {
            listen: vars.or("LORIKEET_LISTEN", "127.0.0.1:7700")?,
            metrics_listen: metrics_listen(&vars)?,
            grpc_listen,
            grpc_tls: grpc_tls(&vars, grpc_listen)?,
            public_url: public_url(vars.or("LORIKEET_PUBLIC_URL", "http://127.0.0.1:7700")?)?,
            api_base_url: api_base_url(
                vars.or("LORIKEET_API_BASE_URL", "http://127.0.0.1:7710/v1")?,
            )?,
            trusted_proxies: vars.or("LORIKEET_TRUSTED_PROXIES", "0")?,
            database: database(&vars)?,
            objects: ObjectStoreConfig {
                public_endpoint: vars
                    .optional("LORIKEET_S3_PUBLIC_ENDPOINT")?
                    .unwrap_or_else(|| endpoint.clone()),
                endpoint,
                bucket: vars.or("LORIKEET_S3_BUCKET", "lorikeet")?,
                region: vars.or("LORIKEET_S3_REGION", "us-east-1")?,
                access_key: vars
                    .required("LORIKEET_S3_ACCESS_KEY", "the object store's access key")?,
                secret_key: Secret(
                    vars.required("LORIKEET_S3_SECRET_KEY", "the object store's secret key")?,
                ),
            },
            node_signing_key: vars.required(
                "LORIKEET_NODE_SIGNING_KEY",
                "the file with the Ed25519 key that signs node tokens (PKCS#8 PEM)",
            )?,
        })
    }
}

struct Vars<'a, F>(&'a F);

impl<F: Fn(&str) -> Option<String>> Vars<'_, F> {
    fn optional<T: FromStr<Err: fmt::Display>>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = (self.0)(name).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|e: T::Err| ConfigError::Invalid { name, reason: e.to_string() })
    }

    fn required<T: FromStr<Err: fmt::Display>>(
        &self,
        name: &'static str,
        what: &'static str,
    ) -> Result<T, ConfigError> {
        self.optional(name)?.ok_or(ConfigError::Missing { name, what })
    }

    fn or<T: FromStr<Err: fmt::Display>>(
        &self,
        name: &'static str,
        default: &str,
    ) -> Result<T, ConfigError> {
        if let Some(value) = self.optional(name)? {
            return Ok(value);
        }
        default.parse().map_err(|e: T::Err| ConfigError::Invalid { name, reason: e.to_string() })
    }
}

fn metrics_listen<F>(vars: &Vars<'_, F>) -> Result<Option<SocketAddr>, ConfigError>
where
    F: Fn(&str) -> Option<String>,
{
    let name = "LORIKEET_METRICS_LISTEN";
    let text: String = vars.or(name, "127.0.0.1:7701")?;
    if text == "off" {
        return Ok(None);
    }
    let reason = format!("`{text}`: an address such as 127.0.0.1:7701 is wanted, or off");
    text.parse().map(Some).map_err(|_| ConfigError::Invalid { name, reason })
}

/// Node tokens, key hashes and usage cross this link: beyond this machine it is never in the clear.
fn grpc_tls(
    vars: &Vars<'_, impl Fn(&str) -> Option<String>>,
    listen: SocketAddr,
) -> Result<Option<TlsFiles>, ConfigError> {
    let (cert_name, key_name) = ("LORIKEET_GRPC_TLS_CERT", "LORIKEET_GRPC_TLS_KEY");
    match (vars.optional(cert_name)?, vars.optional(key_name)?) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key })),
        (Some(_), None) => Err(ConfigError::Missing {
            name: key_name,
            what: "the file with the private key (PEM) of LORIKEET_GRPC_TLS_CERT",
        }),
        (None, Some(_)) => Err(ConfigError::Missing {
            name: cert_name,
            what: "the file with the certificate (PEM) of LORIKEET_GRPC_TLS_KEY",
        }),
        (None, None) if listen.ip().is_loopback() => Ok(None),
        (None, None) => Err(ConfigError::Invalid {
            name: "LORIKEET_GRPC_LISTEN",
            reason: format!(
                "{listen} is reached from other machines and the link would be in the clear: set \
                 {cert_name} and {key_name}, or listen on loopback"
            ),
        }),
    }
}

fn database(
    vars: &Vars<'_, impl Fn(&str) -> Option<String>>,
) -> Result<DatabaseConfig, ConfigError> {
    let app: PgConnectOptions = vars.required(
        "LORIKEET_DATABASE_URL",
        "postgres://lk_app@host/lorikeet, PostgreSQL's address",
    )?;
    let of_role = |name, role: &str| -> Result<PgConnectOptions, ConfigError> {
        Ok(vars.optional(name)?.unwrap_or_else(|| app.clone().username(role)))
    };
    Ok(DatabaseConfig {
        ingest: of_role("LORIKEET_INGEST_DATABASE_URL", "lk_ingest")?,
        operator: of_role("LORIKEET_OPERATOR_DATABASE_URL", "lk_operator")?,
        app,
    })
}

/// Plain http is for one's own machine: elsewhere the session cookie would travel in clear.
fn public_url(url: Url) -> Result<Url, ConfigError> {
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    if url.scheme() == "https" || (url.scheme() == "http" && loopback) {
        return Ok(url);
    }
    Err(ConfigError::Invalid {
        name: "LORIKEET_PUBLIC_URL",
        reason: format!("{url} must be https (http is accepted on loopback only)"),
    })
}

fn api_base_url(url: Url) -> Result<String, ConfigError> {
    let text = url.as_str().trim_end_matches('/').to_owned();
    if text.ends_with("/v1") {
        return Ok(text);
    }
    Err(ConfigError::Invalid {
        name: "LORIKEET_API_BASE_URL",
        reason: format!("{url} must end in /v1"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn parse(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut vars = HashMap::from([
            ("LORIKEET_DATABASE_URL", "postgres://lk_app:pw-app@db/lorikeet"),
            ("LORIKEET_S3_ENDPOINT", "http://127.0.0.1:7720"),
            ("LORIKEET_S3_ACCESS_KEY", "access"),
            ("LORIKEET_S3_SECRET_KEY", "s3-secret"),
            ("LORIKEET_NODE_SIGNING_KEY", "/keys/node.pem"),
        ]);
        vars.extend(changes.iter().copied());
        Config::from_vars(|name| vars.get(name).map(|v| (*v).to_owned()))
    }

    #[test]
    fn the_other_roles_take_the_same_url_unless_they_have_their_own() {
        let config =
            parse(&[("LORIKEET_OPERATOR_DATABASE_URL", "postgres://ops@other/lorikeet")]).unwrap();
        assert_eq!(config.database.app.get_username(), "lk_app");
        assert_eq!(config.database.ingest.get_username(), "lk_ingest");
        assert_eq!(config.database.ingest.get_host(), "db");
        assert_eq!(config.database.operator.get_host(), "other");
    }

    #[test]
    fn an_error_names_the_variable_and_what_it_is_for() {
        let error = parse(&[("LORIKEET_S3_ENDPOINT", "")]).unwrap_err().to_string();
        assert_eq!(error, "LORIKEET_S3_ENDPOINT is not set: the object store's URL");
        let error = parse(&[("LORIKEET_LISTEN", "7700")]).unwrap_err().to_string();
        assert!(error.starts_with("LORIKEET_LISTEN is not valid"), "{error}");
    }

    #[test]
    fn plain_http_is_accepted_on_loopback_only() {
        for url in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:7", "https://a.example"]
        {
            assert!(parse(&[("LORIKEET_PUBLIC_URL", url)]).is_ok(), "{url}");
        }
        for url in ["http://a.example", "http://10.0.0.1", "ftp://localhost"] {
            assert!(parse(&[("LORIKEET_PUBLIC_URL", url)]).is_err(), "{url}");
        }
    }

    #[test]
    fn the_nodes_link_is_in_the_clear_on_loopback_only() {
        let (cert, key) = (("LORIKEET_GRPC_TLS_CERT", "c"), ("LORIKEET_GRPC_TLS_KEY", "k"));
        let everywhere = ("LORIKEET_GRPC_LISTEN", "0.0.0.0:7730");
        assert!(parse(&[]).unwrap().grpc_tls.is_none());
        assert!(parse(&[("LORIKEET_GRPC_LISTEN", "[::1]:7730")]).unwrap().grpc_tls.is_none());
        assert!(parse(&[everywhere, cert, key]).unwrap().grpc_tls.is_some());
        assert!(parse(&[cert, key]).unwrap().grpc_tls.is_some());

        let error = parse(&[everywhere]).unwrap_err().to_string();
        assert!(error.contains(cert.0) && error.contains(key.0), "{error}");
        let error = parse(&[everywhere, cert]).unwrap_err().to_string();
        assert!(error.starts_with("LORIKEET_GRPC_TLS_KEY is not set"), "{error}");
        let error = parse(&[key]).unwrap_err().to_string();
        assert!(error.starts_with("LORIKEET_GRPC_TLS_CERT is not set"), "{error}");
    }

    #[test]
    fn a_printed_configuration_shows_no_secret() {
        let printed = format!("{:?}", parse(&[]).unwrap());
        assert!(!printed.contains("s3-secret") && !printed.contains("pw-app"), "{printed}");
    }
}

//! The control plane's `/api/v1`, as customers' commands and the demo's seeding use it.

pub mod adapter_files;
pub mod upload;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no control plane answers at {url}: is it running? LORIKEET_URL names its address, and \
         `lorikeet demo` starts one"
    )]
    Unreachable { url: String, source: reqwest::Error },
    /// In the control plane's words.
    #[error("{message}")]
    Refused { status: StatusCode, code: String, message: String },
    #[error("{url} does not answer as a Lorikeet control plane does: {reason}")]
    Unintelligible { url: String, reason: String },
}

impl Error {
    pub fn has_code(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

/// What every command that calls the API takes.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The control plane's address
    #[arg(long, env = "LORIKEET_URL", value_name = "URL", default_value = "http://127.0.0.1:7700")]
    pub url: String,
    /// An API key; `lorikeet demo` prints one for each tenant
    #[arg(long, env = "LORIKEET_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: String,
}

/// By API key, or by the cookie of a session.
#[derive(Clone)]
pub struct Client {
    pub(crate) http: reqwest::Client,
    base: String,
    auth: Auth,
}

#[derive(Clone)]
enum Auth {
    None,
    Key(String),
    /// The cookie is the HTTP client's; changes need this beside it.
    Session {
        csrf_token: String,
    },
}

/// `GET /api/v1/service`.
#[derive(Deserialize, Debug)]
pub struct Service {
    /// Includes `/v1`.
    pub api_base_url: String,
    /// Null until a node has connected.
    pub base_model: Option<String>,
}

#[derive(Deserialize)]
struct Me {
    csrf_token: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    code: String,
    message: String,
}

impl Client {
    /// Nobody in particular: for what is public, and to sign up or log in.
    pub fn anonymous(url: &str) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECTS_WITHIN)
            .cookie_store(true)
            .build()?;
        Ok(Self { http, base: url.trim_end_matches('/').to_owned(), auth: Auth::None })
    }

    pub fn with_key(url: &str, key: &str) -> reqwest::Result<Self> {
        Ok(Self { auth: Auth::Key(key.to_owned()), ..Self::anonymous(url)? })
    }

    /// Logs in by `POST {path}`, which is `/login` or `/signup`.
    pub async fn begin_session(mut self, path: &str, body: &Value) -> Result<Self, Error> {
        let me: Me = self.send(Method::POST, path, body).await?;
        self.auth = Auth::Session { csrf_token: me.csrf_token };
        Ok(self)
    }

    pub async fn service(&self) -> Result<Service, Error> {
        self.get("/service").await
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.answer(self.request(Method::GET, path)).await
    }

    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<T, Error> {
        self.answer(self.request(method, path).json(body)).await
    }

    /// For an endpoint whose answer has no content that matters.
    pub async fn send_only(&self, method: Method, path: &str, body: &Value) -> Result<(), Error> {
        self.checked(self.request(method, path).json(body)).await.map(drop)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.address(path)).timeout(ANSWERS_WITHIN);
        match &self.auth {
            Auth::None => request,
            Auth::Key(key) => request.bearer_auth(key),
            Auth::Session { csrf_token } => request.header("x-csrf-token", csrf_token),
        }
    }

    fn address(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.base)
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let response = self.checked(request).await?;
        let url = response.url().to_string();
        response.json().await.map_err(|e| Error::Unintelligible { url, reason: e.to_string() })
    }

    async fn checked(&self, request: RequestBuilder) -> Result<Response, Error> {
        let unreachable = |source| Error::Unreachable { url: self.base.clone(), source };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let url = response.url().to_string();
        match response.json::<ErrorBody>().await {
            Ok(ErrorBody { error: ErrorDetail { code, message } }) => {
                Err(Error::Refused { status, code, message })
            }
            Err(_) => Err(Error::Unintelligible { url, reason: status.to_string() }),
        }
    }
}

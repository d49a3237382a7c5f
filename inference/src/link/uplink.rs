//! The connection to the control plane, authenticated by the node's token.

use jsonwebtoken::dangerous::insecure_decode;
use lorikeet_contract::NodeId;
use lorikeet_contract::link::MAX_MESSAGE_BYTES;
use lorikeet_contract::link::link_client::LinkClient;
use lorikeet_contract::usage::NodeClaims;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub type Client = LinkClient<InterceptedService<Channel, NodeToken>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no way to the control plane at all. A control plane that is merely away is no error.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("LORIKEET_CONTROL_PLANE: `{url}` is not an address: {error}")]
    Address { url: String, error: tonic::transport::Error },
    #[error(
        "LORIKEET_CONTROL_PLANE: `{0}` asks for TLS, which the link does not speak yet: use http:// over \
         a private or encrypted network"
    )]
    Tls(String),
    #[error("LORIKEET_NODE_TOKEN_FILE: {path}: {error}")]
    Token { path: PathBuf, error: String },
}

/// One HTTP/2 connection for the manifest stream and for usage; it is dialled anew as needed.
#[derive(Clone)]
pub struct Uplink {
    channel: Channel,
    token: NodeToken,
    node_id: NodeId,
}

impl Uplink {
    /// Does not dial yet. The token file is read now for the node's id, and again for each call, so
    /// that a token can be replaced while the node runs.
    pub fn new(url: &str, token_file: &Path) -> Result<Self, UplinkError> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| UplinkError::Address { url: url.to_owned(), error })?;
        if endpoint.uri().scheme_str() == Some("https") {
            return Err(UplinkError::Tls(url.to_owned()));
        }
        if !is_loopback(endpoint.uri().host().unwrap_or_default()) {
            tracing::warn!(
                url,
                "the link to the control plane is not encrypted and leaves this machine"
            );
        }
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_lazy();
        let token = NodeToken { file: token_file.into() };
        let node_id = token
            .node_id()
            .map_err(|error| UplinkError::Token { path: token_file.to_owned(), error })?;
        Ok(Self { channel, token, node_id })
    }

    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    pub fn client(&self) -> Client {
        LinkClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Adds the token as bearer to every call. The control plane checks it; here only its subject is read.
#[derive(Clone)]
pub struct NodeToken {
    file: Arc<Path>,
}

impl NodeToken {
    fn read(&self) -> Result<String, String> {
        let text = std::fs::read_to_string(&self.file).map_err(|e| e.to_string())?;
        Ok(text.trim().to_owned())
    }

    fn node_id(&self) -> Result<NodeId, String> {
        let claims = insecure_decode::<NodeClaims>(self.read()?.as_bytes())
            .map_err(|e| format!("not a node token: {e}"))?
            .claims;
        claims.sub.parse().map_err(|e| format!("not a node token: {e}"))
    }
}

impl Interceptor for NodeToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = self
            .read()
            .map_err(|e| Status::unauthenticated(format!("{}: {e}", self.file.display())))?;
        let mut bearer = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Status::unauthenticated("the node token holds characters of no token"))?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }
}

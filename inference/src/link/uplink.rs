//! The connection to the control plane, authenticated by the node's token.

use axum::http::uri::Scheme;
use jsonwebtoken::dangerous::insecure_decode;
use lorikeet_contract::NodeId;
use lorikeet_contract::link::MAX_MESSAGE_BYTES;
use lorikeet_contract::link::link_client::LinkClient;
use lorikeet_contract::usage::NodeClaims;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

pub type Client = LinkClient<InterceptedService<Channel, NodeToken>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no way to the control plane at all. A control plane that is merely away is no error.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("LORIKEET_CONTROL_PLANE: `{url}` is not an address: {error}")]
    Address { url: String, error: tonic::transport::Error },
    #[error("LORIKEET_CONTROL_PLANE_CA: {path}: {error}")]
    Ca { path: PathBuf, error: String },
    #[error("LORIKEET_NODE_TOKEN_FILE: {path}: {error}")]
    Token { path: PathBuf, error: String },
}

/// One HTTP/2 connection for the manifest stream and for usage; it is dialled anew as needed.
#[derive(Clone)]
pub struct Uplink {
    channel: Channel,
    encrypted: bool,
    token: NodeToken,
    node_id: NodeId,
}

impl Uplink {
    /// Does not dial yet. An https `url` believes `ca` alone, not what this machine's own store
    /// holds; without it, nobody. The token file is read now for the node's id, and again for each
    /// call, so that a token can be replaced while the node runs.
    pub fn new(url: &str, ca: Option<&Path>, token_file: &Path) -> Result<Self, UplinkError> {
        let bad_address = |error| UplinkError::Address { url: url.to_owned(), error };
        let mut endpoint = Endpoint::from_shared(url.to_owned()).map_err(bad_address)?;
        if let Some(path) = ca {
            let ca = trust_anchors(path)
                .map_err(|error| UplinkError::Ca { path: path.to_owned(), error })?;
            let tls = ClientTlsConfig::new().trust_anchors(ca).timeout(CONNECT_TIMEOUT);
            endpoint = endpoint.tls_config(tls).map_err(bad_address)?;
        }
        let encrypted = endpoint.uri().scheme() == Some(&Scheme::HTTPS);
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
        Ok(Self { channel, encrypted, token, node_id })
    }

    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Why a call was not answered, for a log; with the setting to look at when the two ends do not
    /// agree on TLS. An answer that refuses the call is given as it is.
    pub fn explain(&self, status: &Status) -> String {
        let Some(cause) = innermost_source(status) else { return status.message().to_owned() };
        let not_tls = |e: &io::Error| e.kind() == io::ErrorKind::InvalidData;
        let setting = match (self.encrypted, status.code()) {
            (true, Code::Unavailable) if cause.downcast_ref().is_some_and(not_tls) => {
                "; the control plane must have a certificate for its address from LORIKEET_CONTROL_PLANE_CA"
            }
            // Nobody listens.
            (_, Code::Unavailable) => "",
            // Connected, and cut off without a word of HTTP/2.
            (false, _) => {
                "; LORIKEET_CONTROL_PLANE must be https when the control plane has a certificate"
            }
            (true, _) => "",
        };
        format!("{cause}{setting}")
    }

    pub fn client(&self) -> Client {
        LinkClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// What a failed call failed of; `None` when the control plane itself refused it.
fn innermost_source(status: &Status) -> Option<&(dyn Error + 'static)> {
    let mut cause = status.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause)
}

/// The certificates in a PEM file. None at all is an error: no control plane could be believed.
fn trust_anchors(path: &Path) -> Result<Vec<TrustAnchor<'static>>, String> {
    let pem = std::fs::read(path).map_err(|e| e.to_string())?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| format!("not PEM: {e}"))?;
        store.add(certificate).map_err(|e| format!("not a CA's certificate: {e}"))?;
    }
    if store.is_empty() {
        return Err("holds no certificate in PEM".to_owned());
    }
    Ok(store.roots)
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

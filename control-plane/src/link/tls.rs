//! The certificate by which nodes know the control plane.

use crate::config::TlsFiles;
use anyhow::Context;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Identity;
use tonic::transport::server::{Server, ServerTlsConfig};

/// A connection that has not finished its handshake after this is closed.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Reads the files and checks that the key is the certificate's. A new certificate is taken at the
/// next start.
pub fn load_tls(files: &TlsFiles) -> anyhow::Result<ServerTlsConfig> {
    let cert = read("LORIKEET_GRPC_TLS_CERT", &files.cert)?;
    let key = read("LORIKEET_GRPC_TLS_KEY", &files.key)?;
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key)).timeout(HANDSHAKE);
    // The configuration itself checks nothing: only a server made with it does.
    Server::builder().tls_config(tls.clone()).with_context(|| {
        format!(
            "LORIKEET_GRPC_TLS_CERT ({}) and LORIKEET_GRPC_TLS_KEY ({}) must be a certificate and \
             its private key, both in PEM",
            files.cert.display(),
            files.key.display(),
        )
    })?;
    Ok(tls)
}

fn read(name: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{name}: {}", path.display()))
}

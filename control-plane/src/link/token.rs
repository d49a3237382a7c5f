//! Node tokens: EdDSA JSON web tokens, the only ones in the system. The control plane's key signs
//! and verifies them; a node only carries one.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use lorikeet_contract::NodeId;
use lorikeet_contract::usage::NodeClaims;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Difference of clocks that is forgiven, in seconds.
const LEEWAY_S: u64 = 30;

/// Why a signing key could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    #[error("the node signing key {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the node signing key {path} can be read by others: run `chmod 600` on it")]
    Exposed { path: PathBuf },
    #[error("the node signing key {path} is not an Ed25519 private key in PKCS#8 PEM")]
    Format { path: PathBuf },
}

/// Why a token was refused. The message is for the node's operator and names no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the call carries no `authorization: Bearer <node token>`")]
    Missing,
    #[error("the node token is refused: {0}; issue a new one for this node")]
    Refused(String),
}

/// The key pair behind all node tokens of one installation.
#[derive(Clone)]
pub struct SigningKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl SigningKey {
    /// Reads a PKCS#8 PEM; `None` when it is not an Ed25519 private key.
    pub fn from_pem(pem: &str) -> Option<Self> {
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(body.trim()).ok()?;
        // Some tools write version 1 of the format, without the public key, others version 2.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).ok()?;
        Some(Self {
            encoding: EncodingKey::from_ed_der(&der),
            decoding: DecodingKey::from_ed_der(pair.public_key().as_ref()),
        })
    }

    pub fn sign(&self, claims: &NodeClaims) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &self.encoding)
    }

    /// The claims of a token that this key signed, for this audience, and whose time has come and
    /// not passed.
    pub fn verify(&self, token: &str) -> Result<(NodeId, NodeClaims), TokenError> {
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.leeway = LEEWAY_S;
        rules.validate_nbf = true;
        rules.set_audience(&[NodeClaims::AUDIENCE]);
        rules.set_issuer(&[NodeClaims::ISSUER]);
        rules.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        let claims = jsonwebtoken::decode::<NodeClaims>(token, &self.decoding, &rules)
            .map_err(|e| TokenError::Refused(e.to_string()))?
            .claims;
        let node = claims
            .sub
            .parse()
            .map_err(|_| TokenError::Refused("its subject is not a node id".to_owned()))?;
        Ok((node, claims))
    }
}

/// For how long from now [`SigningKey::verify`] goes on accepting a token with these claims.
pub fn lasts(claims: &NodeClaims) -> Duration {
    // To the end of its last second.
    let ends = Duration::from_secs(claims.exp.saturating_add(LEEWAY_S + 1));
    ends.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A token by which `node` may attach until `ttl` from now.
pub fn issue_node_token(
    key: &SigningKey,
    node: NodeId,
    name: &str,
    ttl: Duration,
) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = NodeClaims {
        iss: NodeClaims::ISSUER.to_owned(),
        aud: NodeClaims::AUDIENCE.to_owned(),
        sub: node.to_string(),
        name: name.to_owned(),
        nbf: now,
        exp: now.saturating_add(ttl.as_secs()),
    };
    Ok(key.sign(&claims)?)
}

/// The key in `path`; made there with mode 0600 when the file is absent. Two processes that start
/// at once end with the same key.
pub fn load_or_create_signing_key(path: &Path) -> Result<SigningKey, SigningKeyError> {
    let io_error = |source| SigningKeyError::Io { path: path.to_owned(), source };
    match load(path) {
        Err(SigningKeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    create(path).map_err(io_error)?;
    load(path)
}

fn load(path: &Path) -> Result<SigningKey, SigningKeyError> {
    let io_error = |source| SigningKeyError::Io { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(io_error)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SigningKeyError::Exposed { path: path.to_owned() });
    }
    let pem = fs::read_to_string(path).map_err(io_error)?;
    SigningKey::from_pem(&pem).ok_or_else(|| SigningKeyError::Format { path: path.to_owned() })
}

/// Writes a whole file beside `path`, then links it into place: a reader never sees half a key,
/// and the loser of a race keeps the winner's.
fn create(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let draft = dir.join(format!(".signing-key-{}", NodeId::new()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let linked = (|| {
        file.write_all(new_key_pem()?.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    fs::remove_file(&draft)?;
    linked?;
    File::open(dir)?.sync_all()
}

fn new_key_pem() -> io::Result<String> {
    let failed = |_| io::Error::other("the system's randomness failed");
    let pair = Ed25519KeyPair::generate().map_err(failed)?;
    let der = pair.to_pkcs8v1().map_err(failed)?;
    Ok(format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pem(&new_key_pem().expect("randomness")).expect("own key")
    }

    fn signed(key: &SigningKey, change: impl FnOnce(&mut NodeClaims)) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let mut claims = NodeClaims {
            iss: NodeClaims::ISSUER.into(),
            aud: NodeClaims::AUDIENCE.into(),
            sub: NodeId::new().to_string(),
            name: "n".into(),
            nbf: now,
            exp: now + 60,
        };
        change(&mut claims);
        key.sign(&claims).expect("sign")
    }

    #[test]
    fn an_issued_token_names_its_node_and_another_key_refuses_it() {
        let (ours, theirs) = (key(), key());
        let node = NodeId::new();
        let token = issue_node_token(&ours, node, "a", Duration::from_secs(60)).expect("issue");
        let (found, claims) = ours.verify(&token).expect("own token");
        assert_eq!((found, claims.name.as_str()), (node, "a"));
        assert!(matches!(theirs.verify(&token), Err(TokenError::Refused(_))));
    }

    #[test]
    fn a_token_with_one_wrong_claim_is_refused() {
        let key = key();
        assert!(key.verify(&signed(&key, |_| ())).is_ok());
        let wrong: [fn(&mut NodeClaims); 5] = [
            |c| c.iss = "someone".into(),
            |c| c.aud = "lorikeet-pages".into(),
            |c| c.nbf += 3600,
            |c| c.exp -= 3600,
            |c| c.sub = "ten_0123".into(),
        ];
        for (i, change) in wrong.into_iter().enumerate() {
            assert!(key.verify(&signed(&key, change)).is_err(), "case {i}");
        }
    }

    #[test]
    fn a_token_that_names_another_algorithm_is_refused() {
        let key = key();
        let token = signed(&key, |_| ());
        let (_, rest) = token.split_once('.').expect("three parts");
        for header in [r#"{"typ":"JWT","alg":"none"}"#, r#"{"typ":"JWT","alg":"HS256"}"#] {
            let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
            assert!(key.verify(&format!("{header}.{rest}")).is_err());
        }
    }

    #[test]
    fn the_key_file_is_made_once_private_and_refused_when_others_can_read_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("keys/node.pem");
        let first = load_or_create_signing_key(&path).expect("create");
        let again = load_or_create_signing_key(&path).expect("load");
        assert!(again.verify(&signed(&first, |_| ())).is_ok());
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&path) & 0o777, 0o600);
        let names = fs::read_dir(dir.path().join("keys")).expect("dir").count();
        assert_eq!(names, 1, "no draft is left over");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(load_or_create_signing_key(&path), Err(SigningKeyError::Exposed { .. })));
    }
}

//! The link between the planes, a real end on each side, with certificates as an operator makes them.

use futures::stream;
use lorikeet_contract::NodeId;
use lorikeet_control_plane::config::TlsFiles;
use lorikeet_control_plane::link::{
    LinkParts, issue_node_token, load_or_create_signing_key, load_tls, serve,
};
use lorikeet_inference::link::Uplink;
use sqlx::postgres::PgPoolOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What a control plane answers that believes the node, to a stream that ends before its hello.
const REACHED: &str = "the first message of a node is Hello";

/// A CA of its own, and a certificate that it issued to `host`.
struct Issued(TempDir);

impl Issued {
    fn to(host: &str) -> Self {
        let issued = Self(tempfile::tempdir().unwrap());
        issued.issue(host);
        issued
    }

    fn issue(&self, host: &str) {
        let script = lorikeet_kit::workspace().join("deploy/link-tls.sh");
        let run = Command::new("sh").arg(script).arg(self.0.path()).arg(host).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn server(&self) -> TlsFiles {
        TlsFiles { cert: self.file("link.pem"), key: self.file("link-key.pem") }
    }
}

/// A control plane's link, and a token by which it knows a node. No call here gets as far as its
/// database.
struct ControlPlane {
    address: SocketAddr,
    token: PathBuf,
    _keys: TempDir,
    _stop: DropGuard,
}

impl ControlPlane {
    async fn start(tls: Option<&Issued>) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let key = load_or_create_signing_key(&keys.path().join("signing-key.pem")).unwrap();
        let claims = issue_node_token(&key, NodeId::new(), "a", Duration::from_secs(60)).unwrap();
        let token = keys.path().join("token");
        std::fs::write(&token, claims).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pool = PgPoolOptions::new().connect_lazy("postgres://localhost:1/none").unwrap();
        let tls = tls.map(|issued| load_tls(&issued.server()).unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(serve(
            listener,
            LinkParts { pool, key, tls, metrics: Default::default() },
            stop.clone(),
        ));
        Self { address, token, _keys: keys, _stop: stop.drop_guard() }
    }

    /// Dials as a node does. The answer, or why there was none, as the node's log says it.
    async fn answer(&self, scheme: &str, ca: Option<&Issued>) -> String {
        let ca = ca.map(|issued| issued.file("link-ca.pem"));
        let url = format!("{scheme}://{}", self.address);
        let uplink = Uplink::new(&url, ca.as_deref(), &self.token).unwrap();
        let status = uplink.client().attach(stream::empty()).await.unwrap_err();
        uplink.explain(&status)
    }
}

#[tokio::test]
async fn a_node_believes_the_ca_that_it_was_given_and_no_other() {
    let (ours, theirs) = (Issued::to("127.0.0.1"), Issued::to("127.0.0.1"));
    let plane = ControlPlane::start(Some(&ours)).await;
    assert_eq!(plane.answer("https", Some(&ours)).await, REACHED);
    let refused = plane.answer("https", Some(&theirs)).await;
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    assert!(refused.contains("LORIKEET_CONTROL_PLANE_CA"), "{refused}");
    assert_ne!(plane.answer("https", None).await, REACHED, "and without one it believes nobody");
}

#[tokio::test]
async fn a_certificate_of_another_host_is_refused() {
    let elsewhere = Issued::to("elsewhere.example");
    let plane = ControlPlane::start(Some(&elsewhere)).await;
    let refused = plane.answer("https", Some(&elsewhere)).await;
    assert!(refused.contains(r#"not valid for name "127.0.0.1""#), "{refused}");
}

#[tokio::test]
async fn ends_that_do_not_agree_on_tls_do_not_talk_and_the_log_says_what_to_set() {
    let ours = Issued::to("127.0.0.1");
    let encrypted = ControlPlane::start(Some(&ours)).await;
    let reason = encrypted.answer("http", None).await;
    assert!(reason.contains("LORIKEET_CONTROL_PLANE must be https"), "{reason}");
    let clear = ControlPlane::start(None).await;
    assert_eq!(clear.answer("http", None).await, REACHED);
    let reason = clear.answer("https", Some(&ours)).await;
    assert!(reason.contains("must have a certificate"), "{reason}");
}

#[tokio::test]
async fn a_new_certificate_of_the_same_ca_needs_nothing_of_the_nodes() {
    let ours = Issued::to("127.0.0.1");
    let before = std::fs::read(ours.server().cert).unwrap();
    ours.issue("127.0.0.1");
    assert_ne!(std::fs::read(ours.server().cert).unwrap(), before);
    let plane = ControlPlane::start(Some(&ours)).await;
    assert_eq!(plane.answer("https", Some(&ours)).await, REACHED);
}

#[test]
fn a_key_that_is_not_the_certificates_is_refused_with_the_names_of_both_files() {
    let (one, other) = (Issued::to("127.0.0.1"), Issued::to("127.0.0.1"));
    let (ours, theirs, missing) = (one.server(), other.server(), one.file("missing.pem"));
    for (cert, key) in [(&ours.cert, &theirs.key), (&theirs.key, &ours.key), (&ours.cert, &missing)]
    {
        let files = TlsFiles { cert: cert.clone(), key: key.clone() };
        let error = format!("{:#}", load_tls(&files).err().unwrap());
        assert!(error.contains("LORIKEET_GRPC_TLS_KEY"), "{error}");
        assert!(error.contains(&key.display().to_string()), "{error}");
    }
}

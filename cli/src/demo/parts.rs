//! The four parts: how each is started, from the data directory, the state and the ports alone.

use super::home::Home;
use super::leftovers::MARK;
use super::ports::{Ports, address};
use super::process::Spec;
use super::state::State;
use crate::variables::NODE;
use anyhow::Context;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BUCKET: &str = "lorikeet";

/// What every part keeps of the user's environment: where things are, and how much is told.
const KEPT: &[&str] = &[
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "LORIKEET_CACHE",
    "LORIKEET_LOG",
    "LORIKEET_LOG_FORMAT",
    "PATH",
    "RUST_BACKTRACE",
    "TMPDIR",
    "TZ",
    "XDG_CACHE_HOME",
];

/// For tests of what follows; no setting of the node.
const PANIC: &str = "LORIKEET_SIM_PANIC_AT_STEP";

pub struct Parts<'a> {
    pub home: &'a Home,
    pub state: &'a State,
    pub ports: &'a Ports,
    pub program: &'a Path,
    pub model: &'a Path,
    pub postgres_bin: Option<&'a Path>,
    /// As `lk_app`.
    pub database_url: String,
}

impl Parts<'_> {
    pub fn dashboard_url(&self) -> String {
        url(self.ports.control_plane_port)
    }

    pub fn node_url(&self) -> String {
        url(self.ports.node_port)
    }

    /// The node's and the control plane's.
    pub fn metrics_urls(&self) -> [String; 2] {
        let ports = [self.ports.node_metrics_port, self.ports.control_plane_metrics_port];
        ports.map(|port| format!("{}/metrics", url(port)))
    }

    pub fn s3_url(&self) -> String {
        url(self.ports.s3_port)
    }

    pub fn api_base_url(&self) -> String {
        format!("{}/v1", self.node_url())
    }

    pub fn postgres_dir(home: &Home) -> PathBuf {
        home.path("postgres")
    }

    pub fn postgres(&self) -> anyhow::Result<Spec> {
        let mut vars = vec![("LORIKEET_POSTGRES_DIR", text(&Self::postgres_dir(self.home))?)];
        if let Some(bin) = self.postgres_bin {
            vars.push(("LORIKEET_POSTGRES_BIN", text(bin)?));
        }
        let spec = self.spec("postgres", "demo-postgres", vars)?;
        // SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
        Ok(Spec { stop: Signal::INT, stops_within: Duration::from_secs(30), ..spec })
    }

    pub fn s3(&self) -> anyhow::Result<Spec> {
        let keys = &self.state.object_store;
        let origins =
            format!("{},http://localhost:{}", self.dashboard_url(), self.ports.control_plane_port);
        self.spec(
            "s3",
            "demo-s3",
            vec![
                ("LORIKEET_S3_LISTEN", address(self.ports.s3_port).to_string()),
                ("LORIKEET_S3_ROOT", text(&self.home.path("s3"))?),
                ("LORIKEET_S3_BUCKET", BUCKET.into()),
                ("LORIKEET_S3_ALLOWED_ORIGINS", origins),
                ("LORIKEET_S3_ACCESS_KEY", keys.access_key.clone()),
                ("LORIKEET_S3_SECRET_KEY", keys.secret_key.clone()),
                ("LORIKEET_S3_READER_ACCESS_KEY", keys.reader_access_key.clone()),
                ("LORIKEET_S3_READER_SECRET_KEY", keys.reader_secret_key.clone()),
            ],
        )
    }

    pub fn control_plane(&self) -> anyhow::Result<Spec> {
        let metrics = self.ports.control_plane_metrics_port;
        let keys = &self.state.object_store;
        self.spec(
            "control-plane",
            "control-plane",
            vec![
                ("LORIKEET_LISTEN", address(self.ports.control_plane_port).to_string()),
                ("LORIKEET_METRICS_LISTEN", address(metrics).to_string()),
                ("LORIKEET_GRPC_LISTEN", address(self.ports.grpc_port).to_string()),
                ("LORIKEET_PUBLIC_URL", self.dashboard_url()),
                ("LORIKEET_API_BASE_URL", self.api_base_url()),
                ("LORIKEET_DATABASE_URL", self.database_url.clone()),
                ("LORIKEET_S3_ENDPOINT", self.s3_url()),
                ("LORIKEET_S3_BUCKET", BUCKET.into()),
                ("LORIKEET_S3_ACCESS_KEY", keys.access_key.clone()),
                ("LORIKEET_S3_SECRET_KEY", keys.secret_key.clone()),
                ("LORIKEET_NODE_SIGNING_KEY", text(&self.home.path("node-signing-key.pem"))?),
            ],
        )
    }

    /// Of its settings the user may give all but those that say where the other parts are.
    pub fn node(&self) -> anyhow::Result<Spec> {
        let keys = &self.state.object_store;
        let settings = NODE.iter().map(|variable| variable.name).chain([PANIC]);
        let tuning = settings.filter_map(|name| Some((name, std::env::var(name).ok()?)));
        let mut vars: Vec<_> = tuning.collect();
        vars.extend([
            ("LORIKEET_NODE_LISTEN", address(self.ports.node_port).to_string()),
            ("LORIKEET_METRICS_LISTEN", address(self.ports.node_metrics_port).to_string()),
            ("LORIKEET_NODE_DATA", text(&self.home.path("node"))?),
            ("LORIKEET_NODE_NAME", "demo".into()),
            // Nobody balances load here.
            ("LORIKEET_DRAIN_GRACE_SECONDS", "0".into()),
            ("LORIKEET_CONTROL_PLANE", url(self.ports.grpc_port)),
            // Empty is unset: the link stays on this machine, in the clear.
            ("LORIKEET_CONTROL_PLANE_CA", String::new()),
            ("LORIKEET_NODE_TOKEN_FILE", text(&self.home.path("node-token"))?),
            ("LORIKEET_MODEL", text(self.model)?),
            ("LORIKEET_PUBLIC_API_URL", self.api_base_url()),
            ("LORIKEET_DASHBOARD_ORIGIN", self.dashboard_url()),
            ("LORIKEET_S3_ENDPOINT", self.s3_url()),
            ("LORIKEET_S3_BUCKET", BUCKET.into()),
            ("LORIKEET_S3_REGION", String::new()),
            ("LORIKEET_S3_ACCESS_KEY", keys.reader_access_key.clone()),
            ("LORIKEET_S3_SECRET_KEY", keys.reader_secret_key.clone()),
        ]);
        self.spec("node", "node", vars)
    }

    /// `vars` win over the user's own environment.
    fn spec(
        &self,
        name: &'static str,
        subcommand: &str,
        vars: Vec<(&str, String)>,
    ) -> anyhow::Result<Spec> {
        let mut env: BTreeMap<String, String> = KEPT
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect();
        env.insert(MARK.into(), text(self.home.dir())?);
        env.extend(vars.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Ok(Spec {
            name,
            argv: vec![text(self.program)?, subcommand.to_owned()],
            env,
            log: self.home.path("logs").join(format!("{name}.log")),
            stop: Signal::TERM,
            stops_within: Duration::from_secs(15),
        })
    }
}

fn url(port: u16) -> String {
    format!("http://{}", address(port))
}

/// demo.json and environments are UTF-8.
fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

//! What a demo draws once and keeps: logins, keys and the parts' secrets.

use super::home::{Home, write_private};
use anyhow::Context;
use lorikeet_contract::NodeId;
use rand::Rng;
use rand::distr::Alphanumeric;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub struct State {
    pub node: NodeId,
    pub object_store: ObjectStoreKeys,
    pub operator: Login,
    pub tenants: Vec<Tenant>,
}

/// One credential that may write, for the control plane, and one that may only read, for the node.
#[derive(Serialize, Deserialize)]
pub struct ObjectStoreKeys {
    pub access_key: String,
    pub secret_key: String,
    pub reader_access_key: String,
    pub reader_secret_key: String,
}

#[derive(Serialize, Deserialize, Clone)]
pub struct Login {
    pub email: String,
    pub password: String,
}

#[derive(Serialize, Deserialize, Clone)]
pub struct Tenant {
    pub name: String,
    #[serde(flatten)]
    pub login: Login,
    /// Scope `inference`. Keys are shown once, so they are written down as soon as they exist.
    pub api_key: Option<String>,
    /// Scopes `manage` and `read`.
    pub manage_key: Option<String>,
    pub adapters: Vec<String>,
}

impl State {
    /// Draws a new one on the first start.
    pub fn load_or_create(home: &Home) -> anyhow::Result<Self> {
        let path = home.state_file();
        if home.is_new() {
            let state = Self::draw();
            state.save(home)?;
            return Ok(state);
        }
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| {
            format!("{} is damaged: start over with `lorikeet demo --reset`", path.display())
        })
    }

    pub fn save(&self, home: &Home) -> anyhow::Result<()> {
        write_private(&home.state_file(), &serde_json::to_vec_pretty(self)?)
    }

    fn draw() -> Self {
        Self {
            node: NodeId::new(),
            object_store: ObjectStoreKeys {
                access_key: secret(20),
                secret_key: secret(40),
                reader_access_key: secret(20),
                reader_secret_key: secret(40),
            },
            operator: Login::draw("operator@lorikeet.example"),
            tenants: vec![
                Tenant::draw("Pirate Co.", "captain@pirate.example", &["pirate"]),
                Tenant::draw("Tidy Data Ltd.", "desk@tidy-data.example", &["json", "sentiment"]),
            ],
        }
    }
}

impl Login {
    fn draw(email: &str) -> Self {
        Self { email: email.into(), password: secret(16) }
    }
}

impl Tenant {
    fn draw(name: &str, email: &str, adapters: &[&str]) -> Self {
        Self {
            name: name.into(),
            login: Login::draw(email),
            api_key: None,
            manage_key: None,
            adapters: adapters.iter().map(ToString::to_string).collect(),
        }
    }
}

fn secret(length: usize) -> String {
    // rand's thread generator is a CSPRNG seeded by the operating system.
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

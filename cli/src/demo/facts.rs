//! What a newcomer, and a script, needs to know of a running demo.

use super::home::{Home, write_private};
use super::process::Process;
use super::state::{Login, State, Tenant};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The content of demo.json.
#[derive(Serialize)]
pub struct Facts {
    pub api_base_url: String,
    pub dashboard_url: String,
    /// The node's and the control plane's.
    pub metrics_urls: [String; 2],
    pub operator: Login,
    pub tenants: Vec<TenantFacts>,
    pub processes: Vec<ProcessFacts>,
}

#[derive(Serialize)]
pub struct TenantFacts {
    name: String,
    email: String,
    password: String,
    api_key: String,
    manage_key: String,
    adapters: Vec<String>,
}

#[derive(Serialize)]
pub struct ProcessFacts {
    name: &'static str,
    pid: u32,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
}

impl Facts {
    pub fn new(
        dashboard_url: String,
        api_base_url: String,
        metrics_urls: [String; 2],
        state: &State,
        processes: &[Process],
    ) -> Self {
        Self {
            api_base_url,
            dashboard_url,
            metrics_urls,
            operator: state.operator.clone(),
            tenants: state.tenants.iter().map(tenant).collect(),
            processes: processes.iter().map(process).collect(),
        }
    }

    /// The part has another process now.
    pub fn restarted(&mut self, process: &Process) {
        for part in self.processes.iter_mut().filter(|part| part.name == process.spec.name) {
            part.pid = process.pid;
        }
    }

    pub fn file(home: &Home) -> PathBuf {
        home.path("demo.json")
    }

    pub fn save(&self, home: &Home) -> anyhow::Result<()> {
        write_private(&Self::file(home), &serde_json::to_vec_pretty(self)?)
    }
}

fn tenant(tenant: &Tenant) -> TenantFacts {
    TenantFacts {
        name: tenant.name.clone(),
        email: tenant.login.email.clone(),
        password: tenant.login.password.clone(),
        api_key: tenant.api_key.clone().unwrap_or_default(),
        manage_key: tenant.manage_key.clone().unwrap_or_default(),
        adapters: tenant.adapters.clone(),
    }
}

fn process(process: &Process) -> ProcessFacts {
    ProcessFacts {
        name: process.spec.name,
        pid: process.pid,
        argv: process.spec.argv.clone(),
        env: process.spec.env.clone(),
    }
}

/// What is printed once all is up. The snippets start at the margin, so that they can be pasted.
impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nLorikeet is running.\n")?;
        writeln!(f, "  dashboard  {}", self.dashboard_url)?;
        writeln!(f, "  API        {}", self.api_base_url)?;
        writeln!(f, "  metrics    {}\n", self.metrics_urls.join("  "))?;
        writeln!(
            f,
            "  operator        {}  password {}",
            self.operator.email, self.operator.password
        )?;
        for tenant in &self.tenants {
            writeln!(f, "  {:<14}  {}  password {}", tenant.name, tenant.email, tenant.password)?;
            writeln!(f, "  {:<14}  API key {}", "", tenant.api_key)?;
            writeln!(f, "  {:<14}  adapters {}", "", tenant.adapters.join(", "))?;
        }
        let Some((tenant, model)) =
            self.tenants.first().and_then(|t| Some((t, t.adapters.first()?)))
        else {
            return Ok(());
        };
        let (url, key) = (&self.api_base_url, &tenant.api_key);
        write!(
            f,
            r#"
Ask {name}'s adapter from a shell:

curl {url}/chat/completions \
  -H "Authorization: Bearer {key}" \
  -H "Content-Type: application/json" \
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

or from Python (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{url}", api_key="{key}")
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
print(client.chat.completions.create(model="{model}", messages=messages).choices[0].message.content)

"#,
            name = tenant.name,
        )
    }
}

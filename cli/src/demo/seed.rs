//! Makes the demo's tenants as customers make theirs: through the public API. Each step is written
//! down or can be seen from outside, so a start after a kill in the middle goes on from there.

use super::home::Home;
use super::state::{State, Tenant};
use crate::client::adapter_files::AdapterFiles;
use crate::client::{Client, upload};
use anyhow::{Context, bail};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Verification and every node's acknowledgement.
const READY_WITHIN: Duration = Duration::from_secs(120);

pub struct Seeding<'a> {
    pub home: &'a Home,
    /// The control plane's address.
    pub url: &'a str,
    /// Where the trained adapters lie, one directory each.
    pub adapters: &'a Path,
}

#[derive(Deserialize)]
struct NewKey {
    key: String,
}

impl Seeding<'_> {
    pub async fn run(&self, state: &mut State) -> anyhow::Result<()> {
        for index in 0..state.tenants.len() {
            self.sign_up(state, index).await?;
            self.upload_adapters(&state.tenants[index]).await?;
        }
        Ok(())
    }

    async fn sign_up(&self, state: &mut State, index: usize) -> anyhow::Result<()> {
        let tenant = &state.tenants[index];
        if tenant.api_key.is_some() && tenant.manage_key.is_some() {
            return Ok(());
        }
        let name = tenant.name.clone();
        let session =
            self.session(tenant).await.with_context(|| format!("cannot sign {name} up"))?;
        let api_key = create_key(&session, "demo", &["inference"]).await?;
        let manage_key = create_key(&session, "demo (manage)", &["manage", "read"]).await?;
        let tenant = &mut state.tenants[index];
        tenant.api_key = Some(api_key);
        tenant.manage_key = Some(manage_key);
        state.save(self.home)?;
        eprintln!("  {name}: signed up");
        Ok(())
    }

    async fn session(&self, tenant: &Tenant) -> anyhow::Result<Client> {
        let login = &tenant.login;
        let sign_up = json!({
            "email": login.email, "password": login.password, "tenant_name": tenant.name,
        });
        match Client::anonymous(self.url)?.begin_session("/signup", &sign_up).await {
            Ok(session) => Ok(session),
            // An earlier start got this far.
            Err(error) if error.has_code("email_taken") => {
                let log_in = json!({ "email": login.email, "password": login.password });
                Ok(Client::anonymous(self.url)?.begin_session("/login", &log_in).await?)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn upload_adapters(&self, tenant: &Tenant) -> anyhow::Result<()> {
        let key = tenant.manage_key.as_deref().context("a signed-up tenant has a key")?;
        let client = Client::with_key(self.url, key)?;
        for name in &tenant.adapters {
            let context = || format!("{}'s adapter {name} is not served", tenant.name);
            if self.serve(&client, name).await.with_context(context)? {
                eprintln!("  {}: adapter {name} uploaded and ready", tenant.name);
            }
        }
        Ok(())
    }

    /// False when an earlier start has done it already.
    async fn serve(&self, client: &Client, name: &str) -> anyhow::Result<bool> {
        let found = upload::find(client, name).await?;
        if found.as_ref().is_some_and(|adapter| adapter.serving_version.is_some()) {
            return Ok(false);
        }
        let version = match found.and_then(|adapter| adapter.latest_version) {
            Some(version) if version.is_on_its_way() => version.version,
            _ => self.upload(client, name).await?,
        };
        let version = upload::wait(client, name, version, READY_WITHIN, |_| ()).await?;
        match version.error {
            None if version.state == "ready" => Ok(true),
            None => bail!("it is {}", version.state),
            Some(refusal) => bail!("{} ({})", refusal.message, refusal.code),
        }
    }

    async fn upload(&self, client: &Client, name: &str) -> anyhow::Result<u32> {
        let adapter = AdapterFiles::open(&self.adapters.join(name))
            .context("the demo's adapters are looked for in --kit")?;
        let upload = upload::announce(client, name, &adapter).await?;
        upload::send(client, &upload, &adapter, &Silent).await?;
        Ok(upload.version)
    }
}

async fn create_key(session: &Client, name: &str, scopes: &[&str]) -> anyhow::Result<String> {
    let body = json!({ "name": name, "scopes": scopes });
    let created: NewKey = session.send(Method::POST, "/keys", &body).await?;
    Ok(created.key)
}

/// The demo's adapters are small.
struct Silent;

impl upload::Progress for Silent {
    fn arrived(&self, _bytes: u64) {}
}

//! `lorikeet adapters`: push one, list them, switch one off and on.

use crate::cache;
use crate::client::adapter_files::AdapterFiles;
use crate::client::upload::{self, Progress, Upload};
use crate::client::{self, Client, Service};
use anyhow::{Context, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

#[derive(Subcommand)]
pub enum Command {
    /// Upload an adapter; an existing name gets its next version
    ///
    /// The directory is what PEFT's save_pretrained writes: adapter_config.json and
    /// adapter_model.safetensors. Configuration and header are checked before the weights are sent,
    /// and an upload that breaks off goes on where it was when the command is run again. Ends with
    /// 0 when all went well, with 1 and the reason when the adapter is refused.
    #[command(after_help = "Example:\n  export LORIKEET_URL=http://127.0.0.1:7700\n  \
        export LORIKEET_API_KEY=lk_live_...   # scope: manage\n  \
        lorikeet adapters push ./my-adapter --name support-desk --wait")]
    Push(Push),
    /// Show the tenant's adapters and their states
    #[command(after_help = "Example:\n  lorikeet adapters list --api-key lk_live_...")]
    List(List),
    /// Switch an adapter off: nodes refuse it and let go of its bytes, and its files are kept
    ///
    /// New requests are refused with 409 adapter_disabled, whatever version or alias they name;
    /// those that run end as usual.
    #[command(after_help = "Example:\n  lorikeet adapters disable support-desk")]
    Disable(Named),
    /// Switch an adapter on again
    #[command(after_help = "Example:\n  lorikeet adapters enable support-desk")]
    Enable(Named),
}

#[derive(clap::Args)]
pub struct Named {
    /// The adapter's name
    name: String,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
pub struct Push {
    /// The adapter's directory
    dir: PathBuf,
    /// What requests put into `model`: lower case letters, digits, `.`, `_`, `-`
    #[arg(long)]
    name: String,
    /// Wait until the adapter answers on every node, or is refused
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    #[command(flatten)]
    client: client::Args,
}

#[derive(clap::Args)]
pub struct List {
    #[command(flatten)]
    client: client::Args,
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Push(args) => push(args).await,
        Command::List(args) => list(args).await,
        Command::Disable(args) => set_disabled(args, true).await,
        Command::Enable(args) => set_disabled(args, false).await,
    }
}

/// It becomes a part of an address.
fn check_name(name: &str) -> anyhow::Result<()> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '?', '#', '%']) {
        bail!("`{name}` is no name: use lower case letters, digits, `.`, `_` and `-`");
    }
    Ok(())
}

async fn set_disabled(args: Named, disabled: bool) -> anyhow::Result<()> {
    check_name(&args.name)?;
    let client = Client::with_key(&args.client.url, &args.client.api_key)?;
    let (action, now) = if disabled { ("disable", "disabled") } else { ("enable", "enabled") };
    let path = format!("/adapters/{}/{action}", args.name);
    client.send_only(Method::POST, &path, &json!({})).await?;
    println!("{} is {now}", args.name);
    Ok(())
}

async fn push(args: Push) -> anyhow::Result<()> {
    check_name(&args.name)?;
    let adapter = AdapterFiles::open(&args.dir)?;
    let client = Client::with_key(&args.client.url, &args.client.api_key)?;
    let resume = Resume::for_push(&args, &adapter)?;
    let upload = match resume.reopen(&client).await {
        Some(upload) => upload,
        None => upload::announce(&client, &args.name, &adapter)
            .await
            .with_context(|| format!("{} was not accepted", args.name))?,
    };
    resume.remember(&upload)?;

    let bar = Bar::new(adapter.bytes())?;
    upload::send(&client, &upload, &adapter, &bar)
        .await
        .context("the upload broke off; run the same command again to go on from there")?;
    bar.0.finish_and_clear();
    resume.forget();
    println!("{} version {} uploaded", args.name, upload.version);
    if !args.wait {
        return Ok(());
    }
    let limit = Duration::from_secs(args.timeout);
    let show = |state: &str| eprintln!("  {state}");
    let version = upload::wait(&client, &args.name, upload.version, limit, show).await?;
    if let Some(refusal) = version.error {
        bail!("{} version {} is refused: {}", args.name, version.version, refusal.message);
    }
    if version.state != "ready" {
        bail!("{} version {} is {}", args.name, version.version, version.state);
    }
    if ask_once(&client, &args).await? {
        println!("{} answers", args.name);
    } else {
        println!(
            "{} is ready (this key lacks the scope `inference`, so it was not asked)",
            args.name
        );
    }
    Ok(())
}

/// One token from the adapter; false when the key is not for that.
async fn ask_once(client: &Client, args: &Push) -> anyhow::Result<bool> {
    let Service { api_base_url, .. } = client.service().await?;
    let response = client
        .http
        .post(format!("{api_base_url}/chat/completions"))
        .bearer_auth(&args.client.api_key)
        .json(&json!({
            "model": args.name,
            "messages": [{ "role": "user", "content": "Hello" }],
            "max_tokens": 1,
        }))
        .send()
        .await
        .with_context(|| format!("no node answers at {api_base_url}"))?;
    match response.status() {
        status if status.is_success() => Ok(true),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(false),
        status => bail!("{} does not answer ({status}): {}", args.name, response.text().await?),
    }
}

#[derive(Deserialize)]
struct Adapters {
    adapters: Vec<upload::Adapter>,
}

async fn list(args: List) -> anyhow::Result<()> {
    let client = Client::with_key(&args.client.url, &args.client.api_key)?;
    let Adapters { adapters } = client.get("/adapters").await?;
    if adapters.is_empty() {
        println!("no adapters yet: `lorikeet adapters push DIR --name NAME` uploads one");
    }
    for upload::Adapter { name, serving_version, latest_version, aliases, disabled } in adapters {
        let serving = match serving_version {
            Some(version) => format!("version {version} answers"),
            None if disabled => "disabled".into(),
            None => "answers not yet".into(),
        };
        let latest = match latest_version {
            Some(latest) if serving_version != Some(latest.version) && !disabled => {
                let reason = latest.error.map(|e| format!(": {}", e.message)).unwrap_or_default();
                format!("; version {} is {}{reason}", latest.version, latest.state)
            }
            _ => String::new(),
        };
        let aliases = aliases.iter().map(|a| format!("; {} is version {}", a.alias, a.version));
        println!("{name:<32} {serving}{latest}{}", aliases.collect::<String>());
    }
    Ok(())
}

struct Bar(ProgressBar);

impl Bar {
    fn new(bytes: u64) -> anyhow::Result<Self> {
        let style = "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}";
        Ok(Self(ProgressBar::new(bytes).with_style(ProgressStyle::with_template(style)?)))
    }
}

impl Progress for Bar {
    fn arrived(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

/// Remembers an unfinished upload in the cache directory, for the next run of the same command on
/// unchanged files.
struct Resume {
    file: PathBuf,
}

impl Resume {
    fn for_push(args: &Push, adapter: &AdapterFiles) -> anyhow::Result<Self> {
        let mut identity = Sha256::new();
        let mut add = |part: &str| {
            identity.update((part.len() as u64).to_le_bytes());
            identity.update(part);
        };
        add(&args.client.url);
        add(&args.client.api_key);
        add(&args.name);
        for file in &adapter.files {
            add(&absolute(&file.path)?);
            let modified = file.path.metadata()?.modified()?.duration_since(UNIX_EPOCH)?;
            add(&format!("{} {}", file.bytes, modified.as_nanos()));
        }
        let name: String = identity.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { file: cache::dir()?.join("uploads").join(name) })
    }

    async fn reopen(&self, client: &Client) -> Option<Upload> {
        let id = std::fs::read_to_string(&self.file).ok()?;
        // Completed or gone since: it is announced anew.
        upload::reopen(client, id.trim()).await.ok().flatten()
    }

    fn remember(&self, upload: &Upload) -> anyhow::Result<()> {
        let dir = self.file.parent().context("a file in a directory")?;
        std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(&self.file, &upload.upload_id))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    fn forget(&self) {
        // Left over, it names a completed upload, which is announced anew.
        let _ = std::fs::remove_file(&self.file);
    }
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    Ok(path.canonicalize()?.to_string_lossy().into_owned())
}

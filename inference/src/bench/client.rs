//! The load: requests of which so many are always under way.

use super::{BenchConfig, Loading, LoadingBy};
use crate::adapters::AdapterManifest;
use crate::engine::{EngineEvent, EngineHandle, EngineRequest};
use crate::share::TenantShare;
use anyhow::Context;
use lorikeet_compute::backend::cuda::check::Random;
use lorikeet_compute::sampling::{LogitRules, SamplingParams};
use lorikeet_contract::{RequestId, TenantId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// When a request was handed over, and when its tokens came.
pub(super) struct Timeline {
    pub submitted: Instant,
    pub tokens: Vec<Instant>,
}

/// One of the requests that are always under way.
pub(super) struct Client {
    pub engine: EngineHandle,
    pub config: Arc<BenchConfig>,
    pub adapters: Vec<Arc<AdapterManifest>>,
    pub next: Arc<AtomicU64>,
    /// No request begins after it; those under way then end.
    pub end: Instant,
}

impl Client {
    pub async fn run(self) -> anyhow::Result<Vec<Timeline>> {
        let mut timelines = Vec::new();
        while Instant::now() < self.end {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let adapter = match self.adapters.len() {
                0 => None,
                count => Some(self.adapters[index as usize % count].clone()),
            };
            timelines.push(request(&self.engine, &self.config, adapter, index).await?);
        }
        Ok(timelines)
    }
}

/// Runs one request to its end.
pub(super) async fn request(
    engine: &EngineHandle,
    config: &BenchConfig,
    adapter: Option<Arc<AdapterManifest>>,
    index: u64,
) -> anyhow::Result<Timeline> {
    let mut random = Random::new(config.seed.rotate_left(32) ^ (index + 1));
    let vocabulary = u64::from(config.spec.vocab_size);
    let prompt = (0..config.prompt_tokens).map(|_| random.below(vocabulary) as u32).collect();
    let tenant = TenantId::from_uuid(uuid::Uuid::nil());
    let mut tokens = Vec::with_capacity(config.output_tokens as usize);
    let submitted = Instant::now();
    let token = || tokens.push(Instant::now());
    ask(engine, tenant, adapter, prompt, config.output_tokens, token).await?;
    Ok(Timeline { submitted, tokens })
}

/// Asks the engine for so many tokens, the likeliest, and tells of each as it comes.
pub(super) async fn ask(
    engine: &EngineHandle,
    tenant: TenantId,
    adapter: Option<Arc<AdapterManifest>>,
    prompt: Vec<u32>,
    output_tokens: u32,
    mut token: impl FnMut(),
) -> anyhow::Result<()> {
    let (sender, mut events) = mpsc::channel(output_tokens as usize + 3);
    let request = EngineRequest {
        id: RequestId::new(),
        tenant,
        share: TenantShare::default(),
        key: None,
        adapter,
        prompt,
        params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        rules: LogitRules::default(),
        guide: None,
        max_tokens: output_tokens,
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        scores_prompt: false,
        deadline: None,
        events: sender,
    };
    engine.try_submit(request).context("the engine took no request")?;
    while let Some(event) = events.recv().await {
        match event {
            EngineEvent::Token(_) => token(),
            EngineEvent::Failed { error, .. } => anyhow::bail!("a request failed: {error}"),
            EngineEvent::Started { .. } | EngineEvent::Prompt(_) | EngineEvent::Finished { .. } => {
            }
        }
    }
    Ok(())
}

/// Brings adapters to the device beside the load, one after the other.
pub(super) struct Loader {
    pub engine: EngineHandle,
    pub config: BenchConfig,
    pub adapters: Vec<Arc<AdapterManifest>>,
    pub loading: Loading,
    pub end: Instant,
}

/// Milliseconds to the first token of requests whose adapter had to be loaded, or of a load by itself;
/// and of requests just after them, whose adapter was there.
#[derive(Default)]
pub(super) struct Loaded {
    pub cold: Vec<f64>,
    pub resident: Vec<f64>,
}

impl Loader {
    pub async fn run(self) -> anyhow::Result<Loaded> {
        let config = BenchConfig { output_tokens: 1, ..self.config };
        let mut loaded = Loaded::default();
        let mut index = 1 << 40;
        for adapter in self.adapters.iter().cycle() {
            if Instant::now() >= self.end {
                break;
            }
            match self.loading.by {
                LoadingBy::WarmUp => {
                    let share = TenantShare::default();
                    let took = self.engine.warm_up(adapter.clone(), share).await?;
                    loaded.cold.push(took.as_secs_f64() * 1e3);
                }
                LoadingBy::Request => {
                    for times in [&mut loaded.cold, &mut loaded.resident] {
                        index += 1;
                        let adapter = Some(adapter.clone());
                        let timeline = request(&self.engine, &config, adapter, index).await?;
                        let first = timeline.tokens.first().context("a request got no token")?;
                        times.push((*first - timeline.submitted).as_secs_f64() * 1e3);
                    }
                }
            }
            tokio::time::sleep(self.loading.pause).await;
        }
        Ok(loaded)
    }
}

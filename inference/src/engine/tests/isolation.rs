//! Many tenants' trained adapters on the real model, more than host memory and device hold, while
//! requests are cancelled and names get other bytes: every answer is the one that its request gets
//! alone. `LORIKEET_ISOLATION_REQUESTS` asks for more requests than the few hundred of every run.

use super::harness::request;
use super::kit::{MARGIN, start, store};
use crate::adapters::{AdapterManifest, ResidencyConfig};
use crate::engine::{EngineEvent, EngineHandle, FinishReason};
use crate::fixture::packed_adapter;
use lorikeet_compute::backend::SampledToken;
use lorikeet_kit::Case;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

const REQUESTS: usize = 300;
const AT_ONCE: usize = 32;
const MAX_TOKENS: u32 = 8;
/// Names, each of a tenant of its own.
const NAMES: usize = 12;
/// A name gets other bytes after so many requests.
const RELOAD_EVERY: usize = 20;
/// One request in so many is cancelled.
const CANCEL_ONE_IN: u32 = 8;
/// How far a probability may be off in bf16 (see the kit's README).
const PROBABILITY: f64 = 0.1;

/// What a name may stand for.
struct Content {
    name: String,
    /// By tenant; none for the base model.
    manifests: Vec<Arc<AdapterManifest>>,
    cases: Vec<Case>,
}

/// Every adapter of the kit that can be served and is at hand, for every tenant, and the base.
fn contents(root: &Path) -> Vec<Content> {
    let base = lorikeet_kit::reference(None).cases;
    let mut contents = vec![Content { name: "base".into(), manifests: Vec::new(), cases: base }];
    for entry in lorikeet_kit::index().adapters.into_iter().filter(|a| a.required) {
        let Some((header, file)) = packed_adapter(&entry.adapter) else { continue };
        let of = |tenant: usize| store(root, tenant as u8, &entry.adapter, &header, &file);
        let cases = lorikeet_kit::reference(Some(&entry.adapter)).cases;
        let manifests = (0..NAMES).map(of).collect();
        contents.push(Content { name: entry.adapter, manifests, cases });
    }
    contents
}

/// Ends a request early: its client gives up, or goes away.
#[derive(Clone, Copy)]
enum Cancel {
    GiveUp(Duration),
    GoAway(Duration),
}

struct Asked {
    tenant: usize,
    content: usize,
    case: usize,
    cancel: Option<Cancel>,
}

#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    compared: usize,
    cancelled: usize,
}

/// One request from its submission to its end.
async fn ask(handle: EngineHandle, contents: Arc<Vec<Content>>, asked: Asked) -> Tally {
    let content = &contents[asked.content];
    let case = &content.cases[asked.case];
    let adapter = content.manifests.get(asked.tenant);
    let (mut request, _) = request(asked.tenant as u8, adapter, &case.prompt_ids, MAX_TOKENS);
    let (sender, mut events) = mpsc::channel(MAX_TOKENS as usize + 2);
    request.events = sender;
    request.ignore_eos = false;
    request.logprobs = Some(20);
    let id = request.id;
    handle.try_submit(request).expect("there is room");
    let mut tokens = Vec::new();
    let patience = match asked.cancel {
        Some(Cancel::GiveUp(after) | Cancel::GoAway(after)) => after,
        None => Duration::from_secs(600),
    };
    let read = async {
        while let Some(event) = events.recv().await {
            match event {
                EngineEvent::Started { .. } | EngineEvent::Prompt(_) => {}
                EngineEvent::Token(token) => tokens.push(token),
                end => return Some(end),
            }
        }
        None
    };
    let mut end = tokio::time::timeout(patience, read).await;
    if end.is_err() && matches!(asked.cancel, Some(Cancel::GiveUp(_))) {
        handle.cancel(id);
        while let Some(event) = events.recv().await {
            match event {
                EngineEvent::Token(token) => tokens.push(token),
                EngineEvent::Started { .. } | EngineEvent::Prompt(_) => {}
                last => end = Ok(Some(last)),
            }
        }
    }
    drop(events);
    let name = format!("{} {} of tenant {}", content.name, case.id, asked.tenant);
    let compared = assert_as_alone(&name, case, &tokens);
    match end {
        Ok(Some(EngineEvent::Finished { reason: FinishReason::Cancelled, .. })) | Err(_) => {
            assert!(asked.cancel.is_some(), "{name}: nobody cancelled it");
            Tally { cancelled: 1, ..Tally::default() }
        }
        Ok(Some(EngineEvent::Finished { .. })) => {
            let whole = case.tokens.len().min(MAX_TOKENS as usize);
            assert!(!compared || tokens.len() == whole, "{name}: {} tokens", tokens.len());
            Tally { answered: 1, compared: usize::from(compared), cancelled: 0 }
        }
        other => panic!("{name}: {other:?}"),
    }
}

/// Compares what has come of an answer with its reference: the tokens where the margin is wide
/// enough, which it says, and the likeliest tokens' probabilities wherever the text before is the
/// reference's.
fn assert_as_alone(name: &str, case: &Case, tokens: &[SampledToken]) -> bool {
    let is_clear = case.min_margin >= MARGIN;
    for (at, token) in tokens.iter().enumerate() {
        let (Some(expected), Some(likeliest)) = (case.tokens.get(at), case.top5.get(at)) else {
            break;
        };
        for (id, logprob) in likeliest {
            let listed = token.top_logprobs.iter().find(|(other, _)| other == id);
            let got = listed.map_or(0.0, |(_, logprob)| f64::from(*logprob).exp());
            let off = (got - logprob.exp()).abs();
            assert!(off < PROBABILITY, "{name}: token {at} is off by {off}");
        }
        if token.token != *expected {
            assert!(!is_clear, "{name}: token {at} is {} and not {expected}", token.token);
            break;
        }
    }
    is_clear
}

fn random_cancel(random: &mut StdRng) -> Option<Cancel> {
    if !random.random_ratio(1, CANCEL_ONE_IN) {
        return None;
    }
    let after = Duration::from_millis(random.random_range(0..400));
    Some(if random.random() { Cancel::GiveUp(after) } else { Cancel::GoAway(after) })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_its_own_while_adapters_are_swapped_cancelled_and_replaced() {
    let directory = TempDir::new().expect("a directory");
    let contents = Arc::new(contents(directory.path()));
    let mut sizes: Vec<u64> =
        contents.iter().filter_map(|c| Some(c.manifests.first()?.bytes)).collect();
    sizes.sort_unstable();
    let room = sizes.iter().rev().take(3).sum();
    assert!(sizes.len() > 3 && room < sizes.iter().sum::<u64>());
    let residency = ResidencyConfig {
        host_bytes: room,
        disk_bytes: 2 * sizes.iter().sum::<u64>(),
        quantum: Duration::from_millis(100),
        ..ResidencyConfig::default()
    };
    let handle = start(directory.path(), room, residency);
    let requests = std::env::var("LORIKEET_ISOLATION_REQUESTS")
        .map_or(REQUESTS, |count| count.parse().expect("a number"));

    let mut random = StdRng::seed_from_u64(11);
    let mut names: Vec<usize> =
        (0..NAMES).map(|_| random.random_range(0..contents.len())).collect();
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for number in 0..requests {
        let place = at_once.clone().acquire_owned().await.expect("it is never closed");
        let tenant = random.random_range(0..NAMES);
        if number % RELOAD_EVERY == 0 {
            // The name means other bytes from now on; requests under way keep theirs.
            let before =
                std::mem::replace(&mut names[tenant], random.random_range(0..contents.len()));
            if let Some(manifest) = contents[before].manifests.get(tenant)
                && before != names[tenant]
            {
                handle.forget(manifest.key).await;
            }
        }
        let content = names[tenant];
        let case = random.random_range(0..contents[content].cases.len());
        let asked = Asked { tenant, content, case, cancel: random_cancel(&mut random) };
        let asking = ask(handle.clone(), contents.clone(), asked);
        running.spawn(async move {
            let tally = asking.await;
            drop(place);
            tally
        });
    }
    let mut tally = Tally::default();
    while let Some(ended) = running.join_next().await {
        let Tally { answered, compared, cancelled } = ended.expect("no assertion failed");
        tally.answered += answered;
        tally.compared += compared;
        tally.cancelled += cancelled;
    }
    assert_eq!(tally.answered + tally.cancelled, requests, "{tally:?}");
    assert!(tally.compared > requests / 2 && tally.cancelled > 0, "{tally:?}");
    let report = handle.stats().residency;
    for tier in [report.device, report.host, report.disk] {
        assert!(tier.used <= tier.capacity);
    }
    handle.shutdown().await;
    println!("{requests} requests: {tally:?}");
}

//! More streams than a GPU runs rows, from one customer, all at once.

use super::control_plane::{ControlPlane, Seen};
use super::harness::{Customer, Node, chat, text};
use super::sse::{self, Events};
use super::telemetry::metrics;
use crate::config::{Config, Device};
use lorikeet_compute::backend::sim::{SimConfig, SimCost};
use lorikeet_contract::link::FinishReason;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::time::Duration;
use tokio::task::JoinSet;

const STREAMS: usize = 2_000;
const TOKENS: u32 = 32;

/// Both ends of each connection are this process's.
fn allow_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let enough = 2 * STREAMS as u64 + 500;
    assert!(maximum.is_none_or(|maximum| maximum >= enough), "{enough} open files are needed");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the maximum");
}

fn roomy(config: &mut Config) {
    // Long enough a step for all to be there before the first has ended.
    let cost = SimCost { step: Duration::from_millis(100), ..SimCost::FREE };
    let mut sim = SimConfig { cost, ..SimConfig::default() };
    sim.capacity.num_blocks = 16 * 1024;
    config.device = Device::Sim(sim);
    config.scheduler.max_num_seqs = STREAMS;
    config.scheduler.max_num_batched_tokens = 2048;
    // One tenant does not get all of them.
    config.max_requests = STREAMS * 5 / 4;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_streams_at_once_get_every_token_and_are_billed_for_it() {
    allow_open_files();
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let node = Node::ready(&control_plane, roomy).await;
    let more = json!({ "max_tokens": TOKENS, "ignore_eos": true });
    let alone = node.chat(&customer, more.clone()).await;
    let mut body = chat(more);
    body["stream"] = json!(true);
    let client = reqwest::Client::new();
    let ask = client.post(node.url("/v1/chat/completions")).bearer_auth(customer.key.reveal());
    let ask = ask.json(&body);
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let ask = ask.try_clone().expect("its body is whole");
        streams.spawn(async move {
            let mut events = Events::of(ask.send().await.expect("an answer"));
            sse::text(&events.rest().await)
        });
    }
    let mut most = 0.0;
    while !streams.is_empty() {
        tokio::select! {
            stream = streams.join_next() => {
                let streamed = stream.expect("one").expect("no panic");
                assert_eq!(streamed, text(&alone));
            }
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                most = f64::max(most, metrics(&node).await.sum("lorikeet_requests_running"));
            }
        }
    }
    println!("of {STREAMS} streams, at most {most} were seen to run at once");
    let billed = |seen: &Seen| seen.finals_with(FinishReason::Length).len();
    let seen = control_plane.until("all are billed", |seen| billed(seen) == STREAMS + 1).await;
    let tokens: u64 = seen.finals().iter().map(|record| record.completion_tokens).sum();
    assert_eq!(tokens, (STREAMS as u64 + 1) * u64::from(TOKENS));
    node.stop().await;
}

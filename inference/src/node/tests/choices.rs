//! Several answers to one request, and what shapes each of them.

use super::harness::{chat, node_of_one, text};
use super::sse::Events;
use crate::config::{Config, Device};
use crate::fixture::base_model;
use lorikeet_compute::backend::sim::{SimConfig, SimCost};
use lorikeet_compute::model::Specials;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().expect("choices");
    choices.iter().map(|c| c["message"]["content"].as_str().expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_choices_have_seeds_of_their_own_and_one_prompt_that_is_counted_once() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let one = node.chat(&customer, json!({})).await;
    let three = node.chat(&customer, json!({ "n": 3 })).await;
    let again = node.chat(&customer, json!({ "n": 3 })).await;
    assert_eq!(texts(&three)[0], text(&one), "the first choice is that of a request for one");
    assert_eq!(texts(&three), texts(&again));
    assert_eq!(texts(&three).into_iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_eq!(three["usage"]["completion_tokens"], 24);

    let options = json!({ "include_usage": true });
    let streamed = chat(json!({ "n": 3, "stream": true, "stream_options": options }));
    let chunks = Events::of(node.post(customer.key.reveal(), &streamed).await).rest().await;
    let mut answers = [const { String::new() }; 3];
    let mut endings = [const { Vec::new() }; 3];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices")) {
        let index = choice["index"].as_u64().expect("an index") as usize;
        answers[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        endings[index].extend(choice["finish_reason"].as_str());
    }
    assert_eq!(answers.to_vec(), texts(&three));
    assert_eq!(endings, [["length"], ["length"], ["length"]]);
    assert_eq!(chunks.last().expect("counts")["usage"], three["usage"]);

    let seen = control_plane.until("all finals", |seen| seen.finals().len() == 4).await;
    let billed: Vec<_> = seen.finals().iter().map(|f| f.completion_tokens).collect();
    assert_eq!(billed, [8, 24, 24, 24]);
    assert!(seen.finals().iter().all(|f| three["usage"]["prompt_tokens"] == f.prompt_tokens));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn choices_compute_their_prompt_once() {
    let cost = SimCost { row: Duration::from_millis(1), ..SimCost::FREE };
    let per_row = |config: &mut Config| {
        config.device = Device::Sim(SimConfig { cost, ..SimConfig::default() });
    };
    let (_control_plane, node, customer) = node_of_one(per_row).await;
    let timed = async |what: &str, n: u32| {
        let content = format!("{what} {}", "lorikeets ".repeat(300));
        let messages = json!([{ "role": "user", "content": content }]);
        let started = Instant::now();
        node.chat(&customer, json!({ "messages": messages, "n": n, "max_tokens": 2 })).await;
        started.elapsed()
    };
    let (one, eight) = (timed("first", 1).await, timed("second", 8).await);
    assert!(eight < one * 3, "{eight:?} for eight, {one:?} for one");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_string_ends_its_own_choice_only() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let free = node.chat(&customer, json!({ "n": 2, "max_tokens": 16 })).await;
    let (first, second) = (texts(&free)[0], texts(&free)[1]);
    let from = first.char_indices().nth(first.chars().count() / 2).expect("a character").0;
    let stop: String = first[from..].chars().take(6).collect();
    assert!(!second.contains(&stop));
    let stopped = node.chat(&customer, json!({ "n": 2, "max_tokens": 16, "stop": stop })).await;
    assert_eq!(texts(&stopped), [&first[..first.find(&stop).expect("it is there")], second]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][1]["finish_reason"], "length");

    let all = json!({ "n": 2, "max_tokens": 16, "stop": stop, "min_tokens": 16 });
    let unstopped = node.chat(&customer, all).await;
    assert_eq!(texts(&unstopped), [first, second], "it waits for the least number of tokens");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bias_and_penalties_reach_the_draw() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let tokenizer = &base_model().tokenizer;
    let token = tokenizer.encode("parrot", Specials::AsText).expect("tokens")[0];
    let piece = String::from_utf8_lossy(tokenizer.token_bytes(token).expect("a token"));
    let biased = node.chat(&customer, json!({ "logit_bias": { token.to_string(): 100 } })).await;
    assert_eq!(text(&biased), piece.repeat(8));
    let penalty = json!({ "logit_bias": { token.to_string(): 45 }, "presence_penalty": 2 });
    let penalised = node.chat(&customer, penalty).await;
    assert_ne!(text(&penalised), piece.repeat(8));
    let response = node.post(customer.key.reveal(), &chat(json!({ "store": true }))).await;
    assert_eq!(response.headers()["x-lorikeet-ignored-fields"], "store");
    node.stop().await;
}

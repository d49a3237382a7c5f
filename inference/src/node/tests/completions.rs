use super::control_plane::ControlPlane;
use super::harness::{Customer, MODEL, Node, node_of_one, real_device};
use super::sse::Events;
use crate::config::{Config, Device};
use crate::fixture::base_model;
use lorikeet_compute::backend::sim::{SimConfig, SimCost};
use lorikeet_compute::model::Specials;
use reqwest::StatusCode;
use serde_json::{Value, json};

const PROMPT: &str = "Lorikeets are small parrots that";

struct Rig {
    control_plane: ControlPlane,
    node: Node,
    customer: Customer,
}

impl Rig {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn on(device: Device) -> Self {
        Self::with(|config| config.device = device).await
    }

    async fn with(tweak: impl FnOnce(&mut Config)) -> Self {
        let (control_plane, node, customer) = node_of_one(tweak).await;
        Self { control_plane, node, customer }
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let response = self.node.post_to(path, self.customer.key.reveal(), &body).await;
        (response.status(), response.json().await.expect("JSON"))
    }

    async fn complete(&self, more: Value) -> Value {
        let (status, body) = self.post("/v1/completions", completion(more)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }
}

fn completion(more: Value) -> Value {
    let mut body = json!({ "model": MODEL, "prompt": PROMPT, "seed": 1 });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().expect("choices");
    choices.iter().map(|c| c["text"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_answered_alike_as_text_and_as_tokens_alone_and_in_a_list() {
    let rig = Rig::start().await;
    let tokens = base_model().tokenizer.encode(PROMPT, Specials::AsText).expect("tokens");
    let one = rig.complete(json!({})).await;
    assert_eq!((&one["object"], &one["model"]), (&json!("text_completion"), &json!(MODEL)));
    assert_eq!(one["usage"]["prompt_tokens"], tokens.len());
    assert_eq!(one["usage"]["completion_tokens"], 16, "the default of this endpoint");
    assert_eq!(texts(&rig.complete(json!({ "prompt": tokens })).await), texts(&one));

    let list = rig.complete(json!({ "prompt": [PROMPT, "Parrots"], "n": 2 })).await;
    assert_eq!(texts(&list).len(), 4);
    assert_eq!(texts(&list)[0], texts(&one)[0]);
    assert_eq!(list["usage"]["completion_tokens"], 64);
    let second = rig.complete(json!({ "prompt": "Parrots", "n": 2 })).await;
    assert_eq!(texts(&list)[2..], texts(&second), "each prompt as if alone");

    let echoed = rig.complete(json!({ "echo": true })).await;
    assert_eq!(texts(&echoed)[0], format!("{PROMPT}{}", texts(&one)[0]));
    let body = completion(json!({ "echo": true, "stream": true }));
    let key = rig.customer.key.reveal();
    let response = rig.node.post_to("/v1/completions", key, &body).await;
    let chunks = Events::of(response).rest().await;
    let streamed: String = chunks.iter().flat_map(texts).collect();
    assert_eq!(streamed, texts(&echoed)[0]);
    let last = chunks.last().expect("chunks");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    rig.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_stand_in_columns_beside_the_text() {
    let rig = Rig::start().await;
    let answer = rig.complete(json!({ "logprobs": 2, "max_tokens": 6 })).await;
    let columns = &answer["choices"][0]["logprobs"];
    let tokens = columns["tokens"].as_array().expect("tokens");
    let joined: String = tokens.iter().map(|t| t.as_str().expect("text")).collect();
    assert_eq!(joined, texts(&answer)[0]);
    for column in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(columns[column].as_array().expect("a column").len(), tokens.len());
    }
    assert_eq!(columns["text_offset"][0], 0);
    let first = tokens[0].as_str().expect("text").chars().count();
    assert_eq!(columns["text_offset"][1], first);
    assert!(columns["top_logprobs"][0][tokens[0].as_str().expect("text")].is_number());
    rig.node.stop().await;
}

/// Log probabilities of a prompt's tokens are those that they had when they were made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echoed_prompt_has_log_probabilities_of_its_own_also_by_the_real_model() {
    let encode =
        |text: &str| base_model().tokenizer.encode(text, Specials::AsText).expect("tokens");
    let script = encode(" live in the trees of Australia.");
    let made = script.len();
    let scripted = SimConfig { script, cost: SimCost::FREE, ..SimConfig::default() };
    for device in [Device::Sim(scripted), real_device()] {
        // In bf16, a token's number depends a little on how many rows are computed together.
        let near = if matches!(device, Device::Cuda(_)) { 0.1 } else { 1e-3 };
        let rig = Rig::on(device).await;
        let ask = async |more: Value| {
            let mut body = json!({ "logprobs": 1, "max_tokens": made, "temperature": 0 });
            for (name, value) in more.as_object().expect("an object") {
                body[name] = value.clone();
            }
            rig.complete(body).await
        };
        let before = ask(json!({})).await;
        let given = encode(PROMPT).len();
        let echoed = ask(json!({ "echo": true, "n": 2 })).await;
        assert_eq!(echoed["usage"]["prompt_tokens"], given);
        for choice in echoed["choices"].as_array().expect("choices") {
            let columns = &choice["logprobs"];
            let names = columns["tokens"].as_array().expect("tokens");
            let joined: String = names.iter().map(|t| t.as_str().expect("text")).collect();
            assert_eq!(joined, format!("{PROMPT}{}", texts(&before)[0]));
            assert_eq!((choice["text"].as_str(), names.len()), (Some(&*joined), given + made));
            let logprobs = columns["token_logprobs"].as_array().expect("numbers");
            assert!(logprobs[0].is_null() && logprobs[1..].iter().all(Value::is_number));
            assert!(columns["top_logprobs"][0].is_null() && columns["top_logprobs"][1].is_object());
            assert_eq!(columns["text_offset"][0], 0);
            assert_eq!(columns["text_offset"][given], PROMPT.chars().count());
        }
        // What was made is a part of the prompt now.
        let all = [encode(PROMPT), encode(&texts(&before)[0])].concat();
        assert_eq!(all.len(), given + made);
        let scored = ask(json!({ "prompt": all, "max_tokens": 1, "echo": true })).await;
        let number = |answer: &Value, at: usize| {
            answer["choices"][0]["logprobs"]["token_logprobs"][at].as_f64().expect("a number")
        };
        for at in 0..made {
            let (was, is) = (number(&before, at), number(&scored, given + at));
            assert!((was - is).abs() < near, "{was} and {is}");
        }
        let streamed = completion(json!({ "echo": true, "logprobs": 1, "stream": true }));
        let key = rig.customer.key.reveal();
        let chunks =
            Events::of(rig.node.post_to("/v1/completions", key, &streamed).await).rest().await;
        assert_eq!(texts(&chunks[0])[0], PROMPT);
        assert_eq!(
            chunks[0]["choices"][0]["logprobs"]["tokens"].as_array().map(Vec::len),
            Some(given)
        );
        rig.node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_alone_is_scored_as_it_is_before_an_answer_and_no_token_is_billed() {
    let rig = Rig::on(real_device()).await;
    let score = json!({ "echo": true, "logprobs": 2, "n": 2 });
    let ask = async |max_tokens: u32, stream: bool| {
        let mut body = completion(score.clone());
        body["max_tokens"] = json!(max_tokens);
        body["stream"] = json!(stream);
        rig.node.post_to("/v1/completions", rig.customer.key.reveal(), &body).await
    };
    let answered: Value = ask(1, false).await.json().await.expect("JSON");
    let alone: Value = ask(0, false).await.json().await.expect("JSON");
    let given = alone["usage"]["prompt_tokens"].as_u64().expect("a number") as usize;
    assert_eq!(alone["usage"]["completion_tokens"], 0);
    for choice in 0..2 {
        let (alone, answered) = (&alone["choices"][choice], &answered["choices"][choice]);
        assert_eq!((&alone["text"], &alone["finish_reason"]), (&json!(PROMPT), &json!("length")));
        for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let [alone, answered] = [alone, answered].map(|of| &of["logprobs"][column]);
            let answered = answered.as_array().expect("a column");
            assert_eq!((alone, answered.len()), (&json!(answered[..given]), given + 1));
        }
    }
    let chunks = Events::of(ask(0, true).await).rest().await;
    let streamed: String = chunks.iter().flat_map(texts).collect();
    assert_eq!(streamed, PROMPT.repeat(2));
    let plain = rig.complete(json!({ "max_tokens": 0 })).await;
    assert_eq!((&*texts(&plain)[0], &plain["usage"]["completion_tokens"]), ("", &json!(0)));
    let seen = rig.control_plane.until("all are billed", |s| s.finals().len() == 4).await;
    let billed: Vec<u64> = seen.finals().iter().map(|record| record.completion_tokens).collect();
    assert_eq!(billed, [2, 0, 0, 0]);
    rig.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_and_messages_become_the_tokens_that_a_request_would_have_and_text_again() {
    let rig = Rig::start().await;
    let (_, answer) = rig.post("/tokenize", json!({ "model": MODEL, "prompt": PROMPT })).await;
    let tokens = base_model().tokenizer.encode(PROMPT, Specials::AsText).expect("tokens");
    assert_eq!(answer["tokens"], json!(tokens));
    assert_eq!(answer["count"], tokens.len());
    assert_eq!(answer["max_model_len"], base_model().weights.config.spec.context_length);
    let (_, text) = rig.post("/detokenize", json!({ "model": MODEL, "tokens": tokens })).await;
    assert_eq!(text["prompt"], PROMPT);

    let messages = json!([{ "role": "user", "content": PROMPT }]);
    let (_, counted) = rig.post("/tokenize", json!({ "model": MODEL, "messages": messages })).await;
    let body = json!({ "model": MODEL, "messages": messages, "max_tokens": 1 });
    let (_, asked) = rig.post("/v1/chat/completions", body).await;
    assert_eq!(counted["count"], asked["usage"]["prompt_tokens"]);

    for (path, body, param) in [
        ("/tokenize", json!({ "model": MODEL }), "prompt"),
        ("/tokenize", json!({ "model": MODEL, "prompt": "a", "messages": messages }), "prompt"),
        ("/tokenize", json!({ "prompt": "a" }), "model"),
        ("/detokenize", json!({ "model": MODEL, "tokens": [u32::MAX] }), "tokens"),
        ("/v1/completions", completion(json!({ "prompt": "" })), "prompt"),
        ("/v1/completions", completion(json!({ "prompt": ["a", ""] })), "prompt"),
    ] {
        let (status, error) = rig.post(path, body).await;
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!(param)));
    }
    let (status, _) = rig.post("/tokenize", json!({ "model": "other", "prompt": "a" })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    rig.node.stop().await;
}

//! Nothing that a customer sends or gets may be read in a log, at whatever level, in a metric or a trace.

use super::collector::Collector;
use super::control_plane::ControlPlane;
use super::harness::{Customer, MODEL, Node, adapter, chat, text};
use super::sse::{self, Events};
use crate::fixture::base_model;
use lorikeet_compute::model::Specials;
use lorikeet_contract::key::ApiKey;
use lorikeet_contract::link::{AdapterState, revocation::Target};
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Set for the child; the key that it uses, and the file that it leaves the answers in.
const CHILD_KEY: &str = "LORIKEET_TEST_CANARY_KEY";
const CHILD_ANSWERS: &str = "LORIKEET_TEST_CANARY_ANSWERS";

const PROMPT: &str = "A canary sings of the crimson harvester at Qaanaaq.";
const IDEMPOTENCY_KEY: &str = "a-canary-of-qaanaaq-once";
const LISTENING: &str = "the log is being listened to";

/// The log belongs to the whole process, so the chats happen in one of their own.
#[test]
fn no_prompt_answer_or_key_is_ever_in_a_log_a_metric_or_a_trace() {
    if let Ok(key) = std::env::var(CHILD_KEY) {
        let answers = std::env::var(CHILD_ANSWERS).expect("set with the key");
        return tokio::runtime::Runtime::new().expect("a runtime").block_on(chats(&key, &answers));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let answers = directory.path().join("answers");
    let key = ApiKey::generate();
    let this_test = std::thread::current().name().expect("a test's thread").to_owned();
    let child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", &this_test, "--nocapture"])
        .env(CHILD_KEY, key.reveal())
        .env(CHILD_ANSWERS, &answers)
        .output()
        .expect("it runs");
    let log = [child.stdout, child.stderr].concat();
    let log = String::from_utf8_lossy(&log);
    assert!(child.status.success(), "{log}");
    for line in [
        LISTENING,
        "node ready",
        "request failed",
        "TRACE",
        "access: request request=req_",
        "lorikeet_completion_tokens_total",
        "gen_ai.usage.output_tokens",
    ] {
        assert!(log.contains(line), "{line}: nothing was listened to");
    }

    let secret = key.reveal().split('_').nth(3).expect("a secret");
    let mut canaries =
        [PROMPT, &token_ids(), key.reveal(), secret, IDEMPOTENCY_KEY].map(str::to_owned).to_vec();
    canaries.extend(needles(&answers));
    for canary in canaries {
        let leak = log.lines().find(|line| line.contains(&canary));
        assert!(leak.is_none(), "`{canary}` is logged: {leak:?}");
    }
}

/// The prompt as a log would show the tokens of it.
fn token_ids() -> String {
    let tokens = base_model().tokenizer.encode(PROMPT, Specials::AsText).expect("text has tokens");
    format!("{:?}", &tokens[1..6]).trim_matches(['[', ']']).to_owned()
}

/// Of each answer what no log line has by chance, and would have unescaped: its longest plain part. A
/// chunk is short, and looked for in quotes.
fn needles(answers: &Path) -> Vec<String> {
    let answers = std::fs::read(answers).expect("the child has left them");
    let answers: Vec<(bool, String)> = serde_json::from_slice(&answers).expect("JSON");
    let plain = |text: &str| -> String {
        let parts = text.split(|c: char| c.is_control() || "\"\\'".contains(c));
        parts.max_by_key(|part| part.len()).unwrap_or_default().to_owned()
    };
    let (chunks, wholes): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(chunk, _)| *chunk);
    let wholes: Vec<_> = wholes.iter().map(|(_, text)| plain(text)).collect();
    let chunks = chunks.into_iter().filter(|(_, text)| text.len() > 4 && plain(text) == *text);
    let chunks: Vec<_> = chunks.map(|(_, text)| format!("\"{text}\"")).collect();
    assert!(wholes.iter().all(|needle| needle.len() > 16) && wholes.len() > 1, "{wholes:?}");
    assert!(chunks.len() > 3, "{chunks:?}");
    [wholes, chunks].concat()
}

async fn chats(key: &str, answers: &str) {
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    tracing::trace!("{LISTENING}");
    let customer = Customer { key: ApiKey::parse(key).expect("a key"), ..Customer::new() };
    let lost = adapter(customer.adapter("lost", AdapterState::Servable));
    let control_plane = ControlPlane::start([customer.resources(), vec![lost]].concat());
    let collector = Collector::start().await;
    let endpoint = collector.url();
    let node = Node::ready(&control_plane, |c| c.trace.endpoint = Some(endpoint)).await;
    let of_canary = |more: Value| {
        let mut body = chat(more);
        body["messages"][0]["content"] = PROMPT.into();
        body
    };

    let whole =
        node.chat(&customer, of_canary(json!({ "max_tokens": 24, "logprobs": true }))).await;
    let streamed = of_canary(json!({ "max_tokens": 24, "seed": 2, "stream": true }));
    let chunks = Events::of(node.post(key, &streamed).await).rest().await;
    let endless = of_canary(json!({ "max_tokens": 4000, "seed": 3, "stream": true }));
    let mut cut = Events::of(node.post(key, &endless).await);
    cut.next().await.expect("it runs");
    drop(cut);

    let role = json!([{ "role": PROMPT, "content": PROMPT }]);
    let part = json!([{ "role": "user", "content": [{ "type": PROMPT }] }]);
    for (more, status) in [
        (json!({ "model": "lost" }), StatusCode::SERVICE_UNAVAILABLE),
        (json!({ "messages": role }), StatusCode::BAD_REQUEST),
        (json!({ "messages": part }), StatusCode::BAD_REQUEST),
        (json!({ "max_tokens": PROMPT }), StatusCode::BAD_REQUEST),
        (json!({ "max_tokens": 1_000_000 }), StatusCode::BAD_REQUEST),
    ] {
        let mut body = of_canary(json!({}));
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        assert_eq!(node.post(key, &body).await.status(), status, "{more}");
    }
    let others = [
        other_endpoints(&node, key).await,
        of_a_given_form(&node, key).await,
        repeated(&node, key, &of_canary(json!({ "max_tokens": 24, "seed": 8 }))).await,
    ]
    .concat();
    let (status, _) = node.refused(&format!("{key}x"), json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);

    let mut revoked = Events::of(node.post(key, &endless).await);
    let mut begun = vec![revoked.next().await.expect("it runs")];
    control_plane.revoke(Target::KeyId(customer.key_id.to_string())).await;
    begun.extend(revoked.rest().await);
    assert_eq!(begun.pop().expect("a last event")["error"]["code"], "access_revoked");

    let chats = [text(&whole).to_owned(), sse::text(&chunks), sse::text(&begun)];
    let wholes = chats.into_iter().chain(others);
    let pieces = chunks.iter().map(|chunk| sse::text(std::slice::from_ref(chunk)));
    let answered: Vec<_> =
        wholes.map(|text| (false, text)).chain(pieces.map(|text| (true, text))).collect();
    std::fs::write(answers, serde_json::to_vec(&answered).expect("JSON")).expect("written");
    // Beside the log, what is told in other ways.
    let metrics =
        reqwest::get(format!("http://{}/metrics", node.metrics)).await.expect("an answer");
    eprintln!("{}", metrics.text().await.expect("a body"));
    node.stop().await;
    eprintln!("{:#?}", collector.spans());
}

/// Sends the canary everywhere else, in what is answered and in what is refused; what was answered.
async fn other_endpoints(node: &Node, key: &str) -> Vec<String> {
    let prompt = json!({ "prompt": PROMPT, "max_tokens": 24, "seed": 4, "n": 2, "logprobs": 1 });
    let completed = answered(node, key, "/v1/completions", prompt).await;
    let input = json!({
        "input": PROMPT, "instructions": PROMPT, "max_output_tokens": 24, "seed": 6,
        "metadata": { "canary": PROMPT },
    });
    let responded = answered(node, key, "/v1/responses", input.clone()).await;
    for (path, mut body) in [
        ("/v1/completions", json!({ "prompt": PROMPT, "echo": true, "seed": 5 })),
        (
            "/v1/completions",
            json!({ "prompt": PROMPT, "echo": true, "logprobs": 1, "max_tokens": 0 }),
        ),
        ("/v1/responses", input),
    ] {
        body["model"] = MODEL.into();
        body["stream"] = true.into();
        node.post_to(path, key, &body).await.text().await.expect("a body");
    }
    let tokens = answered(node, key, "/tokenize", json!({ "prompt": PROMPT })).await;
    answered(node, key, "/detokenize", json!({ "tokens": tokens["tokens"] })).await;

    let bias = json!({ PROMPT: 1 });
    for (path, body) in [
        ("/v1/completions", json!({ "model": PROMPT, "prompt": PROMPT })),
        ("/v1/completions", json!({ "model": MODEL, "prompt": [PROMPT, 5] })),
        ("/v1/completions", json!({ "model": MODEL, "prompt": PROMPT, "suffix": PROMPT })),
        ("/v1/completions", json!({ "model": MODEL, "prompt": PROMPT, "logit_bias": bias })),
        ("/v1/responses", json!({ "model": MODEL, "input": [{ "type": PROMPT }] })),
        ("/v1/responses", json!({ "model": MODEL, "input": PROMPT, "conversation": PROMPT })),
        ("/tokenize", json!({ "model": MODEL, "prompt": PROMPT, PROMPT: PROMPT })),
        ("/detokenize", json!({ "model": MODEL, "tokens": PROMPT })),
        ("/v1/chat/completions", json!([PROMPT])),
    ] {
        refused(node, key, path, &body).await;
    }
    [
        &completed["choices"][0]["text"],
        &completed["choices"][1]["text"],
        &responded["output"][0]["content"][0]["text"],
    ]
    .map(|text| text.as_str().expect("text").to_owned())
    .to_vec()
}

/// Schemas, grammars and tools are the customer's as prompts are.
async fn of_a_given_form(node: &Node, key: &str) -> Vec<String> {
    let schema = json!({
        "type": "object", "description": PROMPT, "required": ["song"], "additionalProperties": false,
        "properties": { "song": { "enum": [format!("{PROMPT} In full.")] } },
    });
    let form =
        json!({ "type": "json_schema", "json_schema": { "name": "song", "schema": schema } });
    let body = chat(json!({ "response_format": form, "max_tokens": 200 }));
    let formed = answered(node, key, "/v1/chat/completions", body).await;

    let function = json!({ "name": "sing", "description": PROMPT, "parameters": schema });
    let tools = json!([{ "type": "function", "function": function }]);
    let named = json!({ "type": "function", "function": { "name": "sing" } });
    let body = chat(json!({ "tools": tools, "tool_choice": named, "max_tokens": 200 }));
    let called = answered(node, key, "/v1/chat/completions", body).await;
    let call = &called["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    let mut function = function;
    (function["type"], function["strict"]) = (json!("function"), json!(true));
    let turns = json!([
        { "role": "user", "content": PROMPT },
        { "type": "function_call", "call_id": PROMPT, "name": "sing", "arguments": call },
        { "type": "function_call_output", "call_id": PROMPT, "output": PROMPT },
    ]);
    let input = json!({ "input": turns, "tools": [function], "max_output_tokens": 24 });
    answered(node, key, "/v1/responses", input).await;
    let unknown = json!({ "type": "function", "function": { "name": PROMPT } });
    for more in [
        json!({ "guided_json": { "type": PROMPT } }),
        json!({ "guided_regex": format!("({PROMPT}") }),
        json!({ "guided_grammar": PROMPT }),
        json!({ "guided_choice": [PROMPT, 5] }),
        json!({ "response_format": { "type": PROMPT } }),
        json!({ "tools": tools, "tool_choice": unknown }),
        json!({ "tools": [{ "type": PROMPT }] }),
        json!({ "messages": [{ "role": "tool", "tool_call_id": PROMPT, "content": [PROMPT] }] }),
    ] {
        refused(node, key, "/v1/chat/completions", &chat(more)).await;
    }
    vec![text(&formed).to_owned(), call.as_str().expect("text").to_owned()]
}

/// A key that is the customer's own words, an answer that is stored and given out again.
async fn repeated(node: &Node, key: &str, body: &Value) -> Vec<String> {
    let send = async |body: &Value| {
        let request = reqwest::Client::new().post(node.url("/v1/chat/completions"));
        let request = request.bearer_auth(key).header("idempotency-key", IDEMPOTENCY_KEY);
        request.json(body).send().await.expect("an answer")
    };
    let first: Value = send(body).await.json().await.expect("JSON");
    let again: Value = send(body).await.json().await.expect("JSON");
    assert_eq!(first, again);
    let other = send(&chat(json!({}))).await;
    assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    vec![text(&first).to_owned()]
}

async fn answered(node: &Node, key: &str, path: &str, mut body: Value) -> Value {
    body["model"] = MODEL.into();
    let response = node.post_to(path, key, &body).await;
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    response.json().await.expect("JSON")
}

async fn refused(node: &Node, key: &str, path: &str, body: &Value) {
    let status = node.post_to(path, key, body).await.status();
    assert!(status.is_client_error(), "{path}: {status}");
}

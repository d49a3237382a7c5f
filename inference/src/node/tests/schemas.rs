//! Random schemas under load, on a simulated device that runs a step ahead and is short of memory. What
//! is valid, Python's jsonschema says.

use super::control_plane::ControlPlane;
use super::guided::under_schema;
use super::harness::{Customer, MODEL, Node, node_of_one, text};
use super::telemetry::metrics;
use crate::config::{Config, Device};
use crate::guidance::schemas::{Features, Generator};
use futures::{StreamExt, stream};
use lorikeet_compute::backend::cpu::CpuConfig;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

/// Answers of the real model.
const REAL: usize = 8;

fn schemas(seed: u64, count: usize) -> Vec<(Value, Features)> {
    let mut generator = Generator::new(seed);
    (0..count).map(|_| generator.schema()).collect()
}

/// One answer under each schema, so many at once, and every fourth time another that follows nothing.
async fn answers(
    node: &Node,
    customer: &Customer,
    schemas: &[(Value, Features)],
    (at_once, max_tokens): (usize, u32),
) -> Vec<(Value, Value)> {
    let free = node.chat(customer, json!({ "max_tokens": 40 })).await;
    let free = text(&free);
    let answers = schemas.iter().enumerate().map(async |(index, (schema, _))| {
        if index % 4 == 0 {
            let beside = node.chat(customer, json!({ "max_tokens": 40 })).await;
            assert_eq!(text(&beside), free, "who follows no grammar notices nothing");
        }
        let more = json!({
            "response_format": under_schema(schema), "max_tokens": max_tokens, "seed": index,
        });
        (schema.clone(), node.chat(customer, more).await)
    });
    stream::iter(answers).buffer_unordered(at_once).collect().await
}

fn is_whole(answer: &Value) -> bool {
    answer["choices"][0]["finish_reason"] == "stop"
}

/// Panics with those that are not valid.
fn assert_valid<'a>(answers: impl Iterator<Item = &'a (Value, Value)>) {
    let line =
        |(schema, answer): &_| format!("{}\n", json!({ "schema": schema, "text": text(answer) }));
    run("valid_under_schemas.py", &[], &answers.map(line).collect::<String>());
}

/// Runs one of the tests' Python scripts, and panics with what it printed if it fails.
fn run(script: &str, vars: &[(&str, &str)], input: &str) {
    let python = lorikeet_kit::cache_dir().join("clients/bin/python");
    let mut process = Command::new(&python)
        .arg(lorikeet_kit::workspace().join("tests/clients").join(script))
        .envs(vars.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}: run scripts/setup --tests", python.display()));
    let mut stdin = process.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        let output = process.wait_with_output().expect("it ends");
        let printed = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&printed));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_random_schemas_under_load_give_only_valid_answers() {
    let (_control_plane, node, customer) = node_of_one(|config: &mut Config| {
        config.max_requests = 256;
        let Device::Sim(sim) = &mut config.device else { panic!("a simulated device") };
        sim.capacity.pipeline_depth = 2;
        // A third of what so many answers want: they lose their memory and are computed again.
        sim.capacity.num_blocks = 120;
    })
    .await;
    let schemas = schemas(11, 500);
    let mut schemas_with = BTreeMap::new();
    for feature in schemas.iter().flat_map(|(_, features)| features) {
        *schemas_with.entry(*feature).or_insert(0) += 1;
    }
    for feature in ["nesting", "$ref", "recursion", "enum", "pattern", "array", "anyOf", "format"] {
        assert!(schemas_with[feature] >= 50, "{schemas_with:?}");
    }
    let answers = answers(&node, &customer, &schemas, (48, 1000)).await;
    let cut: Vec<_> = answers.iter().filter(|(_, answer)| !is_whole(answer)).collect();
    assert!(cut.is_empty(), "{cut:?}");
    assert_valid(answers.iter());
    let preempted = metrics(&node).await.value("lorikeet_preemptions_total", &[]);
    assert!(preempted.is_some_and(|count| count > 20.0), "{preempted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_schemas_hold_the_real_model_on_the_cpu_too() {
    let customer = Customer::new();
    let control_plane = ControlPlane::start(customer.resources());
    let on_cpu = |config: &mut Config| config.device = Device::Cpu(CpuConfig::default());
    let node = Node::ready(&control_plane, on_cpu).await;
    let answers = answers(&node, &customer, &schemas(12, REAL), (4, 120)).await;
    // Neither does so little fit everything, nor does so small a model end each string that it may.
    let whole = answers.iter().filter(|(_, answer)| is_whole(answer));
    assert!(2 * whole.clone().count() >= REAL, "{answers:?}");
    assert_valid(whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_parses_chats_and_responses_by_pydantic_and_sends_what_vllm_knows() {
    let (_control_plane, node, customer) = node_of_one(|_| {}).await;
    let (base, key) = (node.url("/v1"), customer.key.reveal().to_owned());
    let client = move || {
        let vars = [("BASE_URL", base.as_str()), ("API_KEY", &key), ("MODEL", MODEL)];
        run("structured_client.py", &vars, "");
    };
    tokio::task::spawn_blocking(client).await.expect("it succeeds");
}

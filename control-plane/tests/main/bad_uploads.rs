//! Every broken adapter of the kit, through the public upload.

use crate::push::{Ahead, Files, Plant, files_in};
use crate::support::{Answer, Client};
use futures::StreamExt;
use futures::stream;
use lorikeet_kit::BadCase;
use serde_json::Value;

/// What an upload came to: served, or refused at the door or after the check.
fn outcome(result: Result<Value, Answer>) -> Result<(), (String, String)> {
    let error = match result {
        Ok(version) if version["state"] == "verified" => return Ok(()),
        Ok(version) => {
            assert_eq!(version["state"], "failed", "{version}");
            version["error"].clone()
        }
        Err(answer) => {
            assert_eq!(answer.status, 422, "{answer:?}");
            answer.body["error"].clone()
        }
    };
    let text = |key: &str| error[key].as_str().unwrap().to_owned();
    Err((text("code"), text("message")))
}

fn files_of_case(case: &BadCase) -> Files {
    let path = lorikeet_kit::bad_path(&case.name);
    if path.is_dir() {
        return files_in(&path);
    }
    Files::from([(case.name.clone(), std::fs::read(path).unwrap())])
}

async fn check(client: &Client<'_>, case: &BadCase, ahead: Ahead) {
    let name = format!("{}-{ahead:?}", case.name.replace('_', "-")).to_lowercase();
    let result = outcome(client.push(&name, &files_of_case(case), ahead).await);
    match (case.expect.as_str(), result) {
        ("accept", Ok(())) => {}
        ("reject" | "accept-or-unsupported", Err((code, message))) => {
            assert!(!["internal", "check_failed"].contains(&code.as_str()), "{}", case.name);
            assert!(message.len() > 20, "{}: {message}", case.name);
            let named = named_in_message(&case.name);
            assert!(message.contains(named), "{}: {message}", case.name);
        }
        (expect, result) => panic!("{} ({ahead:?}): {expect}, but {result:?}", case.name),
    }
}

/// The culprit that the message must name.
fn named_in_message(case: &str) -> &'static str {
    match case {
        "nan_tensor" => "layers.0.self_attn.q_proj.lora_A.weight",
        "inf_tensor" => "layers.0.self_attn.v_proj.lora_B.weight",
        "unknown_target" => "foo_proj",
        "layer_out_of_range" => "layer 30",
        "missing_lora_b" => "v_proj",
        "modules_to_save_norm" => "modules_to_save",
        "missing_config" => "adapter_config.json",
        "missing_weights" => "adapter_model.safetensors",
        "pickle_bin" => "adapter_model.bin",
        "config_alpha_string" => "lora_alpha",
        "config_wrong_peft_type" => "IA3",
        "dora_without_magnitude" => "lora_magnitude_vector",
        "unknown_dtype" => "F33",
        archive if archive.contains('.') => "archive",
        config if config.starts_with("config_") => "adapter_config.json",
        rank if rank.starts_with("rank_") => "q_proj",
        "wrong_hidden" => "q_proj",
        _ => "adapter_model.safetensors",
    }
}

async fn check_all(ahead: Ahead) {
    let plant = Plant::start().await;
    let client = plant.app.sign_up("broken").await;
    let cases = lorikeet_kit::bad_cases();
    assert_eq!(cases.len(), 39);
    // Some at once, as customers would.
    stream::iter(&cases).for_each_concurrent(8, |case| check(&client, case, ahead)).await;
    plant.settle().await;
    let left = plant.objects();
    assert_eq!(left.len(), 3, "only the control's two files and its packed form: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_upload_is_refused_by_its_cause_after_the_bulk() {
    check_all(Ahead::No).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broken_upload_is_refused_by_its_cause_when_its_head_is_sent_first() {
    check_all(Ahead::Yes).await;
}

use super::*;
use serde_json::json;
use std::collections::BTreeSet;

fn fields(more: Value) -> Fields {
    let mut body = json!({ "model": "m" });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let Value::Object(fields) = body else { panic!("an object") };
    Fields::new(fields)
}

fn take(more: Value) -> Result<Parameters, ApiError> {
    let mut fields = fields(more);
    let parameters = Parameters::take(&mut fields, 100, 77)?;
    fields.finish()?;
    Ok(parameters)
}

#[test]
fn what_is_not_said_has_the_default_of_openai() {
    let parameters = take(json!({})).expect("parameters");
    assert_eq!(parameters.sampling, SamplingParams { seed: 77, ..SamplingParams::default() });
    assert_eq!(parameters.rules, LogitRules::default());
    assert_eq!((parameters.n, parameters.stream, parameters.ignore_eos), (1, false, false));
}

#[test]
fn every_shared_field_is_read() {
    let parameters = take(json!({
        "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": -1, "stop": ["a", "b"],
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.5,
        "logit_bias": {"5": 1, "7": -100}, "min_tokens": 4, "n": 3, "best_of": 3, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true}, "user": "u",
        "metadata": {"a": "b"},
    }))
    .expect("parameters");
    let SamplingParams { temperature, top_p, top_k, min_p, seed } = parameters.sampling;
    assert_eq!((temperature, top_p, top_k, min_p, seed), (0.0, 0.5, 3, 0.1, u64::MAX));
    let rules = LogitRules {
        presence_penalty: 0.5,
        frequency_penalty: -0.5,
        repetition_penalty: 1.5,
        bias: vec![(5, 1.0), (7, -100.0)],
        min_tokens: 4,
    };
    assert_eq!(parameters.rules, rules);
    assert_eq!((parameters.stop, parameters.n), (vec!["a".to_owned(), "b".to_owned()], 3));
    assert!(parameters.ignore_eos && parameters.stream && parameters.include_usage);
}

#[test]
fn what_is_out_of_bounds_is_refused_by_name() {
    for field in [
        json!({"temperature": 2.5}),
        json!({"temperature": "warm"}),
        json!({"temperature": 1e300}),
        json!({"top_p": 0}),
        json!({"min_p": -0.1}),
        json!({"top_k": -3}),
        json!({"presence_penalty": 2.1}),
        json!({"frequency_penalty": -3}),
        json!({"repetition_penalty": 0}),
        json!({"logit_bias": {"100": 1}}),
        json!({"logit_bias": {"-1": 1}}),
        json!({"logit_bias": {"1": 1, "01": 2}}),
        json!({"logit_bias": {"1": 101}}),
        json!({"min_tokens": -1}),
        json!({"n": 0}),
        json!({"n": 129}),
        json!({"n": 1.5}),
        json!({"best_of": 2}),
        json!({"seed": "x"}),
        json!({"stop": ["a", "b", "c", "d", "e"]}),
        json!({"stop": [""]}),
        json!({"stop": 5}),
        json!({"user": 5}),
        json!({"metadata": "x"}),
        json!({"model": 5}),
        json!({"model": null}),
        json!({"stream": "yes"}),
        json!({"never_heard_of": 1}),
    ] {
        let name = field.as_object().and_then(|f| f.keys().next().cloned()).expect("a field");
        match take(field.clone()) {
            Err(ApiError::Invalid { param, .. }) => assert_eq!(param, Some(name), "{field}"),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn what_does_not_change_the_answer_is_ignored_and_named_in_the_response() {
    let mut fields = fields(json!({"store": true, "service_tier": "flex", "user": "u"}));
    Parameters::take(&mut fields, 100, 77).expect("parameters");
    let ignored = fields.finish().expect("nothing is left");
    assert_eq!(ignored, ["store", "service_tier"]);
    let response = report_ignored(Response::default(), &ignored);
    assert_eq!(response.headers()[IGNORED], "store, service_tier");
    assert!(!report_ignored(Response::default(), &[]).headers().contains_key(IGNORED));
}

#[test]
fn each_choice_has_a_seed_of_its_own_and_the_first_one_the_requests() {
    let parameters = take(json!({"seed": 5, "n": 128})).expect("parameters");
    assert_eq!(parameters.of_choice(0), parameters.sampling);
    let seeds: BTreeSet<u64> = (0..128).map(|choice| parameters.of_choice(choice).seed).collect();
    assert_eq!(seeds.len(), 128);
}

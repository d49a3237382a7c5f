//! Sequences that follow a grammar among others: masks come from real threads, at any moment.

use super::harness::*;
use crate::adapters::AdapterManifest;
use crate::engine::{EngineRequest, FinishReason};
use crate::fixture::base_model;
use crate::guidance::{Compiled, Grammar, Guidance};
use lorikeet_contract::TenantId;
use proptest::prelude::*;
use serde_json::json;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// A few grammars over the base model's vocabulary: some end soon, one never needs to.
static GRAMMARS: LazyLock<Vec<Arc<Compiled>>> = LazyLock::new(|| {
    let model = base_model();
    let tokenizer = model.tokenizer.to_json().expect("a tokenizer");
    let tokenizer = lorikeet_compute::model::Tokenizer::from_json(tokenizer.as_bytes());
    let config = &model.weights.config;
    let eos = config.eos_tokens.clone();
    let tokenizer = Arc::new(tokenizer.expect("a tokenizer"));
    let guidance = Arc::new(Guidance::new(tokenizer, config.spec.vocab_size, eos));
    let schema = json!({
        "type": "object", "required": ["a", "b"], "additionalProperties": false,
        "properties": {
            "a": { "type": "array", "items": { "type": "integer" } }, "b": { "type": "string" },
        },
    });
    let grammars = [
        Grammar::Json(schema),
        Grammar::Regex("(left|right|日本){2,9}".into()),
        Grammar::lark("start: sum\nsum: /[0-9]+/ | sum \"+\" sum".into()),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let compile = async |grammar| guidance.compile(TenantId::new(), &grammar).await;
    let all = futures::future::join_all(grammars.into_iter().map(compile));
    runtime.expect("a runtime").block_on(all).into_iter().map(|c| c.expect("compiles")).collect()
});

#[derive(Debug, Clone)]
struct Ask {
    tenant: u8,
    adapter: Option<u8>,
    grammar: Option<usize>,
    prompt_len: u32,
    max_tokens: u32,
    seed: u64,
}

fn ask() -> impl Strategy<Value = Ask> {
    let grammar = prop::option::weighted(0.7, 0..3usize);
    (0u8..2, prop::option::weighted(0.6, 0u8..4), grammar, 1u32..20, 1u32..25, 0u64..4).prop_map(
        |(tenant, adapter, grammar, prompt_len, max_tokens, seed)| Ask {
            tenant,
            adapter,
            grammar,
            prompt_len,
            max_tokens,
            seed,
        },
    )
}

fn adapter_of(ask: &Ask) -> Option<Arc<AdapterManifest>> {
    ask.adapter.map(|id| adapter(ask.tenant, id, 20))
}

fn request_of(ask: &Ask) -> (EngineRequest, Reader) {
    let prompt: Vec<u32> = (0..ask.prompt_len).map(|i| 20 + i * 7).collect();
    let (mut request, reader) =
        request(ask.tenant, adapter_of(ask).as_ref(), &prompt, ask.max_tokens);
    request.params.temperature = 1.0;
    request.params.seed = ask.seed;
    request.guide = ask.grammar.map(|grammar| GRAMMARS[grammar].guide("guided_json"));
    (request, reader)
}

fn setup() -> Setup {
    let mut setup = Setup::default();
    setup.sim.vocab_size = base_model().weights.config.spec.vocab_size;
    setup
}

fn alone(ask: &Ask) -> Reader {
    let mut rig = Rig::new(&setup());
    let (request, mut reader) = request_of(ask);
    rig.try_submit(request).unwrap();
    rig.finish(&mut [&mut reader]);
    reader
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// A token that is drawn and not allowed ends the engine, and so the test.
    #[test]
    fn a_grammar_is_followed_as_if_alone_through_lost_memory_moved_adapters_and_steps_ahead(
        asks in prop::collection::vec((ask(), 0usize..6, prop::option::weighted(0.15, 0usize..9)), 1..16),
        num_blocks in 12u32..40, depth in 1u32..=2, rows in 4usize..40, max_num_seqs in 2usize..8,
    ) {
        let mut setup = setup();
        setup.capacity.num_blocks = num_blocks;
        setup.capacity.pipeline_depth = depth;
        // Two adapters of eight fit at once, each for a few steps.
        setup.capacity.adapter_bytes = 45;
        setup.residency.quantum = Duration::from_millis(3);
        setup.scheduler.max_num_batched_tokens = rows;
        setup.scheduler.max_num_seqs = max_num_seqs;
        let mut rig = Rig::new(&setup);
        let mut asked = Vec::new();
        for (ask, steps, cancelled) in asks {
            let (request, reader) = request_of(&ask);
            rig.try_submit(request).unwrap();
            asked.push((ask, reader));
            rig.steps(steps);
            if let Some(cancelled) = cancelled {
                rig.handle.cancel(asked[cancelled % asked.len()].1.id);
            }
        }
        rig.finish(&mut asked.iter_mut().map(|(_, reader)| reader).collect::<Vec<_>>());
        for (ask, reader) in &asked {
            let expected = alone(ask);
            prop_assert!(expected.tokens.starts_with(&reader.tokens), "{:?}", ask);
            match reader.reason() {
                Some(FinishReason::Cancelled) => {}
                reason => {
                    prop_assert_eq!(&reader.tokens, &expected.tokens, "{:?}", ask);
                    prop_assert_eq!(reason, expected.reason(), "{:?}", ask);
                }
            }
        }
        rig.steps(3);
        rig.engine.assert_idle();
    }
}

#[test]
fn who_follows_no_grammar_gets_a_token_in_each_step_whatever_masks_take() {
    for depth in [1, 2] {
        let mut setup = setup();
        setup.capacity.pipeline_depth = depth;
        let mut rig = Rig::new(&setup);
        let ask = |grammar, seed| Ask {
            tenant: 1,
            adapter: None,
            grammar,
            prompt_len: 5,
            max_tokens: 100,
            seed,
        };
        let mut guided: Vec<Reader> = (0..12)
            .map(|n| {
                let (request, reader) = request_of(&ask(Some(n % 3), n as u64));
                rig.try_submit(request).unwrap();
                reader
            })
            .collect();
        rig.steps(2);
        let (request, mut free) = request_of(&ask(None, 1));
        rig.try_submit(request).unwrap();
        let mut steps = 0;
        while free.end.is_none() {
            rig.step();
            free.read();
            steps += 1;
        }
        // One for each token, and the first collects what was submitted before.
        assert!(steps <= 100 + depth, "{steps} steps");
        rig.finish(&mut guided.iter_mut().collect::<Vec<_>>());
        rig.engine.assert_idle();
    }
}

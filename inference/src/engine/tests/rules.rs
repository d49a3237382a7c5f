//! What a request asks of the logits, through the whole engine.

use super::harness::*;
use crate::engine::{EngineRequest, FinishReason, SubmitError};
use lorikeet_compute::sampling::LogitRules;

const PROMPT: [u32; 6] = [1, 2, 4, 5, 6, 7];

fn run(depth: u32, change: impl FnOnce(&mut EngineRequest)) -> Reader {
    let mut setup = Setup::default();
    setup.capacity.pipeline_depth = depth;
    let mut rig = Rig::new(&setup);
    let (mut asked, mut reader) = request(1, None, &PROMPT, 40);
    change(&mut asked);
    rig.try_submit(asked).unwrap();
    let mut beside = rig.submit(2, None, &PROMPT, 30);
    rig.finish(&mut [&mut reader, &mut beside]);
    rig.engine.assert_idle();
    assert_eq!(beside.tokens, Rig::alone(None, &PROMPT, 30), "nobody else is touched");
    reader
}

#[test]
fn penalties_count_every_token_also_when_a_step_runs_ahead() {
    let rules = LogitRules { frequency_penalty: 1.5, ..LogitRules::default() };
    let free = run(1, |_| {}).tokens;
    let penalised = run(1, |asked| asked.rules = rules.clone()).tokens;
    assert_ne!(penalised, free);
    let most = |tokens: &[u32]| {
        tokens.iter().map(|t| tokens.iter().filter(|o| *o == t).count()).max().unwrap_or(0)
    };
    assert!(most(&penalised) < most(&free), "{penalised:?} repeats less than {free:?}");
    assert_eq!(run(2, |asked| asked.rules = rules).tokens, penalised);
}

#[test]
fn a_prompt_is_scored_alike_in_one_step_and_in_many_and_never_from_the_cache() {
    let prompt: Vec<u32> = (0..40).map(|i| i * i % 7 + 1).collect();
    let scored = |rows: usize| {
        let mut setup = Setup::default();
        setup.scheduler.max_num_batched_tokens = rows;
        let mut rig = Rig::new(&setup);
        let mut before = rig.submit(1, None, &prompt, 4);
        rig.finish(&mut [&mut before]);
        let (mut asked, mut reader) = request(1, None, &prompt, 4);
        (asked.logprobs, asked.scores_prompt) = (Some(1), true);
        rig.try_submit(asked).unwrap();
        rig.finish(&mut [&mut reader]);
        assert_eq!(reader.usage().cached_tokens, 0);
        assert_eq!(reader.tokens, before.tokens);
        reader.scores.expect("scores")
    };
    let whole = scored(64);
    assert_eq!(whole.iter().map(|score| score.token).collect::<Vec<_>>(), prompt);
    assert_eq!((whole[0].logprob, whole[0].top_logprobs.len()), (None, 0));
    assert!(whole[1..].iter().all(|s| s.logprob.is_some() && s.top_logprobs.len() == 1));
    for rows in [5, 16, 39] {
        assert_eq!(scored(rows), whole, "{rows} rows a step");
    }
}

#[test]
fn scores_come_once_also_where_sequences_lose_their_room_on_the_way() {
    let prompt: Vec<u32> = (0..24).map(|i| i * i % 7 + 1).collect();
    let scored = |blocks: u32| {
        let mut setup = Setup::default();
        setup.capacity.num_blocks = blocks;
        let mut rig = Rig::new(&setup);
        let mut readers: Vec<Reader> = (1..=3)
            .map(|tenant| {
                let (mut asked, reader) = request(tenant, None, &prompt, 30);
                (asked.logprobs, asked.scores_prompt) = (Some(0), true);
                rig.try_submit(asked).unwrap();
                reader
            })
            .collect();
        rig.finish(&mut readers.iter_mut().collect::<Vec<_>>());
        readers.into_iter().map(|r| (r.scores.expect("scores"), r.tokens)).collect::<Vec<_>>()
    };
    let block_size = Setup::default().capacity.block_size;
    assert_eq!(scored(80 / block_size), scored(400 / block_size));
}

#[test]
fn a_biased_token_comes_always_or_never() {
    let free = run(1, |_| {}).tokens;
    let bias = |token, bias| LogitRules { bias: vec![(token, bias)], ..LogitRules::default() };
    for depth in [1, 2] {
        let banned = run(depth, |asked| asked.rules = bias(free[3], -100.0)).tokens;
        assert!(!banned.contains(&free[3]));
        let forced = run(depth, |asked| asked.rules = bias(11, 100.0)).tokens;
        assert_eq!(forced, [11; 40]);
    }
}

#[test]
fn an_end_token_waits_for_the_least_number_of_tokens() {
    for depth in [1, 2] {
        let reader = run(depth, |asked| {
            asked.ignore_eos = false;
            asked.rules =
                LogitRules { bias: vec![(EOS, 100.0)], min_tokens: 5, ..LogitRules::default() };
        });
        assert_eq!(reader.reason(), Some(FinishReason::Stop));
        assert_eq!((reader.tokens.len(), reader.tokens.last()), (6, Some(&EOS)));
    }
}

#[test]
fn places_are_reserved_all_or_none_and_come_back() {
    let rig = Rig::new(&Setup { max_requests: 4, ..Setup::default() });
    let mut places = rig.handle.reserve(tenant(1), 3).unwrap();
    assert!(matches!(rig.handle.reserve(tenant(1), 2), Err(SubmitError::QueueFull)));
    rig.handle.submit_reserved(request(1, None, &PROMPT, 5).0, &mut places).unwrap();
    drop(places);
    let mut rest = rig.handle.reserve(tenant(1), 3).unwrap();
    for _ in 0..3 {
        rig.handle.submit_reserved(request(1, None, &PROMPT, 5).0, &mut rest).unwrap();
    }
    let one_more = rig.handle.submit_reserved(request(1, None, &PROMPT, 5).0, &mut rest);
    assert_eq!(one_more, Err(SubmitError::QueueFull));
}

//! Grammars made to cost as much as they can, and those beside them.

use super::tests::{guidance, lark, tenant};
use super::*;
use crate::fixture::base_model;
use lorikeet_compute::backend::batch::SequenceId;
use serde_json::json;
use std::time::{Duration, Instant};

/// Ever more ways to read the same text: each mask costs more than the one before.
const AMBIGUOUS: &str = "start: a\na: a a | \"x\" | \"\"";

/// The last token of the allowed ones that does not end the answer.
fn some_token(mask: &lorikeet_compute::sampling::TokenMask) -> Option<u32> {
    let ends = &base_model().weights.config.eos_tokens;
    (0..mask.len()).rev().filter_map(|n| mask.nth(n)).find(|token| !ends.contains(token))
}

/// Walkers whose masks have become slow, and what each takes up next.
async fn slow(count: usize) -> (Vec<Walker>, u32) {
    let compiled = guidance().compile(tenant(1), &lark(AMBIGUOUS)).await.expect("compiles");
    let Guide { mut walker, first, .. } = compiled.guide("test");
    let token = some_token(&first).expect("an x");
    let mut slow = 0;
    while slow < 3 {
        walker.advance(token).expect("goes on");
        slow = if walker.last() > Duration::from_millis(10) { slow + 1 } else { 0 };
    }
    let fork = || {
        let mut fork = walker.fork();
        // It is remembered as slow.
        fork.advance(token).expect("goes on");
        fork
    };
    (std::iter::repeat_with(fork).take(count).collect(), token)
}

fn pool() -> MaskPool {
    MaskPool::start(64, &std::thread::current()).expect("threads")
}

fn poll(pool: &mut MaskPool) -> Option<MaskDone> {
    pool.end_late();
    pool.poll(Instant::now() + Duration::from_secs(20))
}

#[tokio::test]
async fn what_is_quick_does_not_wait_for_what_is_slow() {
    let (walkers, token) = slow(8).await;
    let mut pool = pool();
    let compiled = guidance().compile(tenant(1), &Grammar::json_object()).await.expect("compiles");
    let Guide { walker, first, .. } = compiled.guide("test");
    for (walker, sequence) in walkers.into_iter().zip(0..) {
        pool.begin(SequenceId(sequence), walker, token);
    }
    pool.begin(SequenceId(100), walker, some_token(&first).expect("one"));
    let order: Vec<u64> =
        std::iter::from_fn(|| poll(&mut pool)).map(|done| done.sequence.0).collect();
    assert_eq!(order.len(), 9);
    assert!(order[..3].contains(&100), "{order:?}");
}

#[tokio::test]
async fn a_sequence_that_has_ended_costs_nothing_more() {
    let (walkers, token) = slow(20).await;
    let mut pool = pool();
    for (walker, sequence) in walkers.into_iter().zip(0..) {
        pool.begin(SequenceId(sequence), walker, token);
    }
    for sequence in 0..20 {
        pool.forget(SequenceId(sequence));
    }
    let left = std::iter::from_fn(|| poll(&mut pool)).count();
    assert!(left <= 3, "{left} were computed all the same");
}

#[tokio::test]
async fn whatever_grammars_are_made_to_cost_is_bounded_and_said() {
    let patterns = |count| -> serde_json::Map<_, _> {
        let pattern = |n| json!({ "type": "string", "pattern": format!("^(a|b|{n}){{1,50}}$") });
        (0..count).map(|n| (format!("p{n}"), pattern(n))).collect()
    };
    let mut pool = pool();
    for grammar in [
        lark(AMBIGUOUS),
        lark("start: s\ns: s s s | s s | /[a-z]/ | /[a-z]+/"),
        Grammar::Regex("((a{1,999}){1,999}){1,999}".into()),
        Grammar::Regex("(.{1,500}a){1,500}".into()),
        Grammar::Regex("(a|b|.)*a(a|b|.){18}".into()),
        Grammar::Regex(".*(a.{20}|b.{21}|c.{22}|d.{23}|e.{24}).*".into()),
        Grammar::Regex(format!("({}x)*", "(ab?|".repeat(40) + &")*".repeat(40))),
        Grammar::Json(json!({ "properties": patterns(500) })),
        Grammar::Json(json!({ "type": "array", "minItems": 100_000, "items": {
            "type": "array", "minItems": 100_000, "items": { "type": "string", "minLength": 100_000 },
        }})),
    ] {
        let shown = format!("{grammar:?}").chars().take(60).collect::<String>();
        let begun = Instant::now();
        let (mut walker, mut mask) = match guidance().compile(tenant(1), &grammar).await {
            Ok(compiled) => {
                let Guide { walker, first, .. } = compiled.guide("test");
                (walker, first)
            }
            Err(CompileError::Invalid(_) | CompileError::Part { .. }) => continue,
            Err(other) => panic!("{shown}: {other:?}"),
        };
        let mut tokens = 0;
        while tokens < 150
            && let Some(token) = some_token(&mask)
        {
            tokens += 1;
            pool.begin(SequenceId(1), walker, token);
            let done = poll(&mut pool).expect("it ends");
            walker = done.walker;
            assert!(walker.bytes() < 40 << 20, "{shown} takes {} bytes", walker.bytes());
            match done.next {
                Ok(Next::Allowed(next)) => mask = next,
                Ok(Next::Complete) | Err(GuidanceError::TooComplex) => break,
                Err(other) => panic!("{shown}: {other:?}"),
            }
        }
        let most = Duration::from_secs(4) + Duration::from_millis(20) * tokens;
        assert!(begun.elapsed() < most, "{shown} takes {:?}", begun.elapsed());
    }
}

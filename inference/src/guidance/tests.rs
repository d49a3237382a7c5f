use super::*;
use crate::fixture::base_model;
use lorikeet_compute::model::Specials;
use lorikeet_contract::TenantId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::sync::LazyLock;

pub fn guidance() -> &'static Arc<Guidance> {
    static GUIDANCE: LazyLock<Arc<Guidance>> = LazyLock::new(|| Arc::new(fresh()));
    &GUIDANCE
}

fn fresh() -> Guidance {
    let model = base_model();
    let json = model.tokenizer.to_json().expect("a tokenizer");
    let tokenizer =
        lorikeet_compute::model::Tokenizer::from_json(json.as_bytes()).expect("a tokenizer");
    let config = &model.weights.config;
    Guidance::new(Arc::new(tokenizer), config.spec.vocab_size, config.eos_tokens.clone())
}

pub fn tenant(id: u128) -> TenantId {
    TenantId::from_uuid(uuid::Uuid::from_u128(id))
}

pub fn lark(text: &str) -> Grammar {
    Grammar::lark(text.into())
}

/// What random draws among the allowed tokens make, ended by the grammar or by an end token.
pub(crate) async fn walk(grammar: Grammar, seed: u64) -> String {
    walk_behind("", grammar, seed, 1000).await
}

/// The same behind a beginning, which the grammar must allow, and at most so many tokens.
pub(crate) async fn walk_behind(begin: &str, grammar: Grammar, seed: u64, most: usize) -> String {
    let mut begin = base_model().tokenizer.encode(begin, Specials::AsText).expect("tokens");
    begin.reverse();
    let compiled = guidance().compile(tenant(1), &grammar).await.expect("compiles");
    let Guide { mut walker, first, .. } = compiled.guide("test");
    let config = &base_model().weights.config;
    let mut random = StdRng::seed_from_u64(seed);
    let (mut tokens, mut mask) = (Vec::new(), first);
    while tokens.len() < most {
        let allowed: Vec<u32> = (0..config.spec.vocab_size).filter(|t| mask.allows(*t)).collect();
        let token = begin.pop().unwrap_or_else(|| allowed[random.random_range(0..allowed.len())]);
        assert!(mask.allows(token), "{}", base_model().tokenizer.decode(&tokens));
        if config.eos_tokens.contains(&token) {
            break;
        }
        tokens.push(token);
        match walker.advance(token).expect("an allowed token") {
            Next::Allowed(next) => mask = next,
            Next::Complete => break,
        }
    }
    base_model().tokenizer.decode(&tokens)
}

#[tokio::test]
async fn random_draws_make_only_what_the_grammar_allows() {
    let choices = ["yes", "no", "per\"haps\\", "日本"];
    let choice = Grammar::Choice(choices.map(String::from).into());
    let sums = lark("start: sum\nsum: num (\"+\" num)*\nnum: /[0-9]{1,2}/ | \"(\" sum \")\"");
    for seed in 0..20 {
        assert!(choices.contains(&&*walk(choice.clone(), seed).await));
        let date = walk(Grammar::Regex(r"20[0-9]{2}-(0[1-9]|1[0-2])/x".into()), seed).await;
        let (year, month) = date.split_once('-').expect("a date");
        assert!(year.len() == 4 && year.starts_with("20"));
        let month = month.strip_suffix("/x").expect("the end");
        assert!((1..=12).contains(&month.parse::<u32>().expect("a month")));
        let sum = walk(sums.clone(), seed).await;
        let open = sum.matches('(').count();
        assert_eq!(open, sum.matches(')').count(), "{sum}");
        assert!(sum.chars().all(|c| c.is_ascii_digit() || "+()".contains(c)), "{sum}");
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_with_the_reason() {
    let nested = |depth: usize| Grammar::Regex("(".repeat(depth) + &")".repeat(depth));
    let schema = |schema| Grammar::Json(schema);
    for (grammar, reason) in [
        (schema(json!({ "properties": { "a": { "not": { "type": "null" } } } })), "not"),
        (schema(json!({ "$ref": "#/$defs/missing" })), "missing"),
        (schema(json!({ "type": "strange" })), "strange"),
        (schema(json!({ "enum": [] })), "Unsatisfiable"),
        (schema(json!([])), "object"),
        (Grammar::Regex("a(".into()), "a("),
        (Grammar::Regex(String::new()), "empty"),
        (Grammar::Regex("a".repeat(70_000)), "bytes"),
        (nested(20_000), "nested"),
        (Grammar::Choice(Vec::new()), "no choice"),
        (Grammar::Choice(vec![String::new()]), "empty"),
        (lark("start: missing"), "missing"),
        (lark("%import nothing.here\nstart: \"a\""), "import"),
    ] {
        let shown = format!("{grammar:?}").chars().take(60).collect::<String>();
        match guidance().compile(tenant(1), &grammar).await {
            Err(CompileError::Invalid(why) | CompileError::Part { why, .. }) => {
                assert!(why.contains(reason), "{shown}: {why}")
            }
            Err(other) => panic!("{shown}: {other:?}"),
            Ok(_) => panic!("{shown} compiles"),
        }
    }
}

#[tokio::test]
async fn a_tenants_grammars_are_kept_for_it_alone_and_only_so_many() {
    let guidance = Arc::new(fresh());
    let compiled = async |id, text: String| {
        guidance.compile(tenant(id), &Grammar::Regex(text)).await.expect("compiles")
    };
    let first = compiled(1, "a0".into()).await;
    assert!(Arc::ptr_eq(&first, &compiled(1, "a0".into()).await));
    assert!(!Arc::ptr_eq(&first, &compiled(2, "a0".into()).await));
    for n in 1..30 {
        compiled(1, format!("a{n}")).await;
        assert!(Arc::ptr_eq(&first, &compiled(1, "a0".into()).await), "it is in use");
    }
    assert_eq!(guidance.cached(), 16 + 1);
}

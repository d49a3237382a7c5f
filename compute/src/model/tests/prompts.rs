//! Tokenizer and chat template against the kit.

use crate::model::fixture::base_model;
use crate::model::{ChatMessage, Specials};
use serde::Deserialize;

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn texts_become_the_tokens_of_the_original_tokenizer() {
    let path = lorikeet_kit::dir().join("base/tokenizer_cases.json");
    let cases: Vec<TokenizerCase> = lorikeet_kit::read_json(&path);
    assert_eq!(cases.len(), 30);
    for case in cases {
        let ids = base_model().tokenizer.encode(&case.text, Specials::Recognised).expect("encodes");
        assert_eq!(ids, case.ids, "{:?}", case.text);
    }
}

#[test]
fn every_reference_prompt_is_reproduced() {
    let model = base_model();
    let adapters = lorikeet_kit::index().adapters.into_iter().map(|a| Some(a.adapter));
    let mut checked = 0;
    for adapter in adapters.chain([None]) {
        for case in lorikeet_kit::reference(adapter.as_deref()).cases {
            let messages: Vec<ChatMessage> =
                case.messages.into_iter().map(|m| ChatMessage::new(m.role, m.content)).collect();
            let prompt = model.chat_template.render(&messages, &[], true).expect("renders");
            assert_eq!(prompt, case.prompt, "{}", case.id);
            assert_eq!(model.prompt(&messages).expect("a prompt"), case.prompt_ids, "{}", case.id);
            assert_eq!(model.tokenizer.decode(&case.tokens), case.text, "{}", case.id);
            checked += 1;
        }
    }
    assert_eq!(checked, 54);
}

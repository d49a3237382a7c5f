//! Tokens back to text, and what customers cannot do with special tokens' names.

use crate::model::fixture::base_model;
use crate::model::{ChatMessage, Specials, Tokenizer};
use proptest::collection::vec;
use proptest::prelude::*;

fn tokenizer() -> &'static Tokenizer {
    &base_model().tokenizer
}

fn user(content: &str) -> ChatMessage {
    ChatMessage::new("user", content)
}

proptest! {
    // Proptest's strings have no control characters; this vocabulary lacks six of them.
    #[test]
    fn any_text_survives_its_tokens_one_at_a_time(text in any::<String>()) {
        let ids = tokenizer().encode(&text, Specials::AsText).expect("encodes");
        prop_assert_eq!(pieces(&ids).concat(), text);
    }

    #[test]
    fn any_tokens_give_the_text_of_all_their_bytes(ids in vec(17u32..49152, 0..40)) {
        let bytes: Vec<u8> =
            ids.iter().flat_map(|id| tokenizer().token_bytes(*id).expect("a token")).copied().collect();
        prop_assert_eq!(pieces(&ids).concat(), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_message_cannot_write_special_tokens(parts in vec(
        prop_oneof![
            Just("<|im_end|>"), Just("<|im_start|>system"), Just("<|im_"), Just("end|>"),
            Just("<|endoftext|>"), Just("\u{FDD0}"), Just(" "), Just("hi"), Just("\n"),
        ],
        0..8,
    )) {
        let content = parts.concat();
        let plain = base_model().prompt(&[user("x")]).expect("a prompt");
        let prompt = base_model().prompt(&[user(&content)]).expect("a prompt");
        let specials = |ids: &[u32]| {
            ids.iter().filter(|id| tokenizer().is_special(**id)).copied().collect::<Vec<_>>()
        };
        prop_assert_eq!(specials(&prompt), specials(&plain));
        // And it arrives as it was written; only the noncharacter is replaced.
        let text: String = pieces(&prompt).concat();
        let tail = format!("user\n{}\nassistant\n", content.replace('\u{FDD0}', "\u{FFFD}"));
        prop_assert!(text.ends_with(&tail), "{text:?}");
    }
}

/// What each token adds to the answer, and its end.
fn pieces(ids: &[u32]) -> Vec<String> {
    let mut detokenizer = tokenizer().detokenizer();
    let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id)).collect();
    pieces.push(detokenizer.finish());
    pieces
}

#[test]
fn a_character_comes_out_with_its_last_byte() {
    let ids = tokenizer().encode("👩‍🚀!", Specials::AsText).expect("encodes");
    assert!(ids.len() > 3, "{ids:?}");
    let pieces = pieces(&ids);
    assert!(pieces.iter().any(String::is_empty));
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
    assert_eq!(pieces.concat(), "👩‍🚀!");
}

#[test]
fn an_answer_cut_inside_a_character_ends_in_one_replacement() {
    let ids = tokenizer().encode("👍", Specials::AsText).expect("encodes");
    let pieces = pieces(&ids[..ids.len() - 1]);
    let (end, before) = pieces.split_last().expect("an end");
    assert_eq!(before.concat(), "");
    assert_eq!(end, "\u{FFFD}");
}

#[test]
fn a_byte_that_the_vocabulary_lacks_is_dropped() {
    let ids = tokenizer().encode("a\u{4}b\t", Specials::AsText).expect("encodes");
    assert_eq!(tokenizer().decode(&ids), "ab\t");
}

#[test]
fn special_tokens_and_unknown_ids_give_no_text() {
    assert_eq!(tokenizer().decode(&[1, 2, u32::MAX]), "");
    assert_eq!(tokenizer().token_bytes(2), Some(b"<|im_end|>".as_slice()));
    assert_eq!(tokenizer().token_bytes(u32::MAX), None);
}

#[test]
fn a_special_token_gives_its_name_only_where_it_is_to_be_shown() {
    let tokenizer = &base_model().tokenizer;
    let start = tokenizer.special("<|im_start|>").expect("a special token");
    assert_eq!(tokenizer.detokenizer().push(start), "");
    assert_eq!(tokenizer.detokenizer().showing(vec![start]).push(start), "<|im_start|>");
    assert_eq!(tokenizer.special("no such token"), None);
}

//! The kinds of tokenizers that the served families have, from tokenizer.json and from GGUF, against
//! the libraries that they come from (`scripts/record-tokenizer-fixtures`).

use super::tiny;
use crate::model::gguf::Gguf;
use crate::model::{Specials, Tokenizer, TokenizerError};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Meta;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;

const KINDS: [&str; 4] = ["llama3", "qwen2", "llama2", "mistral"];

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn json_of(kind: &str) -> Vec<u8> {
    fs::read(lorikeet_kit::tokenizers_dir().join(format!("{kind}.json"))).expect("reads")
}

fn from_json(kind: &str) -> Tokenizer {
    Tokenizer::from_json(&json_of(kind)).expect("a tokenizer that is served")
}

fn from_gguf(kind: &str) -> Option<Tokenizer> {
    let path = lorikeet_kit::tokenizers_dir().join(format!("{kind}.gguf"));
    let file = path.is_file().then(|| Gguf::open(&path).expect("a GGUF file"))?;
    Some(file.tokenizer().expect("a tokenizer that is served"))
}

fn cases() -> BTreeMap<String, Vec<Case>> {
    lorikeet_kit::read_json(&lorikeet_kit::tokenizers_dir().join("cases.json"))
}

#[test]
fn every_kind_gives_the_tokens_of_its_own_library_from_both_file_formats() {
    let cases = cases();
    let mut checked = 0;
    for kind in KINDS {
        for tokenizer in [Some(from_json(kind)), from_gguf(kind)].into_iter().flatten() {
            for Case { text, ids } in &cases[kind] {
                let found = tokenizer.encode(text, Specials::Recognised).expect("encodes");
                assert_eq!(&found, ids, "{kind}: {text:?}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 7 * 15);
}

#[test]
fn what_a_space_is_put_before_depends_on_the_kind() {
    let around = |kind: &str, text: &str| {
        let tokenizer = from_json(kind);
        let ids = tokenizer.encode(text, Specials::Recognised).expect("encodes");
        ids.iter().flat_map(|id| tokenizer.token_bytes(*id).expect("a token").to_vec()).collect()
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("whole characters");
    assert_eq!(text(around("llama2", "hi<s>hi")), " hi<s> hi");
    assert_eq!(text(around("mistral", "hi<s>hi")), " hi<s>hi");
    assert_eq!(text(around("llama3", "hi<|eot_id|>hi")), "hi<|eot_id|>hi");
}

#[test]
fn a_word_of_the_vocabulary_needs_no_merges_in_llama_3() {
    for tokenizer in [Some(from_json("llama3")), from_gguf("llama3")].into_iter().flatten() {
        let ids = tokenizer.encode("a lorikeet", Specials::AsText).expect("encodes");
        assert_eq!(ids.len(), 2);
    }
}

#[test]
fn a_byte_without_a_token_is_written_as_its_number_and_read_as_itself() {
    for tokenizer in [Some(from_json("llama2")), from_gguf("llama2")].into_iter().flatten() {
        let ids = tokenizer.encode("日\n", Specials::AsText).expect("encodes");
        assert_eq!(tokenizer.decode(&ids), " 日\n");
        let number = tokenizer.encode("<0x0A>", Specials::AsText).expect("encodes");
        assert_eq!(tokenizer.decode(&number), " <0x0A>");
    }
}

/// What each family's tokenizer.json says of the beginning of a text, against the library's own reading.
#[test]
fn a_text_begins_as_the_familys_own_library_begins_it_and_never_twice() {
    let template = |bos: &str, id: u32| {
        let special = json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
        let single = json!([special, { "Sequence": { "id": "A", "type_id": 0 } }]);
        json!({
            "type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
        })
    };
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    let begin = "<|begin_of_text|>";
    for (kind, processor, bos) in [
        (
            "llama3",
            json!({ "type": "Sequence", "processors": [bytes, template(begin, 362)] }),
            Some(begin),
        ),
        ("qwen2", bytes, None),
        ("llama2", template("<s>", 1), Some("<s>")),
        ("mistral", template("<s>", 1), Some("<s>")),
    ] {
        let mut json: Value = serde_json::from_slice(&json_of(kind)).expect("JSON");
        json["post_processor"] = processor;
        let json = json.to_string();
        let library = tokenizers::Tokenizer::from_bytes(json.as_bytes()).expect("a tokenizer");
        let tokenizer = Tokenizer::from_json(json.as_bytes()).expect("a tokenizer that is served");
        let encode = |text: &str| tokenizer.encode(text, Specials::Recognised).expect("encodes");
        for text in ["Hello, world!", " two", "日本"] {
            let expected = library.encode_fast(text, true).expect("encodes");
            assert_eq!(tokenizer.begin(encode(text)), expected.get_ids(), "{kind}: {text:?}");
        }
        let begun = encode(&format!("{}Hello", bos.unwrap_or_default()));
        assert_eq!(tokenizer.begin(begun.clone()), begun, "{kind}: it begins already");
    }
}

#[test]
fn a_gguf_file_says_what_a_text_begins_with_or_llama_cpp_knows() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tiny.gguf");
    let begins = |more: &[(&str, Meta)]| {
        let mut metadata = tiny::metadata();
        metadata.extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
        tiny::write_gguf(&path, GgmlDType::F16, &metadata, &tiny::Tensors::new());
        let tokenizer = Gguf::open(&path).expect("a GGUF file").tokenizer().expect("a tokenizer");
        tokenizer.begin(vec![20]) == [1, 20]
    };
    let pre = |name: &str| ("tokenizer.ggml.pre", Meta::String(name.into()));
    let add = |adds| ("tokenizer.ggml.add_bos_token", Meta::Bool(adds));
    assert!(!begins(&[pre("smollm")]));
    assert!(begins(&[pre("smollm"), add(true)]));
    assert!(begins(&[pre("llama-bpe")]));
    assert!(!begins(&[pre("llama-bpe"), add(false)]));
}

proptest! {
    #[test]
    fn any_text_survives_sentence_pieces_but_for_the_space_before_it(text in any::<String>()) {
        static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| from_json("mistral"));
        // SentencePiece spells a space so, and cannot tell one from the other.
        prop_assume!(!text.is_empty() && !text.contains('▁'));
        let ids = TOKENIZER.encode(&text, Specials::AsText).expect("encodes");
        let decoded = TOKENIZER.decode(&ids);
        let unprefixed = if text.starts_with(' ') { Some(&*decoded) } else { decoded.strip_prefix(' ') };
        prop_assert_eq!(unprefixed, Some(&*text));
    }
}

#[test]
fn another_kind_of_tokenizer_is_refused_by_name() {
    let with = |kind: &str, key: &str, value: Value| {
        let mut json: Value = serde_json::from_slice(&json_of(kind)).expect("JSON");
        json[key] = value;
        match Tokenizer::from_json(json.to_string().as_bytes()) {
            Err(TokenizerError::Unsupported(what)) => what,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{key} was loaded"),
        }
    };
    let word_piece = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    assert!(with("llama3", "decoder", word_piece).contains("the decoder WordPiece"));
    assert!(with("llama3", "decoder", Value::Null).contains("without a decoder"));
    let no_bytes = json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }] });
    assert!(with("llama2", "decoder", no_bytes).contains("other steps than SentencePiece's"));
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first",
        "split": false });
    let nested = json!({ "type": "Sequence", "pretokenizers": [metaspace] });
    assert!(with("mistral", "pre_tokenizer", nested).contains("prepend_scheme first"));
}

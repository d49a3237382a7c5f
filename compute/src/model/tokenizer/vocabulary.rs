//! Tokenizers out of the lists that GGUF metadata keep.

use super::{Tokenizer, TokenizerError};
use std::collections::HashSet;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// A byte-level BPE.
pub(in crate::model) struct BytePairs<'a> {
    /// `tokenizer.ggml.pre`, the name of a rule by which text is cut before the merges.
    pub rule: &'a str,
    pub tokens: Vec<&'a str>,
    /// One per token.
    pub kinds: Vec<i64>,
    /// Two tokens with a space between, in order of precedence.
    pub merges: Vec<&'a str>,
}

/// SentencePiece's BPE, of Llama 2 and Mistral.
pub(in crate::model) struct SentencePieces<'a> {
    pub tokens: Vec<&'a str>,
    /// One per token. Of two neighbours that make a token, those of the highest score merge first.
    pub scores: Vec<f32>,
    pub kinds: Vec<i64>,
    /// The token of what has no other.
    pub unknown: u32,
    /// A space is put before the text and before what follows a special token.
    pub space_prefix: bool,
}

// `tokenizer.ggml.token_type`
const KIND_ORDINARY: i64 = 1;
const KIND_UNKNOWN: i64 = 2;
const KIND_SPECIAL: i64 = 3;
const KIND_ADDED: i64 = 4;

/// How the cl100k family of vocabularies cuts text: words with one character before them, numbers,
/// runs of punctuation, line ends, spaces. The number of digits that stand together differs.
fn cl100k(digits: &str) -> String {
    let number = format!(r"\p{{N}}{digits}");
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        &number,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
    .join("|")
}

/// What goes with a rule by llama.cpp's name for it.
struct Rule {
    pre_tokenizer: PreTokenizerWrapper,
    /// Text is composed first: `e` and an accent become one character.
    nfc: bool,
    /// A piece that is a token is not built by merges.
    ignore_merges: bool,
}

impl Rule {
    fn named(name: &str) -> Result<Self, TokenizerError> {
        // GPT-2's regular expression, no space put before the text.
        let gpt2 = ByteLevel::default().add_prefix_space(false);
        let cut = |pattern: String| -> Result<PreTokenizerWrapper, TokenizerError> {
            let behavior = SplitDelimiterBehavior::Isolated;
            let split = Split::new(SplitPattern::Regex(pattern), behavior, false)
                .map_err(|e| TokenizerError::Malformed(e.to_string()))?;
            let spell = ByteLevel::new(false, true, false);
            Ok(Sequence::new(vec![split.into(), spell.into()]).into())
        };
        let plain = |pre_tokenizer| Self { pre_tokenizer, nfc: false, ignore_merges: false };
        match name {
            "gpt-2" => Ok(plain(gpt2.into())),
            // Every character of Unicode's class N stands by itself.
            "smollm" | "starcoder" | "refact" => {
                let digits = Digits::new(true);
                Ok(plain(Sequence::new(vec![digits.into(), gpt2.into()]).into()))
            }
            "llama3" | "llama-v3" | "llama-bpe" => {
                Ok(Self { ignore_merges: true, ..plain(cut(cl100k("{1,3}"))?) })
            }
            "qwen2" => Ok(Self { nfc: true, ..plain(cut(cl100k(""))?) }),
            other => Err(TokenizerError::Unsupported(format!(
                "the pre-tokenizer {other}; use the model's Hugging Face directory, whose \
                 tokenizer.json spells the rule out"
            ))),
        }
    }
}

impl Tokenizer {
    pub(in crate::model) fn from_byte_pairs(pairs: BytePairs<'_>) -> Result<Self, TokenizerError> {
        let rule = Rule::named(pairs.rule)?;
        check_length("types", pairs.kinds.len(), pairs.tokens.len())?;
        let merges: Merges = pairs
            .merges
            .iter()
            .map(|m| m.split_once(' ').map(|(a, b)| (a.into(), b.into())))
            .collect::<Option<_>>()
            .ok_or_else(|| TokenizerError::Malformed("a merge is not two tokens".into()))?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary(&pairs.tokens), merges)
            .ignore_merges(rule.ignore_merges)
            .build()
            .map_err(malformed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        if rule.nfc {
            inner.with_normalizer(Some(NFC)).map_err(malformed)?;
        }
        inner.with_pre_tokenizer(Some(rule.pre_tokenizer));
        inner.with_decoder(Some(ByteLevel::default()));
        add_tokens(&mut inner, &pairs.tokens, &pairs.kinds)?;
        Self::new(inner)
    }

    pub(in crate::model) fn from_sentence_pieces(
        pieces: SentencePieces<'_>,
    ) -> Result<Self, TokenizerError> {
        let SentencePieces { tokens, scores, kinds, unknown, space_prefix } = pieces;
        check_length("types", kinds.len(), tokens.len())?;
        check_length("scores", scores.len(), tokens.len())?;
        let no_unknown = || TokenizerError::Malformed(format!("{unknown} is no token"));
        let unknown = tokens.get(unknown as usize).ok_or_else(no_unknown)?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary(&tokens), merges(&tokens, &scores, &kinds))
            .unk_token((*unknown).to_owned())
            .fuse_unk(true)
            .byte_fallback(true)
            .build()
            .map_err(malformed)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        let mut normalizers = Vec::new();
        if space_prefix {
            normalizers.push(Prepend::new("▁".into()).into());
        }
        normalizers.push(Replace::new(" ", "▁").map_err(malformed)?.into());
        inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(malformed)?;
        let spaces = Replace::new("▁", " ").map_err(malformed)?;
        let decoders = vec![spaces.into(), ByteFallback::new().into(), Fuse::new().into()];
        inner.with_decoder(Some(Decoders::new(decoders)));
        add_tokens(&mut inner, &tokens, &kinds)?;
        Self::new(inner)
    }
}

fn malformed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Malformed(error.to_string())
}

fn check_length(what: &str, found: usize, tokens: usize) -> Result<(), TokenizerError> {
    if found == tokens {
        return Ok(());
    }
    Err(TokenizerError::Malformed(format!("{found} {what} of {tokens} tokens")))
}

fn vocabulary(tokens: &[&str]) -> Vocab {
    (0..).zip(tokens).map(|(id, token)| (token.to_string(), id)).collect()
}

fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    tokens: &[&str],
    kinds: &[i64],
) -> Result<(), TokenizerError> {
    let of_kinds = |wanted: &'static [i64]| {
        let pairs = tokens.iter().zip(kinds);
        pairs.filter(|(_, kind)| wanted.contains(kind)).map(|(token, _)| token.to_string())
    };
    let specials = of_kinds(&[KIND_SPECIAL, KIND_UNKNOWN]);
    inner.add_special_tokens(specials.map(|t| AddedToken::from(t, true))).map_err(malformed)?;
    let added = of_kinds(&[KIND_ADDED]).map(|t| AddedToken::from(t, false).normalized(false));
    inner.add_tokens(added).map_err(malformed)?;
    Ok(())
}

/// Every way to make an ordinary token out of two, those of the highest score first: what
/// SentencePiece does, as a list.
fn merges(tokens: &[&str], scores: &[f32], kinds: &[i64]) -> Merges {
    let ordinary = || {
        let all = tokens.iter().zip(scores).zip(kinds);
        all.filter(|(_, kind)| **kind == KIND_ORDINARY).map(|((token, score), _)| (*token, *score))
    };
    let known: HashSet<&str> = ordinary().map(|(token, _)| token).collect();
    let mut found: Vec<(f32, &str, &str)> = ordinary()
        .flat_map(|(token, score)| {
            let ends = token.char_indices().skip(1);
            ends.map(move |(end, _)| (score, &token[..end], &token[end..]))
        })
        .filter(|(_, left, right)| known.contains(left) && known.contains(right))
        .collect();
    found.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())).then(b.2.len().cmp(&a.2.len()))
    });
    found.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

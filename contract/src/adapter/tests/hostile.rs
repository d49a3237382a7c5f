//! Nothing that a customer sends makes the parser panic, hang or allocate beyond its input.

use super::*;
use crate::adapter::Dtype;
use crate::adapter::safetensors::MAX_TENSORS;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_damaged_file_is_refused_or_whole_but_never_a_panic(
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let base = small_base();
        let mut files = RandomAdapter::default().files(&base);
        let header_len = Header::prefix_len(&files.weights, files.weights.len() as u64).unwrap();
        for (index, byte) in hits {
            let at = index.index(header_len);
            files.weights[at] = byte;
        }
        if let Some(cut) = cut {
            files.weights.truncate(cut.index(files.weights.len()));
        }
        if let Err(error) = inspect_files(&files, &base) {
            prop_assert!(error.to_string().len() < 2000);
        }
    }

    #[test]
    fn any_bytes_as_header_or_configuration_are_no_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), len: u64,
    ) {
        let _ = Header::parse(&bytes, len);
        let _ = AdapterConfig::parse(&bytes);
    }

    #[test]
    fn a_damaged_configuration_is_no_panic(
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut files = RandomAdapter::default().files(&small_base());
        for (index, byte) in hits {
            let at = index.index(files.config.len());
            files.config[at] = byte;
        }
        let _ = inspect_files(&files, &small_base());
    }
}

fn header_error(json: &str, data: usize) -> AdapterError {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + data, 0);
    Header::parse(&file, file.len() as u64).map(drop).unwrap_err()
}

#[test]
fn a_hole_between_tensors_is_refused() {
    let error = header_error(
        r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]}}"#,
        12,
    );
    assert!(error.to_string().contains("4 bytes before tensor `b` belong to none"), "{error}");
}

#[test]
fn offsets_near_the_largest_number_do_not_wrap() {
    let end = u64::MAX;
    let begin = end - 4;
    let json = format!(r#"{{"a":{{"dtype":"F16","shape":[2],"data_offsets":[{begin},{end}]}}}}"#);
    assert_eq!(header_error(&json, 4).code(), "invalid_safetensors");
    let swapped = r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[4,0]}}"#;
    assert_eq!(header_error(swapped, 4).code(), "invalid_safetensors");
}

#[test]
fn more_tensors_than_allowed_are_refused() {
    let entry = |i: usize| {
        format!(r#""{i}":{{"dtype":"F16","shape":[1],"data_offsets":[{},{}]}}"#, i * 2, i * 2 + 2)
    };
    let json = |n: usize| format!("{{{}}}", (0..n).map(entry).collect::<Vec<_>>().join(","));
    let error = header_error(&json(MAX_TENSORS + 1), (MAX_TENSORS + 1) * 2);
    assert!(error.to_string().contains("4096"), "{error}");
}

#[test]
fn a_header_that_is_cut_is_asked_for_whole() {
    let files =
        RandomAdapter { dtype: Dtype::F32, ..RandomAdapter::default() }.files(&small_base());
    let len = files.weights.len() as u64;
    let prefix = Header::prefix_len(&files.weights[..8], len).unwrap();
    assert!(Header::parse(&files.weights[..prefix], len).is_ok(), "the header alone is enough");
    assert!(Header::parse(&files.weights[..prefix - 1], len).is_err());
}

#[test]
fn a_message_does_not_repeat_a_customers_text_at_length() {
    let long = "x".repeat(100_000);
    let json = format!(r#"{{"{long}":1}}"#);
    assert!(header_error(&json, 0).to_string().len() < 1000);
    let config = format!(r#"{{"peft_type":"{long}"}}"#);
    assert!(AdapterConfig::parse(config.as_bytes()).unwrap_err().to_string().len() < 1000);
    let config = format!(r#"{{"peft_type":"LORA","{long}":1}}"#);
    assert!(AdapterConfig::parse(config.as_bytes()).unwrap_err().to_string().len() < 1000);
}

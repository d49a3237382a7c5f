//! One usage record as a row: read, and refused where it would be wrong to bill it. Pure.

use lorikeet_contract::digest::WeightsDigest;
use lorikeet_contract::link::UsageRecord;
use lorikeet_contract::usage::final_usage;
use prost::Message;
use time::OffsetDateTime;
use uuid::Uuid;

/// More tokens than any request can have; larger numbers are damage, and sums of them would
/// overflow.
const MAX_TOKENS: u64 = 1 << 32;

/// Years in which a request can have ended; anything else is damage or a clock gone wrong.
const YEARS: std::ops::RangeInclusive<i32> = 2020..=2100;

/// A billable record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub seq: i64,
    pub request_id: Uuid,
    pub tenant_id: Uuid,
    pub key_id: Option<Uuid>,
    pub adapter_version_id: Option<Uuid>,
    pub base_weights_digest: Option<WeightsDigest>,
    pub prompt_tokens: i64,
    pub cached_tokens: i64,
    pub completion_tokens: i64,
    pub price_book_version: i32,
    pub source: String,
    pub finish_reason: String,
    pub started_at: OffsetDateTime,
    pub first_token_at: Option<OffsetDateTime>,
    pub ended_at: OffsetDateTime,
}

/// The record with number `seq`: an event, or nothing when its kind is not billed, or why it
/// cannot be billed.
pub fn read(seq: u64, payload: &[u8]) -> Result<Option<Event>, String> {
    let record = UsageRecord::decode(payload).map_err(|e| format!("not a usage record: {e}"))?;
    if record.seq != seq {
        return Err(format!("the record says it is number {}, it lies at {seq}", record.seq));
    }
    let Some(usage) = final_usage(&record).map_err(|e| e.to_string())? else { return Ok(None) };
    let source_ok = |c: char| c.is_ascii_lowercase() || c == '_';
    if usage.source.is_empty() || usage.source.len() > 32 || !usage.source.chars().all(source_ok) {
        return Err("its source is not a word of at most 32 lower-case letters".to_owned());
    }
    let reason = usage.finish_reason.as_str_name();
    Ok(Some(Event {
        seq: i64::try_from(seq).map_err(|_| "its number is out of range".to_owned())?,
        request_id: usage.request_id.as_uuid(),
        tenant_id: usage.tenant_id.as_uuid(),
        key_id: usage.key_id.map(|id| id.as_uuid()),
        adapter_version_id: usage.adapter_version_id.map(|id| id.as_uuid()),
        base_weights_digest: WeightsDigest::from_slice(&record.base_weights_digest).ok(),
        prompt_tokens: tokens(usage.prompt_tokens)?,
        cached_tokens: tokens(usage.cached_tokens)?,
        completion_tokens: tokens(usage.completion_tokens)?,
        price_book_version: i32::try_from(usage.price_book_version)
            .map_err(|_| "its price book version is out of range".to_owned())?,
        source: usage.source,
        finish_reason: reason.trim_start_matches("FINISH_REASON_").to_lowercase(),
        started_at: instant(usage.started_unix_ms)?,
        first_token_at: usage.first_token_unix_ms.map(instant).transpose()?,
        ended_at: instant(usage.ended_unix_ms)?,
    }))
}

fn tokens(count: u64) -> Result<i64, String> {
    i64::try_from(count)
        .ok()
        .filter(|_| count <= MAX_TOKENS)
        .ok_or_else(|| format!("{count} tokens are more than a request can have"))
}

fn instant(unix_ms: i64) -> Result<OffsetDateTime, String> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .filter(|at| YEARS.contains(&at.year()))
        .ok_or_else(|| format!("its time, {unix_ms} ms, is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_contract::link::{FinishReason, UsageKind};
    use lorikeet_contract::{RequestId, TenantId};
    use proptest::prelude::*;

    fn record() -> UsageRecord {
        UsageRecord {
            kind: UsageKind::Final as i32,
            seq: 7,
            request_id: RequestId::new().to_string(),
            tenant_id: TenantId::new().to_string(),
            source: "api".into(),
            prompt_tokens: 5,
            cached_tokens: 2,
            completion_tokens: 3,
            started_unix_ms: 1_790_000_000_000,
            ended_unix_ms: 1_790_000_001_000,
            finish_reason: FinishReason::Length as i32,
            ..UsageRecord::default()
        }
    }

    #[test]
    fn a_final_record_is_an_event_and_the_others_are_nothing() {
        let event = read(7, &record().encode_to_vec()).expect("whole").expect("final");
        assert_eq!((event.prompt_tokens, event.finish_reason.as_str()), (5, "length"));
        let open = UsageRecord { kind: UsageKind::Open as i32, ..record() };
        assert_eq!(read(7, &open.encode_to_vec()), Ok(None));
    }

    #[test]
    fn a_record_that_would_break_a_column_is_refused_with_the_reason() {
        type Change = fn(&mut UsageRecord);
        let cases: [(&str, Change); 8] = [
            ("number", |r| r.seq = 8),
            ("tokens", |r| r.completion_tokens = u64::MAX),
            ("cached", |r| r.cached_tokens = 6),
            ("time", |r| r.ended_unix_ms = i64::MAX),
            ("before it started", |r| r.ended_unix_ms = 0),
            ("source", |r| r.source = "a\0b".into()),
            ("price book", |r| r.price_book_version = u32::MAX),
            ("tenant", |r| r.tenant_id = "ten_1".into()),
        ];
        for (word, change) in cases {
            let mut record = record();
            change(&mut record);
            let reason = read(7, &record.encode_to_vec()).expect_err(word);
            assert!(reason.contains(word), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(1, &bytes);
        }
    }
}

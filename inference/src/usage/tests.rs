use super::reader::Reader;
use super::*;
use lorikeet_contract::link::{FinishReason, UsageKind, UsageRecord};
use lorikeet_contract::usage::chain;
use lorikeet_contract::{KeyId, RequestId, TenantId, WeightsDigest};
use proptest::prelude::*;
use prost::Message;
use std::fs::{self, OpenOptions};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

fn admission() -> Admission {
    Admission {
        request_id: RequestId::new(),
        tenant_id: TenantId::new(),
        key_id: KeyId::new(),
        adapter_version_id: None,
        base_weights_digest: WeightsDigest([7; 32]),
        prompt_tokens: 11,
    }
}

fn config() -> LogConfig {
    LogConfig {
        max_open: 32,
        segment_bytes: 600,
        progress_every: Duration::from_millis(5),
        retry_every: Duration::from_millis(20),
        ..LogConfig::default()
    }
}

fn open(dir: &Path) -> (UsageLog, Recovery) {
    UsageLog::open(dir, config()).expect("the log opens")
}

/// Every record of a closed log, read as shipping reads it, with chain and sequence checked.
fn records(dir: &Path) -> Vec<UsageRecord> {
    let end = recover::recover(dir).expect("the log is whole").position.seq;
    let mut reader = Reader::new(dir);
    let mut records = Vec::new();
    let mut position = Position::START;
    while position.seq < end {
        let batch = reader.batch(position.seq + 1, end).expect("a batch");
        assert_eq!(batch.prev_hash, position.chain);
        for payload in &batch.payloads {
            let record = UsageRecord::decode(&payload[..]).expect("a record");
            assert_eq!(record.seq, position.seq + 1);
            position = Position { seq: record.seq, chain: chain(&position.chain, payload) };
            records.push(record);
        }
    }
    records
}

fn finals(dir: &Path) -> Vec<UsageRecord> {
    records(dir).into_iter().filter(|r| r.kind() == UsageKind::Final).collect()
}

/// What the disk holds if the process is killed now.
fn crash_image(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(dir).expect("the log's directory") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, image.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    image
}

#[tokio::test]
async fn a_finished_request_leaves_an_open_and_a_final_with_what_was_delivered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path());
    let admitted = admission();
    let (meter, opened) = log.admit(&admitted).expect("room");
    opened.wait().await.expect("durable");
    meter.deliver(3).expect("writable");
    meter.note_cached(4);
    meter.finish(FinishReason::Stop).wait().await.expect("durable");
    assert_eq!(*log.durable_seq().borrow(), records_on_disk(dir.path()));
    log.close();

    let records = records(dir.path());
    assert_eq!(records.first().map(UsageRecord::kind), Some(UsageKind::Open));
    let last = records.last().expect("a final");
    assert_eq!(last.kind(), UsageKind::Final);
    assert_eq!(last.request_id, admitted.request_id.to_string());
    assert_eq!((last.prompt_tokens, last.cached_tokens, last.completion_tokens), (11, 4, 3));
    assert_eq!(last.finish_reason(), FinishReason::Stop);
    assert!(last.first_token_unix_ms >= last.started_unix_ms);
    assert!(last.ended_unix_ms >= last.first_token_unix_ms);
}

fn records_on_disk(dir: &Path) -> u64 {
    recover::recover(crash_image(dir).path()).expect("the log is whole").position.seq
}

#[tokio::test]
async fn a_meter_that_is_dropped_closes_as_cancelled_with_what_was_delivered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path());
    let (meter, _opened) = log.admit(&admission()).expect("room");
    meter.deliver(2).expect("writable");
    drop(meter);
    log.close();
    let finals = finals(dir.path());
    assert_eq!(finals.len(), 1);
    assert_eq!(finals[0].finish_reason(), FinishReason::Cancelled);
    assert_eq!(finals[0].completion_tokens, 2);
}

#[tokio::test]
async fn a_request_open_at_a_crash_is_closed_from_its_last_durable_progress() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path());
    let (meter, opened) = log.admit(&admission()).expect("room");
    let (_silent, _) = log.admit(&admission()).expect("room");
    opened.wait().await.expect("durable");
    meter.deliver(5).expect("writable");
    let mut durable = log.durable_seq();
    durable.wait_for(|seq| *seq >= 3).await.expect("the progress record");
    let image = crash_image(dir.path());

    let (recovered, recovery) = open(image.path());
    assert_eq!(recovery.crashed_requests, 2);
    recovered.close();
    let finals = finals(image.path());
    assert_eq!(finals.len(), 2);
    assert!(finals.iter().all(|f| f.finish_reason() == FinishReason::Crashed));
    assert_eq!((finals[0].prompt_tokens, finals[0].completion_tokens), (11, 5));
    let nothing_delivered = (finals[1].prompt_tokens, finals[1].completion_tokens);
    assert_eq!(nothing_delivered, (0, 0), "a crash that delivered nothing is free");
    drop(recovered);
    let (again, recovery) = open(image.path());
    assert_eq!(recovery.crashed_requests, 0, "closed once");
    drop(again);
}

#[test]
fn a_directory_has_one_writer_and_keeps_its_identity() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) = open(dir.path());
    let identity = log.identity();
    let second = UsageLog::open(dir.path(), config()).err();
    assert_eq!(second, Some(LogError::Locked(dir.path().to_owned())));
    drop(log);
    let (log, _) = open(dir.path());
    assert_eq!(log.identity(), identity);
}

#[test]
fn a_log_that_lost_acknowledged_records_or_its_identity_is_refused() {
    let whole = written_log();
    let dir = crash_image(whole.path());
    fs::write(dir.path().join("cursor.json"), r#"{"acknowledged":1000000,"segments":{}}"#)
        .expect("a cursor");
    assert!(matches!(UsageLog::open(dir.path(), config()), Err(LogError::Missing { .. })));
    let dir = crash_image(whole.path());
    fs::remove_file(dir.path().join("identity.json")).expect("an identity");
    assert!(matches!(UsageLog::open(dir.path(), config()), Err(LogError::NoIdentity(_))));
}

/// A disk that takes a number of bytes and then only a part of each write.
struct FillingDisk {
    free: Arc<AtomicU64>,
}

struct FillingFile {
    file: Box<dyn SegmentFile>,
    free: Arc<AtomicU64>,
}

impl Disk for FillingDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let file = FileSystem.open(path)?;
        Ok(Box::new(FillingFile { file, free: self.free.clone() }))
    }
}

impl SegmentFile for FillingFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let take = self.free.load(Ordering::SeqCst).min(bytes.len() as u64);
        self.free.fetch_sub(take, Ordering::SeqCst);
        self.file.append(&bytes[..take as usize])?;
        if take < bytes.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_requests_and_loses_none_of_the_running_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let free = Arc::new(AtomicU64::new(1 << 20));
    let disk = Arc::new(FillingDisk { free: free.clone() });
    let (log, _) = UsageLog::open(dir.path(), LogConfig { disk, ..config() }).expect("opens");
    let (running, opened) = log.admit(&admission()).expect("room");
    opened.wait().await.expect("durable");
    running.deliver(1).expect("writable");

    free.store(70, Ordering::SeqCst);
    let (late, opened) = log.admit(&admission()).expect("not known to be full yet");
    assert_eq!(opened.wait().await, Err(LogError::Unwritable));
    assert_eq!(log.admit(&admission()).err(), Some(LogError::Unwritable));
    assert_eq!(running.deliver(2), Err(LogError::Unwritable), "nothing goes out unbilled");
    let ended = running.finish(FinishReason::Error).wait().await;
    assert_eq!(ended, Err(LogError::Unwritable), "not durable, and nobody is kept waiting");
    drop(late);

    free.store(1 << 20, Ordering::SeqCst);
    while !log.is_writable() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, opened) = log.admit(&admission()).expect("taken again");
    opened.wait().await.expect("durable");
    log.close();
    let finals = finals(dir.path());
    assert_eq!(finals.len(), 3);
    assert_eq!(finals[0].completion_tokens, 1, "what had been delivered before the disk was full");
}

#[tokio::test]
async fn requests_past_the_limit_are_refused_and_a_final_makes_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, _) =
        UsageLog::open(dir.path(), LogConfig { max_open: 2, ..config() }).expect("opens");
    let (first, _) = log.admit(&admission()).expect("room");
    let (_second, _) = log.admit(&admission()).expect("room");
    assert_eq!(log.admit(&admission()).err(), Some(LogError::Full));
    first.finish(FinishReason::Stop).wait().await.expect("durable");
    assert!(log.admit(&admission()).is_ok());
}

#[test]
fn acknowledged_segments_go_after_seven_days_and_not_before() {
    let dir = crash_image(written_log().path());
    let before = segment::list(dir.path()).expect("segments");
    assert!(before.len() > 3, "the log has several segments");
    let end = recover::recover(dir.path()).expect("whole").position.seq;
    let week = cursor::KEEP_ACKNOWLEDGED.as_millis() as i64;

    let mut cursor = cursor::Cursor::load(dir.path()).expect("a cursor");
    cursor.set(end, 1_000).expect("set");
    cursor.set(end, 1_000 + week - 1).expect("set");
    assert_eq!(segment::list(dir.path()).expect("segments"), before);

    let mut cursor = cursor::Cursor::load(dir.path()).expect("the cursor is on the disk");
    assert_eq!(cursor.acknowledged(), end);
    cursor.set(end, 1_000 + week).expect("set");
    let after = segment::list(dir.path()).expect("segments");
    assert_eq!(after, before[before.len() - 2..], "the chain goes on from the last ones");
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.last_seq, end);
    drop(log);
}

/// A closed log of some thirty records in several segments, made once.
fn written_log() -> &'static TempDir {
    static LOG: OnceLock<TempDir> = OnceLock::new();
    LOG.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let (log, _) = open(dir.path());
        for n in 0..15 {
            let (meter, _opened) = log.admit(&admission()).expect("room");
            meter.deliver(n).expect("writable");
            let durable = meter.finish(FinishReason::Stop);
            futures::executor::block_on(durable.wait()).expect("durable");
        }
        log.close();
        dir
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_tail_cut_at_any_byte_costs_the_cut_record_only(cut in 0.0f64..1.0) {
        let whole = records(written_log().path());
        let dir = crash_image(written_log().path());
        let first_seq = *segment::list(dir.path()).expect("segments").last().expect("a segment");
        let path = segment::path(dir.path(), first_seq);
        let first_seq = first_seq as usize;
        let len = fs::metadata(&path).expect("a segment").len();
        let keep = (len as f64 * cut) as u64;
        OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(keep)).expect("a cut");

        let (log, recovery) = open(dir.path());
        drop(log);
        let kept = records(dir.path());
        let crashed = recovery.crashed_requests;
        let survivors = &kept[..kept.len() - crashed];
        prop_assert_eq!(survivors, &whole[..survivors.len()], "a prefix, nothing invented");
        let bytes: u64 = whole[first_seq - 1..survivors.len()].iter()
            .map(|r| (frame::HEADER_BYTES + r.encoded_len()) as u64).sum();
        prop_assert_eq!(bytes + recovery.torn_bytes, keep, "only the cut record is gone");
        prop_assert!(kept[survivors.len()..].iter().all(|r| r.finish_reason() == FinishReason::Crashed));
    }

    #[test]
    fn a_byte_flipped_before_the_last_record_is_named_with_file_and_offset(
        at in 0.0f64..1.0, bit in 0u8..8,
    ) {
        let dir = crash_image(written_log().path());
        let segments = segment::list(dir.path()).expect("segments");
        let lens: Vec<u64> = segments.iter()
            .map(|s| fs::metadata(segment::path(dir.path(), *s)).expect("a segment").len()).collect();
        let last = records(dir.path()).last().expect("records").encoded_len() + frame::HEADER_BYTES;
        let mut offset = ((lens.iter().sum::<u64>() - last as u64) as f64 * at) as u64;
        let mut segment = 0;
        while offset >= lens[segment] {
            offset -= lens[segment];
            segment += 1;
        }
        let path = segment::path(dir.path(), segments[segment]);
        let mut bytes = fs::read(&path).expect("a segment");
        bytes[offset as usize] ^= 1 << bit;
        fs::write(&path, &bytes).expect("a flip");

        match UsageLog::open(dir.path(), config()) {
            Err(LogError::Damaged { file, offset: found, .. }) => {
                prop_assert_eq!(file, path);
                prop_assert!(found <= offset, "the record that holds byte {offset} starts at {found}");
            }
            other => prop_assert!(false, "opened or failed otherwise: {:?}", other.map(|o| o.1)),
        }
    }

    #[test]
    fn a_crash_at_any_moment_keeps_every_durable_record_and_closes_every_open_request(
        steps in proptest::collection::vec((0u8..3, 0usize..4), 1..24),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let (log, _) = open(dir.path());
        let mut running: Vec<Meter> = Vec::new();
        let mut durable_finals = 0;
        let mut admitted = 0;
        for (step, which) in steps {
            match (step, running.is_empty()) {
                (0, _) | (_, true) => {
                    let (meter, opened) = log.admit(&admission()).expect("room");
                    futures::executor::block_on(opened.wait()).expect("durable");
                    running.push(meter);
                    admitted += 1;
                }
                (1, _) => running[which % running.len()].deliver(9).expect("writable"),
                _ => {
                    let meter = running.swap_remove(which % running.len());
                    let durable = meter.finish(FinishReason::Length);
                    futures::executor::block_on(durable.wait()).expect("durable");
                    durable_finals += 1;
                }
            }
        }
        let durable_seq = *log.durable_seq().borrow();
        let image = crash_image(dir.path());
        let (recovered, recovery) = open(image.path());
        drop(recovered);
        prop_assert!(recovery.last_seq >= durable_seq);
        prop_assert_eq!(recovery.crashed_requests, running.len());
        let finals = finals(image.path());
        prop_assert_eq!(finals.len(), admitted);
        let ended_well = finals.iter().filter(|f| f.finish_reason() == FinishReason::Length).count();
        prop_assert_eq!(ended_well, durable_finals);
    }
}

//! Usage on its way into the ledger: nothing lost, nothing twice, whatever is sent again.

use crate::plane::{LinkProcess, Plane};
use lorikeet_contract::link::{
    FinishReason, USAGE_CURSOR_METADATA, UsageBatch, UsageKind, UsageRecord,
};
use lorikeet_contract::usage::{CHAIN_START, chain};
use lorikeet_contract::{AdapterVersionId, KeyId, NodeId, RequestId, TenantId};
use lorikeet_control_plane::usage::ingest::{Ingest, IngestError};
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use tonic::Code;
use uuid::Uuid;

/// 2026-11-24 08:00 UTC, in milliseconds.
pub const MORNING: i64 = 1_795_507_200_000;

/// A node's log, as it lies on its disk.
#[derive(Clone)]
pub struct Log {
    pub node: NodeId,
    pub id: Uuid,
    pub records: Vec<Vec<u8>>,
}

impl Log {
    pub fn new() -> Self {
        Self { node: NodeId::new(), id: Uuid::now_v7(), records: Vec::new() }
    }

    /// Appends a record; `seq` is set to its place.
    pub fn push(&mut self, record: UsageRecord) {
        let seq = self.records.len() as u64 + 1;
        self.records.push(UsageRecord { seq, ..record }.encode_to_vec());
    }

    /// Records `from + 1` to `to`.
    pub fn batch(&self, from: usize, to: usize) -> UsageBatch {
        let prev = self.records[..from].iter().fold(CHAIN_START, |hash, r| chain(&hash, r));
        UsageBatch {
            node_id: self.node.to_string(),
            log_id: self.id.to_string(),
            epoch: 1,
            first_seq: from as u64 + 1,
            records: self.records[from..to].to_vec(),
            prev_hash: prev.to_vec(),
        }
    }

    pub fn all(&self) -> UsageBatch {
        self.batch(0, self.records.len())
    }
}

pub fn of_tenant(tenant: TenantId) -> UsageRecord {
    UsageRecord {
        kind: UsageKind::Final as i32,
        request_id: RequestId::new().to_string(),
        tenant_id: tenant.to_string(),
        source: "api".into(),
        prompt_tokens: 10,
        cached_tokens: 4,
        completion_tokens: 3,
        started_unix_ms: MORNING,
        first_token_unix_ms: MORNING + 100,
        ended_unix_ms: MORNING + 900,
        finish_reason: FinishReason::Stop as i32,
        ..UsageRecord::default()
    }
}

struct World {
    plane: Plane,
    ingest: Ingest,
    tenant: TenantId,
    key: KeyId,
    version: AdapterVersionId,
}

impl World {
    async fn new() -> Self {
        let plane = Plane::new().await;
        let tenant = plane.tenant("acme").await;
        let key = plane.key(tenant).await;
        let version = plane.verified_version(tenant, "pirate").await;
        Self {
            ingest: Ingest::new(plane.db.ingest.clone(), Default::default()),
            plane,
            tenant,
            key,
            version,
        }
    }

    fn record(&self) -> UsageRecord {
        of_tenant(self.tenant)
    }

    async fn ship(&self, log: &Log, from: usize, to: usize) -> Result<u64, IngestError> {
        let ack = self.ingest.ship(log.node, log.batch(from, to)).await?;
        assert_eq!(ack.quarantine_reason, "");
        Ok(ack.cursor)
    }

    async fn events(&self) -> i64 {
        self.plane.look("select count(*) from usage_event").await
    }
}

/// True when the sums are those of the events, group by group, in one snapshot.
const BOOKS_AGREE: &str = "
  select not exists (
    (select tenant_id, date_trunc('hour', ended_at, 'UTC') as hour,
       coalesce(adapter_version_id, '00000000-0000-0000-0000-000000000000') as version,
       coalesce(key_id, '00000000-0000-0000-0000-000000000000') as key, count(*) as requests,
       sum(prompt_tokens)::bigint as prompt, sum(cached_tokens)::bigint as cached,
       sum(completion_tokens)::bigint as completion
     from usage_event group by 1, 2, 3, 4)
    except
    select tenant_id, hour, adapter_version_id, key_id, requests, prompt_tokens, cached_tokens,
      completion_tokens from usage_hourly
  ) and (select coalesce(sum(requests), 0) from usage_hourly) = (select count(*) from usage_event)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_final_record_counts_once_whatever_is_sent_again_overlaps_or_is_broken_off() {
    let world = World::new().await;
    let other = world.plane.tenant("other").await;
    let mut random = StdRng::seed_from_u64(3);
    let mut finals = 0;
    let logs: Vec<Log> = (0..2)
        .map(|_| {
            let mut log = Log::new();
            for _ in 0..300 {
                let kind = [UsageKind::Open, UsageKind::Progress, UsageKind::Final];
                let kind = kind[random.random_range(0..3)];
                finals += i64::from(kind == UsageKind::Final);
                let ended_unix_ms = MORNING + random.random_range(0..6 * 3_600_000);
                let mine = random.random::<bool>();
                log.push(UsageRecord {
                    kind: kind as i32,
                    tenant_id: if mine { world.tenant } else { other }.to_string(),
                    key_id: if mine { world.key.to_string() } else { String::new() },
                    adapter_version_id: if mine {
                        world.version.to_string()
                    } else {
                        String::new()
                    },
                    completion_tokens: random.random_range(0..100),
                    ended_unix_ms,
                    ..world.record()
                });
            }
            log
        })
        .collect();

    let mut senders = tokio::task::JoinSet::new();
    for (i, log) in logs.iter().cycle().take(6).cloned().enumerate() {
        let ingest = world.ingest.clone();
        senders.spawn(async move {
            let mut random = StdRng::seed_from_u64(i as u64);
            let end = log.records.len();
            let mut cursor = 0;
            while cursor < end {
                let from = random.random_range(cursor.saturating_sub(40)..=cursor);
                let to = random.random_range(from..=end.min(from + 60));
                let shipping = ingest.ship(log.node, log.batch(from, to));
                // A call that is broken off rolls back, wherever it was.
                let limit =
                    [Duration::from_millis(random.random_range(0..6)), Duration::from_secs(60)]
                        [usize::from(random.random_bool(0.7))];
                if let Ok(shipped) = tokio::time::timeout(limit, shipping).await {
                    let ack = shipped.expect("no gap: another sender only moves the cursor on");
                    assert_eq!(ack.quarantine_reason, "");
                    cursor = ack.cursor as usize;
                }
            }
        });
    }
    let mut looks = 0;
    loop {
        assert!(world.plane.look::<bool>(BOOKS_AGREE).await, "after {looks} looks");
        looks += 1;
        tokio::select! {
            joined = senders.join_next() => match joined {
                Some(sent) => sent.unwrap(),
                None => break,
            },
            () = tokio::time::sleep(Duration::from_millis(3)) => {}
        }
    }
    assert!(looks > 5, "{looks}");
    assert!(world.plane.look::<bool>(BOOKS_AGREE).await);
    assert_eq!(world.events().await, finals);
    assert_eq!(world.plane.look::<i64>("select count(*) from usage_quarantine").await, 0);
}

#[tokio::test]
async fn a_gap_is_an_error_that_tells_the_node_where_to_go_on() {
    let world = World::new().await;
    let process = LinkProcess::start(&world.plane).await;
    let mut log = Log::new();
    for _ in 0..6 {
        log.push(world.record());
    }
    assert_eq!(process.ship(log.node, log.batch(0, 2)).await.unwrap().cursor, 2);
    let status = process.ship(log.node, log.batch(4, 6)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.metadata().get(USAGE_CURSOR_METADATA).unwrap(), "2");
    assert_eq!(process.ship(log.node, log.batch(2, 6)).await.unwrap().cursor, 6);
    assert_eq!(world.events().await, 6);
}

#[tokio::test]
async fn a_cloned_log_is_noticed_and_neither_copy_is_taken_any_further() {
    let world = World::new().await;
    let mut original = Log::new();
    for _ in 0..4 {
        original.push(world.record());
    }
    let mut clone = original.clone();
    original.push(world.record());
    clone.push(world.record());
    clone.push(world.record());
    assert_eq!(world.ship(&original, 0, 5).await.unwrap(), 5);

    let ack = world.ingest.ship(clone.node, clone.batch(4, 6)).await.unwrap();
    assert_eq!(ack.cursor, 5);
    assert!(ack.quarantine_reason.contains("cloned"), "{}", ack.quarantine_reason);
    original.push(world.record());
    let ack = world.ingest.ship(original.node, original.batch(5, 6)).await.unwrap();
    assert!(!ack.quarantine_reason.is_empty(), "the original's tail waits for an operator too");
    assert_eq!(world.events().await, 5);
    let marked = "select quarantined_at is not null from usage_cursor";
    assert!(world.plane.look::<bool>(marked).await);
}

#[tokio::test]
async fn a_clone_that_lags_behind_is_noticed_by_its_requests() {
    let world = World::new().await;
    let mut original = Log::new();
    original.push(world.record());
    let mut clone = original.clone();
    for _ in 0..5 {
        original.push(world.record());
    }
    clone.push(world.record());
    world.ship(&original, 0, 6).await.unwrap();
    assert_eq!(world.ship(&original, 1, 3).await.unwrap(), 6, "a repeat is harmless");
    let ack = world.ingest.ship(clone.node, clone.batch(1, 2)).await.unwrap();
    assert!(!ack.quarantine_reason.is_empty());
}

#[tokio::test]
async fn a_record_that_cannot_be_attributed_is_kept_aside_whole_and_holds_up_no_other() {
    let world = World::new().await;
    let other = world.plane.tenant("other").await;
    let mut log = Log::new();
    log.push(world.record());
    log.push(UsageRecord { key_id: world.key.to_string(), ..of_tenant(other) });
    log.push(UsageRecord { adapter_version_id: world.version.to_string(), ..of_tenant(other) });
    log.push(of_tenant(TenantId::new()));
    log.push(UsageRecord { cached_tokens: 11, ..world.record() });
    log.records.push(b"\xff not protobuf".to_vec());
    log.push(UsageRecord { key_id: "key_\0".into(), ..world.record() });
    log.push(world.record());
    assert_eq!(world.ship(&log, 0, 8).await.unwrap(), 8);
    assert_eq!(world.events().await, 2);
    let kept: Vec<(i64, Vec<u8>, String)> =
        sqlx::query_as("select seq, record, reason from usage_quarantine order by seq")
            .fetch_all(&mut world.plane.owner().await)
            .await
            .unwrap();
    assert_eq!(kept.iter().map(|(seq, ..)| *seq).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
    assert!(kept.iter().all(|(seq, record, _)| *record == log.records[*seq as usize - 1]));
    let words = ["key", "adapter version", "tenant", "cached", "not a usage record", "key_"];
    for ((_, _, reason), word) in kept.iter().zip(words) {
        assert!(reason.contains(word), "{reason}");
    }
    assert!(world.plane.look::<bool>(BOOKS_AGREE).await);
}

#[tokio::test]
async fn events_go_to_their_months_partition_and_count_also_where_there_is_none() {
    let world = World::new().await;
    world.ingest.ensure_partitions().await.unwrap();
    world.ingest.ensure_partitions().await.unwrap();
    let mut log = Log::new();
    let now = (time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as i64;
    log.push(UsageRecord { started_unix_ms: now, ended_unix_ms: now, ..world.record() });
    let years_ago = now - 3 * 365 * 86_400_000;
    log.push(UsageRecord { started_unix_ms: 1, ended_unix_ms: years_ago, ..world.record() });
    log.push(UsageRecord {
        started_unix_ms: years_ago,
        ended_unix_ms: years_ago,
        ..world.record()
    });
    world.ship(&log, 0, 3).await.unwrap();
    assert_eq!(world.events().await, 2);
    assert_eq!(world.plane.look::<i64>("select count(*) from usage_event_default").await, 1);
    assert_eq!(world.plane.look::<i64>("select sum(requests)::bigint from usage_hourly").await, 2);
    assert_eq!(world.plane.look::<i64>("select count(*) from usage_quarantine").await, 1, "1970");
}

#[tokio::test]
async fn when_a_key_was_last_used_is_written_later_and_does_not_touch_the_manifest() {
    let world = World::new().await;
    let revision: i64 = world.plane.look("select revision from manifest_counter").await;
    let mut log = Log::new();
    for hours in [2, 5, 1] {
        let ended_unix_ms = MORNING + hours * 3_600_000;
        let key_id = world.key.to_string();
        log.push(UsageRecord { key_id, ended_unix_ms, ..world.record() });
    }
    world.ship(&log, 0, 3).await.unwrap();
    let unused = "select last_used_at is null from api_key";
    assert!(world.plane.look::<bool>(unused).await);
    world.ingest.write_last_used().await.unwrap();
    let used = "select (extract(epoch from last_used_at) * 1000)::bigint from api_key";
    assert_eq!(world.plane.look::<i64>(used).await, MORNING + 5 * 3_600_000);
    assert_eq!(world.plane.look::<i64>("select revision from manifest_counter").await, revision);
}

#[tokio::test]
async fn a_malformed_batch_is_refused_and_changes_nothing() {
    let world = World::new().await;
    let mut log = Log::new();
    log.push(world.record());
    let node = log.node;
    let cases: [fn(&mut UsageBatch); 5] = [
        |b| b.log_id = "x".into(),
        |b| b.prev_hash = vec![0; 31],
        |b| b.first_seq = 0,
        |b| b.first_seq = u64::MAX,
        |b| b.records = vec![vec![]; 5000],
    ];
    for (i, change) in cases.into_iter().enumerate() {
        let mut batch = log.all();
        change(&mut batch);
        let refused = world.ingest.ship(node, batch).await;
        assert!(matches!(refused, Err(IngestError::Batch(_))), "case {i}: {refused:?}");
    }
    let refused = world.ingest.ship(NodeId::new(), log.all()).await;
    assert!(matches!(refused, Err(IngestError::OtherNode)));
    assert_eq!(world.plane.look::<i64>("select count(*) from usage_cursor").await, 0);
}

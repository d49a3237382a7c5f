//! The link: what nodes are sent, what is kept of what they say.

use crate::ingest::Log;
use crate::nodes::{Attached, Node};
use crate::plane::{LinkProcess, Plane};
use lorikeet_contract::TenantId;
use lorikeet_contract::link::control_message::Message;
use lorikeet_contract::link::{
    Ack, AdapterResidency, Heartbeat, ResidencyReport, ResourceKind, Tier, TierUsage, node_message,
};
use lorikeet_control_plane::db::Acting;
use lorikeet_control_plane::link::status::{RevocationReach, nodes, revocation_reach};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};
use tonic::Code;

async fn one_tenant() -> (Plane, TenantId, LinkProcess) {
    let plane = Plane::new().await;
    let tenant = plane.tenant("acme").await;
    let process = LinkProcess::start(&plane).await;
    (plane, tenant, process)
}

#[tokio::test]
async fn a_node_gets_the_whole_manifest_first_and_only_changes_afterwards() {
    let (plane, tenant, process) = one_tenant().await;
    for id in ["a", "b", "c"] {
        plane.put(tenant, ResourceKind::Alias, id, Some("x")).await;
    }
    let mut node = Node::new().attach(&process).await;
    assert!(matches!(node.receive().await, Some(Message::Welcome(w)) if w.protocol_version == 1));
    node.follow_to(3).await;
    assert_eq!((node.node.snapshots, node.node.manifest.len()), (1, 3));

    plane.put(tenant, ResourceKind::Alias, "b", None).await;
    let delta = node.receive().await.unwrap();
    let Message::Delta(change) = &delta else { panic!("{delta:?}") };
    assert_eq!((change.upserts.len(), change.tombstones.len()), (0, 1));
    node.apply(delta).await;
    assert_eq!(node.node.manifest, plane.manifest().await);
    plane.see("select acked_revision from node", 4i64).await;
    assert_eq!(
        plane.look::<String>("select base_model ->> 'id' from node").await,
        "smollm2-135m-instruct"
    );
    assert_eq!(plane.look::<String>("select id from base_model").await, "smollm2-135m-instruct");
}

#[tokio::test]
async fn two_nodes_of_two_processes_hold_what_the_database_holds_after_random_changes() {
    let plane = Plane::new().await;
    let tenant = plane.tenant("acme").await;
    let (one, two) = (LinkProcess::start(&plane).await, LinkProcess::start(&plane).await);
    let mut a = Node::new().attach(&one).await;
    let mut b = Node::new().attach(&two).await;
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..60 {
        let id = random.random_range(0..9).to_string();
        let name = random.random_bool(0.7).then(|| format!("v{round}"));
        let kind = [ResourceKind::Key, ResourceKind::Alias][random.random_range(0..2)];
        plane.put(tenant, kind, &format!("{kind:?}{id}"), name.as_deref()).await;
        if random.random_bool(0.2) {
            // Streams break; what was missed comes with the next.
            b = b.hang_up().attach(if random.random() { &one } else { &two }).await;
        }
        if random.random_bool(0.3) {
            a.follow_to(round).await;
        }
    }
    a.follow_to(60).await;
    b.follow_to(60).await;
    let truth = plane.manifest().await;
    assert_eq!(a.node.manifest, truth);
    assert_eq!(b.node.manifest, truth);
    assert_eq!((a.node.snapshots, b.node.snapshots), (1, 1), "reconnecting needs no snapshot");
}

#[tokio::test]
async fn a_restarted_control_plane_goes_on_with_a_delta() {
    let (plane, tenant, process) = one_tenant().await;
    plane.put(tenant, ResourceKind::Alias, "a", Some("x")).await;
    let mut node = Node::new().attach(&process).await;
    node.follow_to(1).await;
    plane.see("select acked_revision from node", 1i64).await;
    process.kill();
    plane.put(tenant, ResourceKind::Alias, "b", Some("x")).await;

    let process = LinkProcess::start(&plane).await;
    let mut node = node.hang_up().attach(&process).await;
    node.follow_to(2).await;
    assert_eq!(node.node.snapshots, 1);
    assert_eq!(node.node.manifest, plane.manifest().await);
}

#[tokio::test]
async fn a_node_whose_manifest_is_of_another_epoch_gets_a_snapshot() {
    let (plane, tenant, process) = one_tenant().await;
    plane.put(tenant, ResourceKind::Alias, "a", Some("x")).await;
    let mut node = Node::new().attach(&process).await;
    node.follow_to(1).await;
    // As after a restore of the database from a backup, while the node is attached.
    sqlx::query("update manifest_counter set cp_epoch = cp_epoch + 1")
        .execute(&mut plane.owner().await)
        .await
        .unwrap();
    let truth = plane.manifest().await;
    node.follow(|node| node.manifest.cp_epoch == truth.cp_epoch).await;
    assert_eq!((node.node.snapshots, node.node.manifest), (2, truth));
}

#[tokio::test]
async fn a_node_that_asks_for_a_resync_gets_the_whole_state_again() {
    let (plane, tenant, process) = one_tenant().await;
    plane.put(tenant, ResourceKind::Alias, "a", Some("x")).await;
    let mut node = Node::new().attach(&process).await;
    node.follow_to(1).await;
    // Its disk lies: the next delta's digest shows it.
    node.node.manifest.upsert(4, "a".into(), b"junk".as_slice().into());
    plane.put(tenant, ResourceKind::Alias, "b", Some("x")).await;
    node.follow_to(2).await;
    assert_eq!(node.node.snapshots, 2);
    assert_eq!(node.node.manifest, plane.manifest().await);
    plane.see("select acked_revision from node", 2i64).await;
}

#[tokio::test]
async fn one_refused_resource_is_kept_with_its_reason_until_it_changes_and_blocks_no_other() {
    let (plane, tenant, process) = one_tenant().await;
    let mut node = Node::new();
    node.refuses.insert("bad".into(), "no such\0 layout".into());
    let mut node = node.attach(&process).await;
    plane.put(tenant, ResourceKind::Adapter, "bad", Some("1")).await;
    plane.put(tenant, ResourceKind::Adapter, "good", Some("1")).await;
    node.follow_to(2).await;
    plane
        .see(
            "select reason from node_rejection where resource_id = 'bad'",
            "no such layout".to_owned(),
        )
        .await;
    plane.see("select acked_revision from node", 2i64).await;

    plane.put(tenant, ResourceKind::Adapter, "good", Some("2")).await;
    node.follow_to(3).await;
    plane.see("select acked_revision from node", 3i64).await;
    assert_eq!(plane.look::<i64>("select count(*) from node_rejection").await, 1, "unchanged");

    node.node.refuses.clear();
    plane.put(tenant, ResourceKind::Adapter, "bad", Some("2")).await;
    node.follow_to(4).await;
    plane.see("select count(*) from node_rejection", 0i64).await;
}

#[tokio::test]
async fn a_version_is_ready_when_every_connected_node_has_acknowledged_it() {
    let (plane, tenant, process) = one_tenant().await;
    let version = plane.verified_version(tenant, "pirate").await;
    let state = "select state from adapter_version";
    assert_eq!(plane.look::<String>(state).await, "verified", "no node is there");

    let fast = Node::new().attach(&process).await;
    let mut slow = Node::new().attach(&process).await;
    plane.see("select count(*) from node where connected", 2i64).await;
    let fast_id = fast.node.id;
    let _fast = fast.live();
    plane.see("select count(*) from node where acked_revision = 1", 1i64).await;
    assert_eq!(plane.look::<String>(state).await, "verified", "one of two has it");
    slow.follow_to(1).await;
    plane.see(state, "ready".to_owned()).await;
    assert_ne!(slow.node.id, fast_id);
    let audited = "select subject from audit where action = 'adapter_version.ready'";
    assert_eq!(plane.look::<String>(audited).await, version.to_string());
}

#[tokio::test]
async fn a_version_waits_for_no_node_that_has_gone() {
    let (plane, tenant, process) = one_tenant().await;
    let mut here = Node::new().attach(&process).await;
    let gone = Node::new().attach(&process).await;
    plane.see("select count(*) from node where connected", 2i64).await;
    plane.verified_version(tenant, "pirate").await;
    here.follow_to(1).await;
    plane.see("select count(*) from node where acked_revision = 1", 1i64).await;
    assert_eq!(plane.look::<String>("select state from adapter_version").await, "verified");
    gone.hang_up();
    plane.see("select state from adapter_version", "ready".to_owned()).await;
}

#[tokio::test]
async fn what_a_node_says_while_postgres_is_away_is_stored_when_it_is_back() {
    let (plane, tenant, process) = one_tenant().await;
    let mut node = Node::new().attach(&process).await;
    node.follow(|node| node.snapshots == 1).await;
    plane.see("select count(*) from node where connected", 1i64).await;
    plane.verified_version(tenant, "pirate").await;
    let delta = node.receive().await.unwrap();
    plane.lose_database().await;
    node.apply(delta).await;
    let log = Log::new();
    let shipped = process.ship(log.node, log.all()).await;
    assert_eq!(shipped.unwrap_err().code(), Code::Unavailable, "the node keeps its records");
    tokio::time::sleep(Duration::from_secs(1)).await;
    plane.restore_database().await;
    plane.see("select state from adapter_version", "ready".to_owned()).await;

    plane.put(tenant, ResourceKind::Alias, "a", Some("x")).await;
    node.follow_to(2).await;
    assert_eq!(node.node.snapshots, 1, "the stream outlived it");
}

#[tokio::test]
async fn a_version_that_every_node_refuses_has_failed_with_a_nodes_reason() {
    let (plane, tenant, process) = one_tenant().await;
    let version = plane.verified_version(tenant, "pirate").await;
    let mut node = Node::new();
    node.refuses.insert(version.to_string(), "another base model".into());
    let mut node = node.attach(&process).await;
    node.follow_to(1).await;
    plane
        .see(
            "select state || ': ' || error from adapter_version",
            "failed: another base model".to_owned(),
        )
        .await;
}

#[tokio::test]
async fn a_revocation_is_acknowledged_by_every_node_within_a_second_of_its_commit() {
    let (plane, tenant, process) = one_tenant().await;
    let nodes: Vec<_> = [Node::new().attach(&process).await, Node::new().attach(&process).await]
        .into_iter()
        .map(Attached::live)
        .collect();
    plane.see("select count(*) from node where connected", 2i64).await;
    let mut waits = Vec::new();
    for _ in 0..20 {
        let key = plane.key(tenant).await;
        plane.revoke(tenant, key).await;
        let committed = Instant::now();
        loop {
            let mut tx = plane.db.app.read(&Acting::system(tenant)).await.unwrap();
            let reach = revocation_reach(&mut tx, key).await.unwrap().expect("revoked");
            if reach == (RevocationReach { acknowledged: 2, connected: 2, away: 0 }) {
                break;
            }
            assert!(committed.elapsed() < Duration::from_secs(10), "{reach:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        waits.push(committed.elapsed());
    }
    waits.sort();
    assert!(waits[19] < Duration::from_secs(1), "{waits:?}");
    assert!(waits[10] < Duration::from_millis(240), "woken, not polled: {waits:?}");
    drop(nodes);
}

#[tokio::test]
async fn a_node_that_was_away_hears_of_each_revocation_and_is_shown_as_one_that_may_still_accept() {
    let (plane, tenant, process) = one_tenant().await;
    let node = Node::new().attach(&process).await;
    let node = node.hang_up();
    plane.see("select connected from node", false).await;
    let (first, second) = (plane.key(tenant).await, plane.key(tenant).await);
    plane.revoke(tenant, first).await;
    plane.revoke(tenant, second).await;
    let mut tx = plane.db.app.read(&Acting::system(tenant)).await.unwrap();
    let away = RevocationReach { acknowledged: 0, connected: 0, away: 1 };
    assert_eq!(revocation_reach(&mut tx, first).await.unwrap(), Some(away));
    let other = plane.tenant("other").await;
    let mut tx = plane.db.app.read(&Acting::system(other)).await.unwrap();
    assert_eq!(revocation_reach(&mut tx, first).await.unwrap(), None, "another tenant's key");

    let user = lorikeet_contract::UserId::new();
    let mut tx = plane.db.operator(user, "operator.read_nodes", None).await.unwrap();
    assert_eq!(nodes(&mut tx).await.unwrap().nodes[0].may_still_accept, 2);

    let mut node = node.attach(&process).await;
    node.follow(|node| node.revocation_seq == 2).await;
    plane.see("select revocation_seq from node", 2i64).await;
}

#[tokio::test]
async fn the_newer_stream_of_a_node_ends_the_older_one_and_stays_counted_as_connected() {
    let plane = Plane::new().await;
    let (one, two) = (LinkProcess::start(&plane).await, LinkProcess::start(&plane).await);
    let node = Node::new();
    let id = node.id;
    let first = node.attach(&one).await.live();
    let second = Node::with_id(id).attach(&one).await;
    tokio::time::timeout(Duration::from_secs(5), first).await.expect("the first ends").unwrap();

    // In another process the older stream learns of it when its node next speaks.
    let _third = Node::with_id(id).attach(&two).await;
    second.say(node_message::Message::Heartbeat(Heartbeat { unix_ms: 0 })).await;
    tokio::time::timeout(Duration::from_secs(5), second.live()).await.expect("ends too").unwrap();
    plane.see("select connected from node", true).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        plane.look::<bool>("select connected from node").await,
        "the older one's end is not it"
    );
}

#[tokio::test]
async fn a_stopping_process_ends_its_streams_and_says_so() {
    let (plane, _, process) = one_tenant().await;
    let node = Node::new().attach(&process).await.live();
    plane.see("select connected from node", true).await;
    process.stop().await;
    node.await.unwrap();
    assert!(!plane.look::<bool>("select connected from node").await);
}

#[tokio::test]
async fn what_a_node_holds_in_its_tiers_is_shown_to_operators() {
    let (plane, _, process) = one_tenant().await;
    let node = Node::new().attach(&process).await;
    let adapter = |tier: Tier| AdapterResidency {
        tenant_id: "ten_1".into(),
        digest: vec![1; 32],
        tier: tier as i32,
        ..AdapterResidency::default()
    };
    let report = ResidencyReport {
        adapters: vec![adapter(Tier::Device), adapter(Tier::Disk)],
        tiers: [Tier::Device, Tier::Disk]
            .map(|tier| TierUsage { tier: tier as i32, used_bytes: 5, capacity_bytes: 9 })
            .into(),
        more: true,
    };
    node.say(node_message::Message::Residency(report)).await;
    let rest = ResidencyReport { adapters: vec![adapter(Tier::Device)], ..Default::default() };
    node.say(node_message::Message::Residency(rest)).await;
    plane.see("select residency <> '{}' from node", true).await;
    let user = lorikeet_contract::UserId::new();
    let mut tx = plane.db.operator(user, "operator.read_nodes", None).await.unwrap();
    let status = nodes(&mut tx).await.unwrap().nodes.remove(0);
    assert_eq!((status.device.adapters, status.device.used_bytes, status.disk.adapters), (2, 5, 1));
    assert_eq!((status.adapters.len(), status.adapters_total), (3, 3));
}

#[tokio::test]
async fn a_node_that_claims_a_revision_it_was_never_sent_is_cut_off() {
    let (plane, _, process) = one_tenant().await;
    let mut node = Node::new().attach(&process).await;
    node.follow(|node| node.snapshots == 1).await;
    let cp_epoch = node.node.manifest.cp_epoch;
    let ack = Ack { cp_epoch, revision: 999, state_digest: vec![0; 32], ..Ack::default() };
    node.say(node_message::Message::Ack(ack)).await;
    tokio::time::timeout(Duration::from_secs(5), node.live()).await.expect("ends").unwrap();
    assert_eq!(plane.look::<i64>("select acked_revision from node").await, 0);
}

use super::control_plane::{ControlPlane, EPOCH, snapshot};
use super::harness::{Customer, Node, adapter, node_of_one};
use lorikeet_contract::link::{
    AdapterState, ResourceKind, ResourceRef, UsageKind, revocation::Target,
};
use lorikeet_contract::manifest::ManifestState;
use reqwest::StatusCode;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_loads_its_model_says_so_and_is_alive() {
    let control_plane = ControlPlane::start(Vec::new());
    let node = Node::start(&control_plane, |_| {}).await;
    let (ready, health, models) = tokio::join!(
        node.get("/ready", None),
        node.get("/health", None),
        node.get("/v1/models", Some("lk_live_nobody")),
    );
    assert_eq!(ready.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.1.contains("the model is being loaded"), "{}", ready.1);
    assert_eq!(health.0, StatusCode::OK);
    assert_eq!(models.0, StatusCode::SERVICE_UNAVAILABLE, "{}", models.1);
    node.until_ready().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_ready_before_its_first_manifest_and_then_follows_every_change() {
    let (first, second) = (Customer::new(), Customer::new());
    let absent = Customer::new();
    // Nothing listens there yet.
    let control_plane = ControlPlane::start(first.resources());
    let killed = control_plane.kill();
    let nowhere = ControlPlane::start(Vec::new());
    let url = nowhere.url();
    nowhere.kill();
    let node = Node::start_on(tempfile::tempdir().expect("a directory"), &url, |_| {}).await;
    node.until_loaded().await;
    let (health, _) = node.get("/health", None).await;
    assert_eq!(health, StatusCode::OK);
    let (status, body) = node.get("/ready", None).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert!(body.contains("manifest") || body.contains("starting"), "{body}");
    let (status, _) = node.refused(first.key.reveal(), json!({})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let data = node.stop().await;

    let control_plane = killed.restart().await;
    let node = Node::start_on(data, &control_plane.url(), |_| {}).await;
    node.until_ready().await;
    let seen = control_plane.acknowledged(1).await;
    assert_eq!((seen.hellos[0].cp_epoch, seen.hellos[0].revision), (0, 0), "a fresh node");
    assert!(seen.bearers[0].starts_with("Bearer ey"));
    node.chat(&first, json!({})).await;

    control_plane.publish(second.resources()).await;
    control_plane.acknowledged(1).await;
    node.chat(&second, json!({})).await;
    let gone = ResourceRef { kind: ResourceKind::Key as i32, id: first.key_id.to_string() };
    control_plane.change(Vec::new(), vec![gone], |_| {}).await;
    control_plane.acknowledged(1).await;
    assert_eq!(node.refused(first.key.reveal(), json!({})).await.0, StatusCode::UNAUTHORIZED);
    node.chat(&second, json!({})).await;
    assert_eq!(node.refused(absent.key.reveal(), json!({})).await.0, StatusCode::UNAUTHORIZED);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_or_snapshot_whose_digest_differs_changes_nothing_and_is_asked_for_again() {
    let (first, second, third) = (Customer::new(), Customer::new(), Customer::new());
    let control_plane = ControlPlane::start(first.resources());
    let node = Node::ready(&control_plane, |_| {}).await;
    control_plane.acknowledged(1).await;

    // A delta that lost a resource on the way.
    control_plane.change(second.resources(), Vec::new(), |delta| delta.upserts.truncate(1)).await;
    let resyncs = |s: &super::control_plane::Seen| s.acks.iter().filter(|a| a.resync).count();
    let seen = control_plane.until("a resync", |s| resyncs(s) == 1).await;
    let asked = seen.acks.iter().find(|a| a.resync).expect("a resync");
    assert_eq!(asked.revision, 1, "it says what it holds");
    control_plane.acknowledged(1).await;
    node.chat(&second, json!({})).await;

    // A delta that starts after what the node holds.
    control_plane.change(third.resources(), Vec::new(), |delta| delta.from_revision += 5).await;
    control_plane.until("another resync", |s| resyncs(s) == 2).await;
    control_plane.acknowledged(1).await;
    node.chat(&third, json!({})).await;

    // A snapshot cut short, then one with a resource changed.
    let empty = ManifestState::from_resources(EPOCH, 99, Vec::new());
    let mut cut = snapshot(&ManifestState::from_resources(EPOCH, 99, first.resources()));
    cut.truncate(1);
    let mut wrong = snapshot(&empty);
    if let Some(lorikeet_contract::link::control_message::Message::Snapshot(chunk)) =
        wrong.first_mut()
    {
        chunk.state_digest = vec![1; 32];
    }
    control_plane.say([cut, wrong].concat()).await;
    control_plane.until("a third resync", |s| resyncs(s) == 3).await;
    control_plane.acknowledged(1).await;
    for customer in [&first, &second, &third] {
        node.chat(customer, json!({})).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarted_without_the_control_plane_serves_what_it_knew() {
    let (first, second) = (Customer::new(), Customer::new());
    let control_plane = ControlPlane::start(first.resources());
    let node = Node::ready(&control_plane, |_| {}).await;
    control_plane.publish(second.resources()).await;
    control_plane.acknowledged(1).await;
    let url = control_plane.url();
    let killed = control_plane.kill();

    let node = Node::start_on(node.stop().await, &url, |_| {}).await;
    node.until_ready().await;
    node.chat(&first, json!({})).await;
    node.chat(&second, json!({})).await;

    let control_plane = killed.restart().await;
    let seen = control_plane.until("it comes back", |s| s.hellos.len() == 2).await;
    let hello = seen.hellos.last().expect("a hello");
    assert_eq!((hello.cp_epoch, hello.revision), (EPOCH, 2), "with what it holds");
    assert_eq!(hello.node_id, seen.hellos[0].node_id);
    let third = Customer::new();
    control_plane.publish(third.resources()).await;
    control_plane.acknowledged(1).await;
    node.chat(&third, json!({})).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_that_a_node_cannot_use_is_rejected_by_name_and_the_rest_is_served() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    control_plane.acknowledged(1).await;
    let mut foreign = customer.adapter("foreign", AdapterState::Servable);
    foreign.base_weights_digest = vec![2; 32];
    let id = foreign.id.clone();
    let other = Customer::new();
    control_plane.publish([vec![adapter(foreign)], other.resources()].concat()).await;
    let seen = control_plane.acknowledged(1).await;
    let ack = seen.acks.last().expect("an ack");
    assert_eq!(ack.rejected.len(), 1);
    assert_eq!(ack.rejected[0].id, id);
    assert!(ack.rejected[0].reason.contains("base model"), "{}", ack.rejected[0].reason);
    node.chat(&other, json!({})).await;
    let (status, error) = node.refused(customer.key.reveal(), json!({ "model": "foreign" })).await;
    assert_eq!((status.as_u16(), &error["code"]), (409, &json!("adapter_unservable")));

    // The next change says nothing of it again.
    control_plane.publish(Customer::new().resources()).await;
    let seen = control_plane.acknowledged(1).await;
    assert!(seen.acks.last().is_some_and(|ack| ack.rejected.is_empty()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_follow_one_control_plane_and_ship_their_own_logs() {
    let (control_plane, node, customer) = node_of_one(|_| {}).await;
    let twin = Node::ready(&control_plane, |_| {}).await;
    let later = Customer::new();
    control_plane.publish(later.resources()).await;
    control_plane.acknowledged(2).await;
    let (one, two) = tokio::join!(node.chat(&later, json!({})), twin.chat(&later, json!({})));
    assert_eq!(one["choices"], two["choices"], "the same seed gives the same tokens on both");
    control_plane.revoke(Target::TenantId(later.tenant.to_string())).await;
    control_plane.until("both acknowledge", |s| s.revocation_acks == [1, 1]).await;
    for node in [&node, &twin] {
        let refused = node.refused(later.key.reveal(), json!({})).await;
        assert_eq!(refused.0, StatusCode::UNAUTHORIZED);
        node.chat(&customer, json!({})).await;
    }
    node.stop().await;
    twin.stop().await;
    let seen = control_plane.seen();
    assert_ne!(seen.hellos[0].node_id, seen.hellos[1].node_id);
    let finals =
        seen.logs.values().map(|log| log.records.iter().filter(|r| r.kind() == UsageKind::Final));
    assert_eq!(finals.map(Iterator::count).collect::<Vec<_>>(), [2, 2]);
}

//! What is sent to a node, played against a node's own rules without a network: whatever happens,
//! and whatever is lost, the two ends agree when nothing is left to send.

use super::outgoing::{AckError, Acked, Outgoing};
use super::state::{Change, World};
use lorikeet_contract::NodeId;
use lorikeet_contract::link::control_message::Message;
use lorikeet_contract::link::{Ack, Hello, Resource, Revocation, SNAPSHOT_CHUNK_BYTES};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::rate::RateShare;
use proptest::prelude::*;

/// A node as `contract::manifest` has it behave.
#[derive(Default)]
struct Node {
    manifest: ManifestState,
    draft: Vec<Resource>,
    revocation_seq: u64,
    id: Option<NodeId>,
    rate_share: Option<RateShare>,
}

impl Node {
    fn hello(&self) -> Hello {
        Hello {
            cp_epoch: self.manifest.cp_epoch,
            revision: self.manifest.revision,
            state_digest: self.manifest.digest().to_vec(),
            revocation_seq: self.revocation_seq,
            node_id: self.id.map(|id| id.to_string()).unwrap_or_default(),
            ..Hello::default()
        }
    }

    fn ack(&self, resync: bool) -> Ack {
        Ack {
            cp_epoch: self.manifest.cp_epoch,
            revision: self.manifest.revision,
            state_digest: self.manifest.digest().to_vec(),
            rejected: vec![],
            resync,
        }
    }

    fn take(&mut self, message: Message) -> Option<Ack> {
        match message {
            Message::Delta(delta) => match self.manifest.applied(&delta) {
                Ok(next) => {
                    self.manifest = next;
                    Some(self.ack(false))
                }
                Err(_) => Some(self.ack(true)),
            },
            Message::Snapshot(chunk) => {
                if chunk.index == 0 {
                    self.draft.clear();
                }
                self.draft.extend(chunk.resources);
                if !chunk.last {
                    return None;
                }
                let draft = std::mem::take(&mut self.draft);
                let next = ManifestState::from_resources(chunk.cp_epoch, chunk.revision, draft);
                assert_eq!(next.digest()[..], chunk.state_digest[..]);
                self.manifest = next;
                Some(self.ack(false))
            }
            Message::Revocations(revocations) => {
                self.revocation_seq = revocations.seq;
                None
            }
            Message::RateShare(share) => {
                self.rate_share = RateShare::try_from(&share).ok();
                None
            }
            Message::Welcome(_) | Message::Heartbeat(_) => None,
        }
    }
}

/// Sends until there is nothing more, and returns what the acknowledgements meant.
fn settle(outgoing: &mut Outgoing, world: &World, node: &mut Node) -> Vec<Acked> {
    let mut acked = Vec::new();
    for _ in 0..1000 {
        let Some(message) = outgoing.next(world) else { return acked };
        if let Some(ack) = node.take(message) {
            let meant = outgoing.acknowledged(&ack, world.position().cp_epoch);
            acked.push(meant.expect("an honest node is not cut off"));
        }
    }
    panic!("there is always more to send");
}

fn world(cp_epoch: u64) -> World {
    let mut world = World::default();
    world.restart(cp_epoch);
    world
}

fn put(world: &mut World, id: &str, payload: Option<&[u8]>) {
    let revision = world.position().revision + 1;
    let payload = payload.map(<[u8]>::to_vec);
    world.advance(revision, vec![Change { kind: 3, id: id.to_owned(), revision, payload }]);
}

fn revoke(world: &mut World) {
    let seq = world.position().revocation_seq + 1;
    world.revoke(seq, vec![Revocation { seq, target: None }]);
}

#[derive(Debug, Clone)]
enum Step {
    Change {
        id: u8,
        payload: Option<u8>,
    },
    Revoke,
    /// The next message is sent; `lost` with the stream, which is then opened anew.
    Send {
        lost: bool,
    },
    Reconnect,
    /// A bug, or a disk that lied: the node holds something else than it was sent.
    Corrupt,
    /// The database is restored to an older state, under a new epoch or (worse) the same one.
    Restore {
        new_epoch: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..6, proptest::option::of(0u8..4)).prop_map(|(id, payload)| Step::Change { id, payload }),
        2 => Just(Step::Revoke),
        6 => prop::bool::weighted(0.2).prop_map(|lost| Step::Send { lost }),
        2 => Just(Step::Reconnect),
        1 => Just(Step::Corrupt),
        1 => any::<bool>().prop_map(|new_epoch| Step::Restore { new_epoch }),
    ]
}

proptest! {
    #[test]
    fn after_any_history_a_node_holds_exactly_what_the_database_holds(
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut world = world(1);
        let mut node = Node::default();
        let mut outgoing = Outgoing::new(&node.hello(), &world);
        for step in steps {
            match step {
                Step::Change { id, payload } => {
                    put(&mut world, &id.to_string(), payload.as_ref().map(std::slice::from_ref));
                }
                Step::Revoke => revoke(&mut world),
                Step::Reconnect => outgoing = Outgoing::new(&node.hello(), &world),
                Step::Corrupt => node.manifest.upsert(3, "0".to_owned(), [9u8].as_slice().into()),
                Step::Restore { new_epoch } => {
                    world.restart(world.position().cp_epoch + u64::from(new_epoch));
                    put(&mut world, "restored", Some(b"x"));
                }
                Step::Send { lost } => {
                    let Some(message) = outgoing.next(&world) else { continue };
                    if lost {
                        outgoing = Outgoing::new(&node.hello(), &world);
                    } else if let Some(ack) = node.take(message) {
                        let at = world.position().cp_epoch;
                        // Corrupted again and again it may be cut off; it dials anew.
                        if outgoing.acknowledged(&ack, at).is_err() {
                            outgoing = Outgoing::new(&node.hello(), &world);
                        }
                    }
                }
            }
        }
        settle(&mut outgoing, &world, &mut node);
        // What was corrupted after the last message shows at the next hello.
        let mut outgoing = Outgoing::new(&node.hello(), &world);
        settle(&mut outgoing, &world, &mut node);
        prop_assert_eq!(node.manifest.digest(), world.digest());
        prop_assert_eq!(node.manifest.revision, world.position().revision);
        // Never behind; ahead only of a database that was restored.
        prop_assert!(node.revocation_seq >= world.position().revocation_seq);
    }
}

#[test]
fn a_node_that_is_current_is_told_so_by_an_empty_delta_and_sent_no_state() {
    let mut world = world(1);
    put(&mut world, "a", Some(b"1"));
    let mut node = Node::default();
    settle(&mut Outgoing::new(&node.hello(), &world), &world, &mut node);

    let mut outgoing = Outgoing::new(&node.hello(), &world);
    assert_eq!(outgoing.held_revision(), 1);
    assert!(matches!(outgoing.next(&world), Some(Message::Welcome(_))));
    let Some(Message::Delta(delta)) = outgoing.next(&world) else { panic!("a delta") };
    assert_eq!((delta.from_revision, delta.to_revision, delta.upserts.len()), (1, 1, 0));
    assert!(outgoing.next(&world).is_none());
}

#[test]
fn a_burst_of_changes_reaches_a_node_as_one_delta_with_the_last_values_and_the_tombstones() {
    let mut world = world(1);
    put(&mut world, "a", Some(b"1"));
    put(&mut world, "b", Some(b"1"));
    let mut node = Node::default();
    let mut outgoing = Outgoing::new(&node.hello(), &world);
    settle(&mut outgoing, &world, &mut node);
    for i in 0..50u8 {
        put(&mut world, "a", Some(&[i]));
    }
    put(&mut world, "b", None);
    let Some(Message::Delta(delta)) = outgoing.next(&world) else { panic!("a delta") };
    assert_eq!((delta.upserts.len(), delta.tombstones.len()), (1, 1));
    assert_eq!(delta.upserts[0].payload, [49]);
    node.take(Message::Delta(delta));
    assert_eq!(node.manifest.digest(), world.digest());
}

#[test]
fn a_revocation_overtakes_a_snapshot_that_is_under_way() {
    let mut world = world(1);
    let big = vec![7; SNAPSHOT_CHUNK_BYTES / 2];
    for id in ["a", "b", "c", "d", "e"] {
        put(&mut world, id, Some(&big));
    }
    let mut outgoing = Outgoing::new(&Hello::default(), &world);
    assert!(matches!(outgoing.next(&world), Some(Message::Welcome(_))));
    let Some(Message::Snapshot(first)) = outgoing.next(&world) else { panic!("a chunk") };
    assert!(!first.last);
    revoke(&mut world);
    assert!(matches!(outgoing.next(&world), Some(Message::Revocations(r)) if r.seq == 1));
    assert!(matches!(outgoing.next(&world), Some(Message::Snapshot(c)) if c.index == 1));
}

#[test]
fn a_snapshot_is_one_state_in_chunks_of_bounded_size_while_changes_go_on() {
    let mut world = world(1);
    let payload = vec![1; 100_000];
    for i in 0..50 {
        put(&mut world, &format!("{i:02}"), Some(&payload));
    }
    let mut node = Node::default();
    let mut outgoing = Outgoing::new(&Hello::default(), &world);
    let mut chunks = 0;
    while let Some(message) = outgoing.next(&world) {
        if let Message::Snapshot(chunk) = &message {
            let bytes: usize = chunk.resources.iter().map(|r| r.payload.len()).sum();
            assert!(bytes <= SNAPSHOT_CHUNK_BYTES, "{bytes}");
            assert_eq!(chunk.revision, 50, "the state of its beginning");
            chunks += 1;
            put(&mut world, "changed meanwhile", Some(&[chunk.index as u8]));
        }
        node.take(message);
    }
    assert!(chunks >= 5, "{chunks}");
    assert_eq!(node.manifest.digest(), world.digest());
}

#[test]
fn a_node_that_never_agrees_is_cut_off_instead_of_fed_snapshots_for_ever() {
    let mut world = world(1);
    put(&mut world, "a", Some(b"1"));
    let mut outgoing = Outgoing::new(&Hello::default(), &world);
    let mut resyncs = 0;
    for _ in 0..100 {
        let Some(message) = outgoing.next(&world) else { continue };
        if !matches!(message, Message::Snapshot(_)) {
            continue;
        }
        let ack = Ack { cp_epoch: 1, resync: true, ..Ack::default() };
        match outgoing.acknowledged(&ack, 1) {
            Ok(Acked::Resync) => resyncs += 1,
            other => {
                assert_eq!(other, Err(AckError::NeverAgrees));
                assert_eq!(resyncs, 3);
                return;
            }
        }
    }
    panic!("it is still fed");
}

#[test]
fn a_node_that_lost_a_part_of_its_first_snapshot_gets_it_again() {
    let mut world = world(7);
    put(&mut world, "a", Some(b"1"));
    let mut node = Node::default();
    let mut outgoing = Outgoing::new(&Hello::default(), &world);
    while outgoing.next(&world).is_some() {}
    // It has taken nothing in: its answer is of no epoch.
    assert_eq!(outgoing.acknowledged(&node.ack(true), 7), Ok(Acked::Resync));
    assert_eq!(settle(&mut outgoing, &world, &mut node), [Acked::Snapshot]);
    assert_eq!(node.manifest.digest(), world.digest());
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_an_error() {
    let mut world = world(1);
    put(&mut world, "a", Some(b"1"));
    let mut node = Node::default();
    let mut outgoing = Outgoing::new(&node.hello(), &world);
    settle(&mut outgoing, &world, &mut node);
    let ack = Ack { revision: 9, ..node.ack(false) };
    assert_eq!(outgoing.acknowledged(&ack, 1), Err(AckError::Ahead { acked: 9, sent: 1 }));
}

#[test]
fn a_snapshots_acknowledgement_speaks_for_the_whole_state_and_a_deltas_for_its_own() {
    let mut world = world(1);
    put(&mut world, "a", Some(b"1"));
    let mut node = Node::default();
    let mut outgoing = Outgoing::new(&Hello::default(), &world);
    assert_eq!(settle(&mut outgoing, &world, &mut node), [Acked::Snapshot]);
    put(&mut world, "b", Some(b"1"));
    assert_eq!(settle(&mut outgoing, &world, &mut node), [Acked::Delta]);
}

proptest! {
    #[test]
    fn whoever_comes_and_goes_the_connected_nodes_shares_sum_to_the_limit(
        comings in proptest::collection::vec((0usize..6, any::<bool>()), 1..30),
        limit in 0u64..100_000,
    ) {
        let mut world = world(1);
        let mut ids: Vec<NodeId> = (0..6).map(|_| NodeId::new()).collect();
        ids.sort_unstable();
        let mut nodes: Vec<Node> =
            ids.iter().map(|id| Node { id: Some(*id), ..Node::default() }).collect();
        let mut streams: Vec<Option<Outgoing>> = (0..6).map(|_| None).collect();
        for (i, connected) in comings {
            streams[i] = connected.then(|| Outgoing::new(&nodes[i].hello(), &world));
            let connected = ids.iter().zip(&streams).filter(|(_, s)| s.is_some());
            world.set_connected(connected.map(|(id, _)| *id).collect());
            let mut total = 0;
            for (node, stream) in nodes.iter_mut().zip(&mut streams) {
                let Some(stream) = stream else { continue };
                settle(stream, &world, node);
                total += node.rate_share.expect("a connected node is told").thousandths(limit);
            }
            let anyone = streams.iter().any(Option::is_some);
            prop_assert_eq!(total, if anyone { u128::from(limit) * 1000 } else { 0 });
        }
    }
}

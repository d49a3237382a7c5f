//! Random schedules on tiny memory: the simulated device notices mix-ups, the checks after each
//! step broken invariants, the comparison with each request alone everything else.

use super::harness::*;
use crate::adapters::{AdapterManifest, Pin};
use crate::engine::{FinishReason, RequestError, Revocation};
use crate::share::TenantShare;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone)]
struct Ask {
    tenant: u8,
    adapter: Option<u8>,
    /// Prompts share prefixes: they are cut from the same few texts.
    text: u32,
    prompt_len: u32,
    max_tokens: u32,
    deadline_ms: Option<u64>,
}

#[derive(Debug, Clone)]
enum Op {
    Submit(Ask),
    Steps(usize),
    Cancel(usize),
    Abandon(usize),
    Revoke(u8),
    Forget(u8),
    Pin(Vec<u8>),
}

#[derive(Debug, Clone)]
struct Memory {
    num_blocks: u32,
    device: u64,
    host: u64,
    disk: u64,
    max_slots: u32,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
    pipeline_depth: u32,
    upload_ms: u64,
    failing: Option<u8>,
    shared: Option<Shared>,
}

/// Blocks and adapters share memory.
#[derive(Debug, Clone, Copy)]
struct Shared {
    block_bytes: u64,
    least_blocks: u32,
    /// Room is given back only between uploads.
    fragmented: bool,
}

fn shared() -> impl Strategy<Value = Shared> {
    (1u64..9, 1u32..20, any::<bool>()).prop_map(|(block_bytes, least_blocks, fragmented)| Shared {
        block_bytes,
        least_blocks,
        fragmented,
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let deadline = prop::option::weighted(0.1, 1u64..60);
    (0u8..3, prop::option::weighted(0.8, 0u8..6), 0u32..3, 1u32..25, 1u32..20, deadline).prop_map(
        |(tenant, adapter, text, prompt_len, max_tokens, deadline_ms)| Ask {
            tenant,
            adapter,
            text,
            prompt_len,
            max_tokens,
            deadline_ms,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => ask().prop_map(Op::Submit),
        8 => (1usize..12).prop_map(Op::Steps),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Abandon),
        1 => (0u8..30).prop_map(Op::Revoke),
        1 => (0u8..6).prop_map(Op::Forget),
        1 => prop::collection::vec(0u8..6, 0..3).prop_map(Op::Pin),
    ]
}

fn memory() -> impl Strategy<Value = Memory> {
    let sizes = (11u32..40, 20u64..90, 20u64..90, 20u64..120, 1u32..5);
    let limits = (1usize..8, 1usize..40, 1u32..=2, 0u64..8, prop::option::weighted(0.3, 0u8..6));
    (sizes, limits, prop::option::of(shared())).prop_map(|(sizes, limits, shared)| Memory {
        num_blocks: sizes.0,
        device: sizes.1,
        host: sizes.2,
        disk: sizes.3,
        max_slots: sizes.4,
        max_num_seqs: limits.0,
        max_num_batched_tokens: limits.1,
        pipeline_depth: limits.2,
        upload_ms: limits.3,
        failing: limits.4,
        shared,
    })
}

fn setup(memory: &Memory) -> Setup {
    let mut setup = Setup::default();
    setup.capacity.num_blocks = memory.num_blocks;
    if let Some(Shared { block_bytes, least_blocks, fragmented }) = memory.shared {
        // No request is longer.
        setup.context_length = 44;
        setup.capacity.least_blocks = least_blocks;
        setup.capacity.block_bytes = block_bytes;
        setup.sim.faults.fragmented = fragmented;
    }
    setup.capacity.adapter_bytes = memory.device;
    setup.capacity.max_slots = memory.max_slots;
    setup.capacity.pipeline_depth = memory.pipeline_depth;
    setup.scheduler.max_num_seqs = memory.max_num_seqs;
    setup.scheduler.max_num_batched_tokens = memory.max_num_batched_tokens;
    setup.residency.host_bytes = memory.host;
    setup.residency.disk_bytes = memory.disk;
    setup.residency.quantum = Duration::from_millis(5);
    setup.residency.retry_min = Duration::from_millis(30);
    setup.cost.upload = Duration::from_millis(memory.upload_ms);
    setup.loader.failing.extend(memory.failing.map(|id| numbered(0, id).key.digest));
    setup
}

/// 10, 12, ... 20 bytes: true ranks differ.
fn numbered(tenant: u8, id: u8) -> Arc<AdapterManifest> {
    adapter(tenant, id, 10 + 2 * u64::from(id))
}

fn prompt(ask: &Ask) -> Vec<u32> {
    (0..ask.prompt_len).map(|i| (i * (ask.text + 1)) % 61).collect()
}

type Answers = HashMap<(Option<(u8, u8)>, Vec<u32>), Vec<u32>>;

/// What the request gets alone; answers of tenants differ where their adapters do.
fn expected(answers: &mut Answers, ask: &Ask) -> Vec<u32> {
    let adapter = ask.adapter.map(|id| (ask.tenant, id));
    let key = (adapter, prompt(ask));
    let longest = answers.entry(key).or_insert_with_key(|(adapter, prompt)| {
        let manifest = adapter.map(|(tenant, id)| numbered(tenant, id));
        Rig::alone(manifest.as_ref(), prompt, 20)
    });
    let mut tokens = longest[..ask.max_tokens as usize].to_vec();
    if let Some(at) = tokens.iter().position(|token| *token == EOS) {
        tokens.truncate(at + 1);
    }
    tokens
}

/// Each request that was taken, with its reader.
fn perform(rig: &mut Rig, ops: Vec<Op>) -> Vec<(Ask, Reader)> {
    let mut asked: Vec<(Ask, Reader)> = Vec::new();
    for op in ops {
        match op {
            Op::Submit(ask) => {
                let manifest = ask.adapter.map(|id| numbered(ask.tenant, id));
                let (mut request, reader) =
                    request(ask.tenant, manifest.as_ref(), &prompt(&ask), ask.max_tokens);
                request.ignore_eos = false;
                request.deadline =
                    ask.deadline_ms.map(|ms| rig.clock.now() + Duration::from_millis(ms));
                if rig.try_submit(request).is_ok() {
                    asked.push((ask, reader));
                }
            }
            Op::Steps(count) => rig.steps(count),
            Op::Cancel(i) if !asked.is_empty() => {
                rig.handle.cancel(asked[i % asked.len()].1.id);
            }
            Op::Abandon(i) if !asked.is_empty() => {
                asked.swap_remove(i % asked.len());
            }
            Op::Revoke(tenant_id) => {
                let revocation = Revocation::Tenant(tenant(tenant_id));
                futures::executor::block_on(rig.handle.revoke(revocation));
            }
            Op::Forget(id) => {
                futures::executor::block_on(rig.handle.forget(numbered(1, id).key));
            }
            Op::Pin(ids) => {
                let share = TenantShare::default();
                let pin = |id: &u8| Pin { manifest: numbered(1, *id), share };
                let pins = ids.iter().map(pin).collect();
                futures::executor::block_on(rig.handle.pin(pins));
            }
            Op::Cancel(_) | Op::Abandon(_) => {}
        }
    }
    asked
}

proptest! {
    #![proptest_config(crate::fixture::cases(1000))]
    #[test]
    fn whatever_happens_every_request_ends_as_it_would_alone(
        memory in memory(), ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut answers = Answers::new();
        let mut rig = Rig::new(&setup(&memory));
        let mut asked = perform(&mut rig, ops);
        rig.finish(&mut asked.iter_mut().map(|(_, reader)| reader).collect::<Vec<_>>());
        for (ask, reader) in &asked {
            let whole = expected(&mut answers, ask);
            prop_assert!(whole.starts_with(&reader.tokens), "{:?}", ask);
            match &reader.end {
                Some(End::Finished(FinishReason::Cancelled, _)) => {}
                Some(End::Finished(..)) => prop_assert_eq!(&reader.tokens, &whole),
                Some(End::Failed(RequestError::AdapterLoad(_), _)) => {
                    let fails = memory.failing.is_some() && memory.failing == ask.adapter;
                    prop_assert!(fails, "{:?}", reader.end);
                }
                Some(End::Failed(RequestError::Deadline, _)) => {
                    prop_assert!(ask.deadline_ms.is_some());
                }
                Some(End::Failed(RequestError::Revoked, _)) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
        rig.steps(3);
        rig.engine.assert_idle();
    }
}

/// An adapter displaces a pin, which then displaces it in turn. Whoever of those that wait is given the
/// place next must have a use for it: the one that was served less has too few blocks to run.
#[test]
fn a_place_goes_to_who_has_blocks_and_not_to_who_waits_for_them() {
    let memory = Memory {
        num_blocks: 13,
        device: 32,
        host: 72,
        disk: 38,
        max_slots: 2,
        max_num_seqs: 3,
        max_num_batched_tokens: 5,
        pipeline_depth: 2,
        upload_ms: 0,
        failing: None,
        shared: None,
    };
    let ask = |tenant, adapter, prompt_len, max_tokens| {
        Op::Submit(Ask { tenant, adapter, text: 0, prompt_len, max_tokens, deadline_ms: None })
    };
    let mut rig = Rig::new(&setup(&memory));
    let ops = vec![
        ask(0, None, 1, 1),
        ask(0, None, 1, 1),
        Op::Steps(2),
        ask(0, Some(0), 2, 1),
        ask(1, Some(0), 9, 15),
        ask(1, Some(4), 17, 17),
        ask(0, None, 1, 1),
        Op::Cancel(5),
        Op::Steps(4),
        Op::Pin(vec![3]),
        ask(0, None, 1, 1),
        Op::Steps(2),
        ask(0, None, 1, 1),
        ask(0, Some(4), 12, 13),
        ask(0, Some(4), 18, 8),
    ];
    let mut asked = perform(&mut rig, ops);
    rig.finish(&mut asked.iter_mut().map(|(_, reader)| reader).collect::<Vec<_>>());
}

/// A pin and the adapter that has no room beside it would displace each other in turns, while the host copy
/// of the pin kept out the adapter whose sequence holds the blocks that the others wait for.
#[test]
fn a_displaced_pin_waits_until_nobody_needs_what_displaced_it() {
    let memory = Memory {
        num_blocks: 14,
        device: 20,
        host: 22,
        disk: 48,
        max_slots: 2,
        max_num_seqs: 3,
        max_num_batched_tokens: 1,
        pipeline_depth: 1,
        upload_ms: 3,
        failing: None,
        shared: None,
    };
    let ask = |tenant, adapter, text, prompt_len, max_tokens, deadline_ms| {
        Op::Submit(Ask { tenant, adapter, text, prompt_len, max_tokens, deadline_ms })
    };
    let mut rig = Rig::new(&setup(&memory));
    let ops = vec![
        Op::Pin(vec![0]),
        ask(2, Some(4), 0, 7, 11, None),
        ask(0, Some(0), 0, 9, 1, None),
        ask(1, Some(0), 0, 1, 5, None),
        ask(1, Some(4), 0, 9, 9, None),
        ask(1, Some(1), 0, 17, 1, None),
        ask(0, None, 0, 9, 4, None),
        ask(1, Some(1), 2, 6, 16, None),
        ask(2, None, 0, 21, 1, Some(7)),
    ];
    let mut asked = perform(&mut rig, ops);
    rig.finish(&mut asked.iter_mut().map(|(_, reader)| reader).collect::<Vec<_>>());
}

/// What a step computes that was submitted before its sequence lost its blocks is in those, and not in the
/// ones that the sequence is given at once in their place.
#[test]
fn others_find_a_prompts_blocks_only_where_they_have_been_computed() {
    let memory = Memory {
        num_blocks: 13,
        device: 44,
        host: 42,
        disk: 26,
        max_slots: 3,
        max_num_seqs: 2,
        max_num_batched_tokens: 7,
        pipeline_depth: 2,
        upload_ms: 5,
        failing: None,
        shared: None,
    };
    let ask = |adapter, text, prompt_len, max_tokens| {
        let adapter = Some(adapter);
        Op::Submit(Ask { tenant: 2, adapter, text, prompt_len, max_tokens, deadline_ms: None })
    };
    let mut rig = Rig::new(&setup(&memory));
    let ops = vec![
        Op::Pin(vec![0]),
        ask(0, 1, 6, 9),
        Op::Steps(1),
        ask(1, 0, 5, 6),
        ask(3, 1, 6, 4),
        Op::Steps(6),
        ask(3, 1, 14, 1),
        Op::Steps(2),
    ];
    let mut asked = perform(&mut rig, ops);
    rig.finish(&mut asked.iter_mut().map(|(_, reader)| reader).collect::<Vec<_>>());
}

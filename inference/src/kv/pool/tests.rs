use super::*;
use lorikeet_contract::{AdapterDigest, TenantId};
use proptest::prelude::*;
use uuid::Uuid;

const BLOCK: u32 = 4;

fn scope(tenant: u8, adapter: u8) -> PrefixScope {
    let tenant = TenantId::from_uuid(Uuid::from_u128(tenant.into()));
    PrefixScope { tenant, adapter: (adapter > 0).then_some(AdapterDigest([adapter; 32])) }
}

fn computed(pool: &mut BlockPool, scope: PrefixScope, tokens: &[u32]) -> BlockTable {
    let mut table = BlockTable::default();
    pool.admit(scope, tokens, &mut table).unwrap();
    pool.index(scope, tokens, &mut table);
    table
}

#[test]
fn a_prefix_is_found_by_the_same_tenant_and_adapter_and_by_no_other() {
    let mut pool = BlockPool::new(16, BLOCK);
    let tokens: Vec<u32> = (0..9).collect();
    let mut table = computed(&mut pool, scope(1, 1), &tokens);
    pool.release(&mut table);
    for other in [scope(1, 2), scope(2, 1), scope(1, 0)] {
        assert_eq!(pool.admit(other, &tokens, &mut table), Some(0));
        pool.release(&mut table);
    }
    assert_eq!(pool.admit(scope(1, 1), &tokens, &mut table), Some(8));
}

#[test]
fn the_last_token_of_a_prompt_is_always_computed() {
    let mut pool = BlockPool::new(16, BLOCK);
    let tokens: Vec<u32> = (0..8).collect();
    let first = computed(&mut pool, scope(1, 1), &tokens);
    let mut second = BlockTable::default();
    assert_eq!(pool.admit(scope(1, 1), &tokens, &mut second), Some(4));
    assert_eq!(first.blocks()[0], second.blocks()[0]);
    assert_ne!(first.blocks()[1], second.blocks()[1]);
}

#[test]
fn a_block_that_is_not_full_is_not_shared() {
    let mut pool = BlockPool::new(16, BLOCK);
    let tokens: Vec<u32> = (0..7).collect();
    let _held = computed(&mut pool, scope(1, 1), &tokens);
    assert_eq!(pool.admit(scope(1, 1), &tokens, &mut BlockTable::default()), Some(4));
}

#[test]
fn a_block_that_several_hold_is_to_be_had_when_all_of_them_are_released() {
    let mut pool = BlockPool::new(16, BLOCK);
    let tokens: Vec<u32> = (0..9).collect();
    let tables = [(); 2].map(|()| computed(&mut pool, scope(1, 1), &tokens));
    // Two are shared, each has one of its own.
    for (blocks, expected) in [(0, Some(0)), (1, Some(1)), (2, Some(2)), (4, Some(2)), (5, None)] {
        assert_eq!(pool.releases_for(blocks, &tables), expected, "{blocks}");
    }
    let available = pool.available();
    for (mut table, expected) in tables.into_iter().zip([1, 4]) {
        pool.release(&mut table);
        assert_eq!(pool.available() - available, expected);
    }
}

#[test]
fn the_prefix_released_longest_ago_makes_room_and_from_its_end() {
    let mut pool = BlockPool::new(4, BLOCK);
    let old: Vec<u32> = (0..9).collect();
    let mut table = computed(&mut pool, scope(1, 1), &old);
    pool.release(&mut table);
    let recent: Vec<u32> = (100..105).collect();
    let mut held = computed(&mut pool, scope(1, 1), &recent);
    // One block is free, and `old` keeps its first block of two.
    assert!(pool.grow(&mut held, 12));
    let mut table = BlockTable::default();
    assert_eq!(pool.admit(scope(1, 1), &old[..5], &mut table), None);
    pool.release(&mut held);
    assert_eq!(pool.admit(scope(1, 1), &old[..5], &mut table), Some(4));
}

#[test]
fn without_room_nothing_changes() {
    let mut pool = BlockPool::new(2, BLOCK);
    let mut held = computed(&mut pool, scope(1, 1), &[1, 2, 3, 4, 5]);
    assert!(!pool.grow(&mut held, 9));
    let mut table = BlockTable::default();
    assert_eq!(pool.admit(scope(1, 1), &[1, 2, 3, 4, 5], &mut table), None);
    assert!(table.blocks().is_empty());
    pool.assert_invariants([&held, &table]);
}

#[test]
fn what_was_cached_longest_ago_makes_room_and_the_rest_moves_with_the_order_kept() {
    let mut pool = BlockPool::new(6, BLOCK).keeping(2);
    let texts: Vec<Vec<u32>> = (0..3).map(|text| (text * 10..text * 10 + 5).collect()).collect();
    let mut tables: Vec<_> = texts.iter().map(|t| computed(&mut pool, scope(1, 1), t)).collect();
    tables.iter_mut().for_each(|table| pool.release(table));
    assert_eq!((pool.unused(), pool.cached(), pool.dispensable()), (3, 3, 4));
    pool.give_up(4);
    assert_eq!((pool.num_blocks(), pool.unused(), pool.cached()), (2, 0, 2));
    pool.assert_invariants([]);
    pool.take_back(1);
    let mut table = BlockTable::default();
    assert_eq!(pool.admit(scope(1, 1), &texts[2], &mut table), Some(4));
    pool.release(&mut table);
    let mut other = computed(&mut pool, scope(1, 1), &[50, 51, 52, 53, 54]);
    pool.release(&mut other);
    assert_eq!(pool.admit(scope(1, 1), &texts[2], &mut table), Some(4), "the older one was lost");
    pool.assert_invariants([&table]);
}

#[derive(Debug, Clone)]
enum Op {
    Admit { tenant: u8, adapter: u8, tokens: Vec<u32> },
    Extend { sequence: usize, token: u32 },
    Release { sequence: usize },
    GiveUp(u32),
    TakeBack(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let token = 0u32..2;
    prop_oneof![
        2 => (0u8..2, 0u8..3, prop::collection::vec(token.clone(), 1..14))
            .prop_map(|(tenant, adapter, tokens)| Op::Admit { tenant, adapter, tokens }),
        4 => (any::<usize>(), token).prop_map(|(sequence, token)| Op::Extend { sequence, token }),
        1 => any::<usize>().prop_map(|sequence| Op::Release { sequence }),
        1 => (0u32..12).prop_map(Op::GiveUp),
        1 => (0u32..12).prop_map(Op::TakeBack),
    ]
}

struct Running {
    scope: PrefixScope,
    tokens: Vec<u32>,
    table: BlockTable,
}

/// What a device would hold: for each position of each block, the whole path that was computed.
type Shadow = Vec<Vec<Option<(PrefixScope, Vec<u32>)>>>;

fn write(shadow: &mut Shadow, sequence: &Running, from: usize) {
    for i in from..sequence.tokens.len() {
        let block = sequence.table.blocks()[i / BLOCK as usize];
        shadow[block.0 as usize][i % BLOCK as usize] =
            Some((sequence.scope, sequence.tokens[..=i].to_vec()));
    }
}

proptest! {
    #![proptest_config(crate::fixture::cases(512))]
    #[test]
    fn every_sequence_reads_back_what_was_computed_for_its_own_prefix(
        num_blocks in 1u32..12, least in 1u32..12, ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut pool = BlockPool::new(num_blocks, BLOCK).keeping(least);
        let mut shadow: Shadow = vec![vec![None; BLOCK as usize]; num_blocks as usize];
        let mut running: Vec<Running> = Vec::new();
        for op in ops {
            match op {
                Op::Admit { tenant, adapter, tokens } => {
                    let mut table = BlockTable::default();
                    let scope = scope(tenant, adapter);
                    let Some(cached) = pool.admit(scope, &tokens, &mut table) else { continue };
                    prop_assert!((cached as usize) < tokens.len());
                    let mut sequence = Running { scope, tokens, table };
                    write(&mut shadow, &sequence, cached as usize);
                    pool.index(scope, &sequence.tokens, &mut sequence.table);
                    running.push(sequence);
                }
                Op::Extend { sequence, token } => {
                    let count = running.len().max(1);
                    let Some(sequence) = running.get_mut(sequence % count) else { continue };
                    let before = sequence.tokens.len();
                    if pool.grow(&mut sequence.table, before + 1) {
                        sequence.tokens.push(token);
                        write(&mut shadow, sequence, before);
                        pool.index(sequence.scope, &sequence.tokens, &mut sequence.table);
                    }
                }
                Op::Release { sequence } if !running.is_empty() => {
                    let mut sequence = running.swap_remove(sequence % running.len());
                    pool.release(&mut sequence.table);
                }
                Op::Release { .. } => {}
                Op::GiveUp(count) => {
                    let moves = pool.give_up(count.min(pool.dispensable()));
                    for BlockMove { from, to } in &moves {
                        shadow[to.0 as usize] = shadow[from.0 as usize].clone();
                    }
                    running.iter_mut().for_each(|sequence| sequence.table.relocate(&moves));
                    shadow[pool.num_blocks() as usize..].fill(vec![None; BLOCK as usize]);
                }
                Op::TakeBack(count) => pool.take_back(count),
            }
            pool.assert_invariants(running.iter().map(|s| &s.table));
            for s in &running {
                for i in 0..s.tokens.len() {
                    let block = s.table.blocks()[i / BLOCK as usize];
                    let cell = &shadow[block.0 as usize][i % BLOCK as usize];
                    prop_assert_eq!(cell, &Some((s.scope, s.tokens[..=i].to_vec())));
                }
            }
        }
        for mut sequence in running {
            pool.release(&mut sequence.table);
        }
        pool.assert_invariants([]);
        prop_assert_eq!(pool.available(), pool.num_blocks());
        pool.take_back(num_blocks);
        prop_assert_eq!(pool.available(), num_blocks);
    }
}

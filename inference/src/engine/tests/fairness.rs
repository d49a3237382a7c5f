//! Random arrivals of three tenants: none waits longer than its share implies.

use super::harness::*;
use crate::scheduler::{SchedulerConfig, Standing};
use lorikeet_contract::TenantId;
use proptest::prelude::*;
use std::collections::HashMap;

/// What readers have had of each tenant's requests: computed tokens of prompts, and tokens of answers.
type Had = HashMap<TenantId, (usize, usize)>;

/// Of requests with their tenants and the lengths of their prompts.
fn had(readers: &mut [(u8, usize, Reader)]) -> Had {
    let mut had = Had::new();
    for (id, prompt_len, reader) in readers {
        reader.read();
        let (prompt, output) = had.entry(tenant(*id)).or_default();
        let cached = reader.cached.unwrap_or_default() as usize;
        *prompt += if reader.tokens.is_empty() { 0 } else { *prompt_len - cached };
        *output += reader.tokens.len();
    }
    had
}

/// How a tenant that waits stood to another when it began to.
struct Start {
    /// By how much the other was ahead, and by how much it was behind.
    ahead: u64,
    behind: u64,
    /// What both had had.
    other: u64,
    own: u64,
}

#[derive(Default)]
struct Waits(HashMap<TenantId, HashMap<TenantId, Start>>);

impl Waits {
    /// While a tenant waits, nobody gets ahead of it by more, by weight, than what fits the cache at
    /// once and one request: neither as the counters have it, nor in what readers have had, of which
    /// as much may be under way.
    fn check(&mut self, standings: &[Standing], had: &Had, kv_tokens: usize) {
        let had = |standing: &Standing| {
            let (prompt, output) = had.get(&standing.tenant).copied().unwrap_or_default();
            standing.count(prompt, output)
        };
        let most = |standing: &Standing| standing.count(0, kv_tokens + 45);
        for own in standings {
            if !own.waits {
                self.0.remove(&own.tenant);
                continue;
            }
            let starts = self.0.entry(own.tenant).or_default();
            for other in standings.iter().filter(|other| other.tenant != own.tenant) {
                let ahead = other.served.saturating_sub(own.served);
                let start = starts.entry(other.tenant).or_insert_with(|| Start {
                    ahead,
                    behind: own.served.saturating_sub(other.served),
                    other: had(other),
                    own: had(own),
                });
                assert!(ahead <= start.ahead + most(other), "{other:?} ahead of {own:?}");
                let got = (had(other) - start.other).saturating_sub(had(own) - start.own);
                let bound = start.behind + 2 * most(other) + most(own);
                assert!(got <= bound, "{other:?} had {got} more than {own:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(crate::fixture::cases(1000))]
    #[test]
    fn no_tenant_waits_longer_than_its_share_implies(
        num_blocks in 12u32..60, max_num_seqs in 1usize..8, rows in 4usize..40, depth in 1u32..=2,
        weights in prop::array::uniform3(1u32..5),
        asks in prop::collection::vec(
            (prop_oneof![4 => Just(0u8), 1 => 0u8..3], 0u32..25, 1u32..20,
             prop_oneof![4 => Just(0usize), 1 => 0usize..10]),
            1..80,
        ),
    ) {
        let mut setup = Setup { max_requests: 512, ..Setup::default() };
        setup.capacity.num_blocks = num_blocks;
        setup.capacity.pipeline_depth = depth;
        setup.scheduler = SchedulerConfig {
            max_num_seqs,
            max_num_batched_tokens: rows,
            ..SchedulerConfig::default()
        };
        let mut rig = Rig::new(&setup);
        let (mut waits, kv_tokens) = (Waits::default(), 4 * num_blocks as usize);
        let mut readers: Vec<(u8, usize, Reader)> = Vec::new();
        for (tenant, more_prompt, max_tokens, steps) in asks {
            // Prompts start differently, so that little comes from the cache.
            let start = readers.len() as u32;
            let prompt: Vec<u32> = (start..=start + more_prompt).map(|t| 4 + t % 60).collect();
            let (mut request, reader) = request(tenant, None, &prompt, max_tokens);
            request.share.weight = weights[usize::from(tenant)];
            rig.try_submit(request).unwrap();
            readers.push((tenant, prompt.len(), reader));
            for _ in 0..steps {
                rig.step();
                waits.check(&rig.engine.scheduler.standings(), &had(&mut readers), kv_tokens);
            }
        }
        while readers.iter().any(|(_, _, reader)| reader.end.is_none()) {
            rig.step();
            waits.check(&rig.engine.scheduler.standings(), &had(&mut readers), kv_tokens);
        }
        rig.steps(3);
        rig.engine.assert_idle();
    }
}

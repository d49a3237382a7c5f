//! Random schedules on tiny memory. Invariants are checked after each step.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Demand(u8),
    End(usize),
    Lease(usize),
    Collect(usize),
    Perform {
        at: usize,
        end: End,
    },
    Pass(u64),
    Forget(u8),
    Pin(Vec<u8>),
    /// Blocks lack so many of those without use, and so many of all.
    Lack(u32, u32),
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![8 => Just(End::Well), 1 => Just(End::Badly), 1 => Just(End::NoRoom)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u8..8).prop_map(Op::Demand),
        3 => any::<usize>().prop_map(Op::End),
        3 => any::<usize>().prop_map(Op::Lease),
        3 => any::<usize>().prop_map(Op::Collect),
        8 => (any::<usize>(), end()).prop_map(|(at, end)| Op::Perform { at, end }),
        2 => (0u64..800).prop_map(Op::Pass),
        1 => (0u8..8).prop_map(Op::Forget),
        1 => prop::collection::vec(0u8..8, 0..3).prop_map(Op::Pin),
        1 => (0u32..12, 0u32..12).prop_map(|(unused, all)| Op::Lack(unused, all)),
    ]
}

/// 10 to 45 bytes, true ranks differ, of two tenants.
fn numbered(id: u8) -> Arc<AdapterManifest> {
    owned(id % 2, id, 10 + 5 * u64::from(id))
}

/// Tiny memory, and what happens in it.
#[derive(Debug)]
struct Schedule {
    disk: u64,
    host: u64,
    device: u64,
    /// Bytes of a block, and how many there are that adapters may borrow.
    blocks: (u64, u32),
    slots: u32,
    /// Of each tenant, in host memory and on the device.
    quotas: [[Option<u64>; 2]; 2],
    ops: Vec<Op>,
}

prop_compose! {
    fn schedule()(
        disk in 45u64..160, host in 45u64..160, device in 45u64..160, slots in 1u32..8,
        blocks in (0u64..12, 0u32..12),
        quotas in prop::array::uniform2(prop::array::uniform2(prop::option::of(20u64..100))),
        ops in prop::collection::vec(op(), 1..150),
    ) -> Schedule {
        Schedule { disk, host, device, blocks, slots, quotas, ops }
    }
}

proptest! {
    #![proptest_config(crate::fixture::cases(512))]
    #[test]
    fn budgets_hold_and_every_demand_ends_on_the_device_or_with_a_reason(schedule in schedule()) {
        schedule.play()?;
    }
}

#[test]
fn an_adapter_waits_for_its_tenants_pin_no_longer_than_for_its_turn() {
    let perform = |at, end| Op::Perform { at, end };
    let well = || perform(0, End::Well);
    let mut ops = vec![Op::Pin(vec![0]), Op::Demand(2)];
    ops.extend((0..5).map(|_| Op::End(0)));
    ops.extend((0..3).map(|_| well()));
    ops.extend([Op::Demand(2), Op::Demand(2)]);
    ops.extend((0..3).map(|_| well()));
    ops.extend([Op::Demand(5), Op::End(10_544_466_107_285_321_010)]);
    ops.extend([Op::Lease(950_851_645_758_939_704), well(), Op::End(17_652_154_742_890_258_801)]);
    ops.push(perform(5_707_129_897_988_723_642, End::Well));
    ops.push(perform(8_478_252_681_411_881_723, End::NoRoom));
    let quotas = [[Some(20), None], [None, None]];
    let blocks = (0, 0);
    let schedule = Schedule { disk: 65, host: 45, device: 65, blocks, slots: 2, quotas, ops };
    schedule.play().unwrap();
}

impl Schedule {
    fn play(self) -> Result<(), TestCaseError> {
        let Self { disk, host, device, blocks, slots, quotas, ops } = self;
        let shares = quotas.map(|[host_bytes, device_bytes]| TenantShare {
            host_bytes,
            device_bytes,
            ..TenantShare::default()
        });
        let share = |id: u8| shares[usize::from(id % 2)];
        let mut world = World::new(disk, host, device);
        let memory = DeviceMemory { bytes: device, block_bytes: blocks.0 };
        world.borrowable = blocks.1;
        world.residency = Residency::new(config(disk, host), memory, slots);
        let mut demands: Vec<(u8, AdapterDemand)> = Vec::new();
        let mut leases: Vec<(AdapterKey, AdapterLease)> = Vec::new();
        for op in ops {
            match op {
                Op::Demand(id) => {
                    let demand = world.residency.demand(&numbered(id), share(id), world.now);
                    demands.extend(demand.ok().map(|demand| (id, demand)));
                }
                Op::End(i) if !demands.is_empty() => {
                    demands.swap_remove(i % demands.len());
                }
                Op::Lease(i) if !demands.is_empty() => {
                    let key = numbered(demands[i % demands.len()].0).key;
                    leases.extend(world.residency.lease(&key).map(|l| (key, l)));
                }
                Op::Collect(i) if !leases.is_empty() => {
                    leases.swap_remove(i % leases.len());
                }
                Op::Perform { at, end } if !world.pending.is_empty() => {
                    world.perform(at % world.pending.len(), end);
                }
                Op::Pass(ms) => world.now += Duration::from_millis(ms),
                Op::Forget(id) => world.residency.forget(numbered(id).key),
                Op::Pin(ids) => {
                    let pin = |id: &u8| Pin { manifest: numbered(*id), share: share(*id) };
                    world.residency.pin(ids.iter().map(pin).collect(), world.now);
                }
                Op::Lack(unused, available) => {
                    let mut actions = Vec::new();
                    let lacking = BlocksLacking { unused, available };
                    world.residency.yield_blocks(lacking, world.now, &mut actions);
                    world.take(actions);
                }
                _ => {}
            }
            world.plan();
            let mut failed = Vec::new();
            world.residency.take_failures(&mut failed);
            demands.retain(|(id, _)| !failed.contains(&numbered(*id).key));
            for (key, lease) in &leases {
                prop_assert_eq!(world.residency.slots.owner(lease.slot()), Some(*key));
            }
        }
        // From here on all goes well: each demand must get its turn, however little fits.
        leases.clear();
        for _ in 0..demands.len() * 4 + 16 {
            world.settle();
            demands.retain(|(id, _)| {
                let key = numbered(*id).key;
                world.residency.lease(&key).is_none() && world.residency.failure(&key).is_none()
            });
            world.now += world.residency.config.quantum;
        }
        prop_assert!(demands.is_empty(), "still waiting: {}", demands.len());
        prop_assert!(world.residency.is_unused());
        // And each pin that is held its place.
        for _ in 0..4 {
            world.now += world.residency.config.retry_max;
            world.settle();
        }
        for (key, entry) in &world.residency.entries {
            prop_assert!(!entry.is_held() || entry.device_bytes() > 0, "{key:?} is not in place");
        }
        Ok(())
    }
}

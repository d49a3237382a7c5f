use super::*;

/// Adapters have 20 bytes at least; a block has 4.
fn world(borrowable: u32) -> World {
    let mut world = World::new(1000, 1000, 20);
    let memory = DeviceMemory { bytes: 20, block_bytes: 4 };
    world.residency = Residency::new(config(1000, 1000), memory, 8);
    world.borrowable = borrowable;
    world
}

impl World {
    fn yield_blocks(&mut self, unused: u32, available: u32) -> Vec<String> {
        let mut actions = Vec::new();
        let lacking = BlocksLacking { unused, available };
        self.residency.yield_blocks(lacking, self.now, &mut actions);
        let before = self.log.len();
        self.take(actions);
        while !self.pending.is_empty() {
            self.perform(0, End::Well);
        }
        self.log.split_off(before)
    }
}

#[test]
fn blocks_that_nobody_needs_are_borrowed_before_an_adapter_has_to_leave() {
    let mut world = world(5);
    let (first, second, third) = (manifest(1, 20), manifest(2, 14), manifest(3, 8));
    for manifest in [&first, &second] {
        drop(world.demand(manifest));
        let demand = world.demand(manifest);
        world.settle();
        drop(demand);
    }
    assert!(world.is_on_device(&first) && world.is_on_device(&second));
    assert!(world.log.contains(&"borrow 4".to_owned()) && !world.log.contains(&"evict".to_owned()));
    // 2 of the 36 bytes are free, and 6 are more than the block that is left.
    let _demand = world.demand(&third);
    world.settle();
    assert!(world.is_on_device(&third) && world.log.contains(&"evict".to_owned()));
    assert_eq!(world.borrowable, 1);
}

#[test]
fn what_adapters_do_not_use_goes_back_first_and_what_nobody_needs_only_when_no_block_is_left() {
    let mut world = world(5);
    let (needed, idle) = (manifest(1, 16), manifest(2, 16));
    let _demand = world.demand(&needed);
    world.settle();
    let demand = world.demand(&idle);
    world.settle();
    drop(demand);
    assert_eq!(world.residency.device.capacity, 32);
    assert!(world.yield_blocks(3, 0).is_empty(), "all is in use");
    let mut left = world.yield_blocks(2, 1);
    left.sort();
    assert_eq!(left, ["evict", "return 2"]);
    assert_eq!(world.yield_blocks(9, 9), ["return 1"], "adapters keep their least");
    assert_eq!(world.residency.device.capacity, 20);
    assert!(world.yield_blocks(9, 9).is_empty());
    assert!(world.is_on_device(&needed));
}

#[test]
fn what_a_waiting_adapter_is_about_to_use_does_not_go_back() {
    let mut world = world(5);
    let (first, second) = (manifest(1, 20), manifest(2, 20));
    let demand = world.demand(&first);
    world.settle();
    let _second = world.demand(&second);
    while world.residency.device.capacity < 40 {
        world.plan();
        if !matches!(world.pending.front(), Some(AdapterAction::Upload { .. })) {
            world.perform(0, End::Well);
        }
    }
    // Refused for want of room in one piece, it waits again.
    world.perform(0, End::NoRoom);
    assert!(world.yield_blocks(9, 9).is_empty());
    drop(demand);
}

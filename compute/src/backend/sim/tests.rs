use super::*;
use crate::backend::AdapterKey;
use crate::backend::BlockId;
use crate::backend::HostData;
use crate::backend::LogitsWanted;
use lorikeet_contract::adapter::ArtifactHeader;
use lorikeet_contract::{TenantId, WeightsDigest};

fn sim() -> SimBackend {
    let config =
        SimConfig { clock: SimClock::simulated(), check_prefixes: true, ..SimConfig::default() };
    let capacity = Capacity { block_size: 4, pipeline_depth: 2, ..config.capacity };
    SimBackend::new(SimConfig { capacity, ..config })
}

fn row(sequence: u64, position: u32, tokens: &[u32], blocks: &[u32]) -> SequenceStep {
    SequenceStep {
        sequence: SequenceId(sequence),
        input: Input::Tokens(tokens.to_vec()),
        position,
        blocks: blocks.iter().copied().map(BlockId).collect(),
        adapter: None,
        sample: Some(SampleRequest::default()),
        logits: LogitsWanted::None,
    }
}

fn submit(sim: &mut SimBackend, step: u64, sequences: Vec<SequenceStep>) -> Result<(), String> {
    sim.submit(&StepBatch { step, sequences }).map(|_| ()).map_err(|e| e.to_string())
}

/// The token that one row gives.
fn draw(sim: &mut SimBackend, step: u64, row: SequenceStep) -> u32 {
    submit(sim, step, vec![row]).unwrap();
    let output = sim.collect(StepTicket(step)).unwrap();
    output.sequences[0].sampled.as_ref().unwrap().token
}

fn upload(sim: &mut SimBackend, index: u32, generation: u32) -> AdapterSlot {
    let slot = AdapterSlot { index, generation };
    let digest = AdapterDigest([generation as u8; 32]);
    let header = ArtifactHeader {
        layout_version: 1,
        adapter_digest: digest,
        base_weights_digest: WeightsDigest([0; 32]),
        modules: Vec::new(),
    };
    let key = AdapterKey { tenant: TenantId::new(), digest };
    sim.begin_upload(
        slot,
        Arc::new(HostAdapter { key, header, data: HostData::File(Box::new(Vec::new())) }),
    )
    .unwrap();
    slot
}

fn upload_and_wait(sim: &mut SimBackend, index: u32, generation: u32) -> AdapterSlot {
    let slot = upload(sim, index, generation);
    sim.config.clock.wait_until(sim.config.clock.now() + sim.config.cost.upload);
    let mut done = Vec::new();
    sim.poll_uploads(&mut done);
    assert!(done.iter().any(|d| d.slot == slot && d.result.is_ok()));
    slot
}

#[test]
fn a_token_follows_from_the_whole_prefix_however_it_was_cut() {
    let mut sim = sim();
    let whole = draw(&mut sim, 1, row(1, 0, &[1, 2, 3, 4, 5, 6], &[0, 1]));
    draw(&mut sim, 2, row(2, 0, &[1, 2, 3], &[2, 3]));
    let parts = draw(&mut sim, 3, row(2, 3, &[4, 5, 6], &[2, 3]));
    let shared = draw(&mut sim, 4, row(3, 4, &[5, 6], &[0, 4]));
    let other = draw(&mut sim, 5, row(4, 0, &[9, 2, 3, 4, 5, 6], &[5, 6]));
    assert_eq!((whole, whole), (parts, shared));
    assert_ne!(whole, other);
}

#[test]
fn the_token_drawn_by_the_step_before_is_still_on_the_device() {
    let mut sim = sim();
    submit(&mut sim, 1, vec![row(1, 0, &[1, 2], &[0])]).unwrap();
    let ahead = SequenceStep { input: Input::PreviousSample, ..row(1, 2, &[], &[0]) };
    submit(&mut sim, 2, vec![ahead]).unwrap();
    let first = sim.collect(StepTicket(1)).unwrap().sequences[0].sampled.clone().unwrap().token;
    let second = sim.collect(StepTicket(2)).unwrap().sequences[0].sampled.clone().unwrap().token;
    assert_eq!(second, draw(&mut sim, 3, row(2, 0, &[1, 2, first], &[1])));
}

#[test]
fn a_block_written_by_two_sequences_is_noticed() {
    let mut sim = sim();
    draw(&mut sim, 1, row(1, 0, &[1, 2], &[0]));
    draw(&mut sim, 2, row(2, 0, &[1, 2], &[1]));
    let error = submit(&mut sim, 3, vec![row(2, 2, &[3], &[0])]).unwrap_err();
    assert!(error.contains("belongs to"), "{error}");
}

#[test]
fn a_prefix_of_another_sequence_or_adapter_is_noticed() {
    let mut sim = sim();
    draw(&mut sim, 1, row(1, 0, &[1, 2, 3, 4, 5, 6, 7, 8], &[0, 1]));
    draw(&mut sim, 2, row(2, 0, &[9, 2, 3, 4, 5, 6, 7, 8], &[2, 3]));
    let mixed = submit(&mut sim, 3, vec![row(3, 8, &[9], &[0, 3, 4])]).unwrap_err();
    assert!(mixed.contains("another prefix"), "{mixed}");
    let slot = upload_and_wait(&mut sim, 0, 1);
    let adapted = SequenceStep { adapter: Some(slot), ..row(4, 8, &[9], &[0, 1, 5]) };
    let error = submit(&mut sim, 4, vec![adapted]).unwrap_err();
    assert!(error.contains("another prefix or adapter"), "{error}");
}

#[test]
fn a_slot_is_read_only_while_it_is_live_and_of_the_right_generation() {
    let mut sim = sim();
    let slot = upload(&mut sim, 0, 1);
    let with = |slot| vec![SequenceStep { adapter: Some(slot), ..row(1, 0, &[1], &[0]) }];
    let early = submit(&mut sim, 1, with(slot)).unwrap_err();
    assert!(early.contains("before its upload ended"), "{early}");
    let slot = upload_and_wait(&mut sim, 1, 1);
    sim.evict(slot);
    upload_and_wait(&mut sim, 1, 2);
    let stale = submit(&mut sim, 2, with(slot)).unwrap_err();
    assert!(stale.contains("given to another"), "{stale}");
}

#[test]
fn an_eviction_under_a_reader_is_noticed() {
    let mut sim = sim();
    let slot = upload_and_wait(&mut sim, 0, 1);
    let reader = SequenceStep { adapter: Some(slot), ..row(1, 0, &[1], &[0]) };
    submit(&mut sim, 1, vec![reader]).unwrap();
    sim.evict(slot);
    let error = submit(&mut sim, 2, vec![row(2, 0, &[1], &[1])]).unwrap_err();
    assert!(error.contains("while in use"), "{error}");
}

#[test]
fn time_passes_as_the_costs_say_and_uploads_run_beside_the_steps() {
    let mut sim = sim();
    let (clock, cost) = (sim.config.clock.clone(), sim.config.cost);
    let start = clock.now();
    upload(&mut sim, 0, 1);
    draw(&mut sim, 1, row(1, 0, &[1, 2, 3], &[0]));
    assert_eq!(clock.now() - start, cost.step + cost.row * 3);
    let mut done = Vec::new();
    sim.poll_uploads(&mut done);
    assert_eq!(done.len(), 1);
}

/// Six of eight blocks' room can be adapters'.
fn shared_sim() -> SimBackend {
    let config =
        SimConfig { clock: SimClock::simulated(), check_prefixes: true, ..SimConfig::default() };
    let capacity = Capacity {
        num_blocks: 8,
        least_blocks: 2,
        block_bytes: 100,
        block_size: 4,
        adapter_bytes: 50,
        pipeline_depth: 2,
        ..config.capacity
    };
    SimBackend::new(SimConfig { capacity, ..config })
}

#[test]
fn a_block_that_moves_keeps_what_it_holds_and_its_old_place_holds_nothing() {
    let mut sim = shared_sim();
    draw(&mut sim, 1, row(1, 0, &[1, 2, 3, 4, 5], &[7, 0]));
    let moved = BlockMove { from: BlockId(7), to: BlockId(3) };
    sim.set_blocks(6, &[moved]).unwrap();
    let whole = draw(&mut sim, 2, row(2, 0, &[1, 2, 3, 4, 5, 6], &[1, 2]));
    assert_eq!(draw(&mut sim, 3, row(1, 5, &[6], &[3, 0])), whole);
    let gone = submit(&mut sim, 4, vec![row(1, 6, &[7], &[7, 0])]).unwrap_err();
    assert!(gone.contains("block 7 does not exist"), "{gone}");
    sim.set_blocks(8, &[]).unwrap();
    let emptied = submit(&mut sim, 5, vec![row(1, 6, &[7], &[7, 0])]).unwrap_err();
    assert!(emptied.contains("block 7 does not hold"), "{emptied}");
    let kept = BlockMove { from: BlockId(1), to: BlockId(2) };
    let error = sim.set_blocks(6, &[kept]).unwrap_err().to_string();
    assert!(error.contains("cannot become"), "{error}");
}

#[test]
fn blocks_are_not_taken_back_from_adapters_that_use_their_room() {
    let mut sim = shared_sim();
    sim.set_blocks(5, &[]).unwrap();
    let slot = AdapterSlot { index: 0, generation: 1 };
    let key = AdapterKey { tenant: TenantId::new(), digest: AdapterDigest([1; 32]) };
    sim.slots.begin(slot, key, 200, sim.config.clock.now(), false).unwrap();
    let error = sim.set_blocks(7, &[]).unwrap_err().to_string();
    assert!(error.contains("use 200 bytes"), "{error}");
    sim.set_blocks(6, &[]).unwrap();
}

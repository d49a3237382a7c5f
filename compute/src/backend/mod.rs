//! What executes a step: the CPU, a GPU, or a simulation. The engine speaks only this trait.
//!
//! `submit` and `collect` are apart so that a device can run one step ahead of the host: the input
//! token of a row may then still be on the device ([`Input::PreviousSample`]).

pub mod batch;
pub mod cpu;
pub mod cuda;
mod group;
pub mod sim;
mod slots;
mod uploads;

use lorikeet_contract::adapter::ArtifactHeader;
use lorikeet_contract::{AdapterDigest, TenantId};
use std::any::Any;
use std::sync::Arc;

pub use batch::{
    Input, LogitsWanted, SampleRequest, SampledToken, SequenceOutput, SequenceStep, StepBatch,
    StepOutput,
};

/// Identity of an adapter on a node. The tenant is part of it: identical uploads of two tenants
/// share nothing, neither bytes nor timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterKey {
    pub tenant: TenantId,
    pub digest: AdapterDigest,
}

/// A physical KV block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// An adapter's place in device memory. The generation changes each time the index is given to
/// another adapter, so that a stale slot is noticed instead of read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterSlot {
    pub index: u32,
    pub generation: u32,
}

/// Identifies a submitted step. Steps are collected in the order in which they were submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepTicket(pub u64);

/// A block whose keys and values change place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockMove {
    pub from: BlockId,
    pub to: BlockId,
}

/// What the engine may use of a backend. Constant for its life, but for the border between blocks and
/// adapters, which [`Backend::set_blocks`] moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Physical KV blocks: at the start, and the most that there may be.
    pub num_blocks: u32,
    /// Bytes that adapters gain with each block that is given up; 0: the border does not move.
    pub block_bytes: u64,
    /// Where it does, blocks that are never given up.
    pub least_blocks: u32,
    /// Tokens a block holds.
    pub block_size: u32,
    /// Bytes for adapters on the device, each at its true rank: at the start, and the fewest.
    pub adapter_bytes: u64,
    /// Adapter slots. Bytes run out first; this bounds the descriptor tables.
    pub max_slots: u32,
    /// Largest number of rows (token positions) of one step.
    pub max_rows: u32,
    /// Steps that may be submitted and not yet collected: 1, or 2 to run one ahead.
    pub pipeline_depth: u32,
}

impl Capacity {
    /// Bytes for adapters beside so many blocks, at most [`Capacity::num_blocks`].
    pub fn adapter_bytes_beside(&self, blocks: u32) -> u64 {
        self.adapter_bytes + u64::from(self.num_blocks - blocks) * self.block_bytes
    }
}

/// A verified adapter in host memory, and its parsed header.
pub struct HostAdapter {
    pub key: AdapterKey,
    pub header: ArtifactHeader,
    pub data: HostData,
}

/// What host memory holds of an adapter.
pub enum HostData {
    /// The whole file; the header's offsets index it. In pinned memory where the backend asks for it.
    File(Box<dyn HostBuffer>),
    /// What [`HostAllocator::prepare`] made of the file, for the backend that it belongs to.
    Prepared(Arc<dyn Any + Send + Sync>),
}

impl HostAdapter {
    /// The whole file; an error when it has been prepared for some backend.
    pub fn file(&self) -> Result<&[u8], BackendError> {
        match &self.data {
            HostData::File(file) => Ok(file.as_slice()),
            HostData::Prepared(_) => Err(BackendError::Adapter("it has no file any more".into())),
        }
    }
}

/// Memory that an adapter's bytes are read into; a backend decides where it comes from.
pub trait HostBuffer: Send + Sync {
    fn as_slice(&self) -> &[u8];
    fn as_mut_slice(&mut self) -> &mut [u8];
}

/// Hands out host memory for adapters: ordinary for the CPU, page-locked for a GPU.
pub trait HostAllocator: Send + Sync {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBuffer>, BackendError>;

    /// Gives an adapter the form in which the backend takes it: once for each time that it comes to
    /// host memory, beside the running steps, so that the swaps that follow are cheap. That form is
    /// no larger than the file, but for odd ranks, which may be padded to even ones. An error
    /// concerns this adapter only.
    fn prepare(&self, adapter: HostAdapter) -> Result<HostAdapter, BackendError> {
        Ok(adapter)
    }
}

/// The end of an upload begun with [`Backend::begin_upload`].
#[derive(Debug)]
pub struct UploadDone {
    pub slot: AdapterSlot,
    pub result: Result<(), BackendError>,
}

/// Errors of a backend. `Adapter` concerns one adapter, `NoRoomYet` passes by itself, `Device` ends
/// the engine.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    #[error("the adapter cannot be placed on the device: {0}")]
    Adapter(String),
    /// The adapter's bytes are free, but not in one piece, or too many uploads are queued. It fits
    /// once the uploads under way have ended: try again then. Not the adapter's fault.
    #[error("no contiguous room for the adapter's {bytes} bytes yet")]
    NoRoomYet { bytes: u64 },
    #[error("out of {what}: {bytes} bytes were asked for")]
    OutOfMemory { what: &'static str, bytes: u64 },
    #[error("device error: {0}")]
    Device(String),
}

/// Executes steps. Owned by the engine thread; every call returns without waiting for I/O.
pub trait Backend: Send {
    /// cpu, cuda or sim.
    fn name(&self) -> &'static str;

    fn capacity(&self) -> Capacity;

    fn host_allocator(&self) -> Arc<dyn HostAllocator>;

    /// Bytes the adapter will occupy on the device, at its true rank.
    fn adapter_bytes(&self, header: &ArtifactHeader) -> u64;

    /// Starts to place an adapter, prepared by this backend's [`HostAllocator`], into a slot that no
    /// submitted step reads. Ends in exactly one
    /// [`UploadDone`], unless it returns an error; the slot may appear in a batch only after a
    /// successful one, and is free after an error. After [`BackendError::NoRoomYet`] the same upload
    /// may be asked for again.
    fn begin_upload(
        &mut self,
        slot: AdapterSlot,
        adapter: Arc<HostAdapter>,
    ) -> Result<(), BackendError>;

    /// Uploads that ended since the last call. Never blocks.
    fn poll_uploads(&mut self, done: &mut Vec<UploadDone>);

    /// Frees a slot. No step submitted and not collected may read it.
    fn evict(&mut self, slot: AdapterSlot);

    /// Moves the border between blocks and adapters: later steps use the first `blocks` blocks alone,
    /// and adapters have what the rest leaves. `moves` are made after all submitted steps and before
    /// later ones: each from a block that is given up to one that stays and holds nothing of use.
    ///
    /// Taking blocks back may be refused with [`BackendError::NoRoomYet`] while uploads are under way;
    /// nothing has changed then. Adapters must leave room for what is taken back.
    fn set_blocks(&mut self, blocks: u32, moves: &[BlockMove]) -> Result<(), BackendError> {
        let is_same = blocks == self.capacity().num_blocks && moves.is_empty();
        let fixed = || BackendError::Device("its blocks and adapters do not share memory".into());
        is_same.then_some(()).ok_or_else(fixed)
    }

    /// Starts a step. The batch has been checked: slots are live, blocks belong to their sequence.
    /// Steps execute in the order of their submission, so that a block given up by one step may be
    /// written by the next.
    fn submit(&mut self, batch: &StepBatch) -> Result<StepTicket, BackendError>;

    /// Waits for the oldest submitted step.
    fn collect(&mut self, ticket: StepTicket) -> Result<StepOutput, BackendError>;

    /// Takes back a collected output once it has been read; its memory may serve a later step.
    fn recycle(&mut self, _output: StepOutput) {}
}

/// Host memory from the ordinary allocator.
pub struct HeapAllocator;

impl HostBuffer for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }
    fn as_mut_slice(&mut self) -> &mut [u8] {
        self
    }
}

impl HostAllocator for HeapAllocator {
    fn allocate(&self, bytes: usize) -> Result<Box<dyn HostBuffer>, BackendError> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(bytes).map_err(|_| BackendError::OutOfMemory {
            what: "host memory for adapters",
            bytes: bytes as u64,
        })?;
        buffer.resize(bytes, 0);
        Ok(Box::new(buffer))
    }
}

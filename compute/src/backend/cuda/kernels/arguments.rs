//! The kernels' arguments as types: one struct for each, whose fields are the parameters of the
//! function of the same name in `kernels/`, in order.

use super::{Kernel, KernelId};
use crate::backend::cuda::device::DevicePointer;
use std::ffi::c_void;

/// f32 scales that a product with 8-bit weights leaves out: of each row, and of each output. 0: there
/// are none.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Scales {
    pub rows: DevicePointer,
    pub outputs: DevicePointer,
}

/// What a model's family has in its heads. 0: it has not.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Heads {
    /// f32, of the outputs of q, k and v.
    pub biases: DevicePointer,
    /// f32, `head_dim` each.
    pub query_norm: DevicePointer,
    pub key_norm: DevicePointer,
    pub eps: f32,
    pub unused: u32,
}

/// Whose `z` is computed, for one group of linears. Default: nobody's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct RowAdapters {
    pub step: DevicePointer,
    pub tiles: DevicePointer,
    pub z: DevicePointer,
    pub z_stride: u32,
    pub layer: u32,
    pub group: u32,
    pub first_linear: u32,
    pub linears: u32,
    pub unused: u32,
}

/// Sections of a plan.
pub const PLAN_PARTS: usize = 10;

/// Where each section begins, and how much of it is used, in units of 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PlanParts {
    pub first: [u32; PLAN_PARTS],
    pub count: [u32; PLAN_PARTS],
}

macro_rules! kernel {
    ($(#[$meta:meta])* $name:ident, $threads:literal, { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            $(pub $field: $type,)*
        }

        impl Kernel for $name {
            const ID: KernelId = KernelId::$name;
            const THREADS: u32 = $threads;

            fn with_arguments<R>(&self, launch: impl FnOnce(&mut [*mut c_void]) -> R) -> R {
                launch(&mut [$(std::ptr::from_ref(&self.$field).cast_mut().cast()),*])
            }
        }
    };
}

kernel!(CopyPlan, 256, {
    to: DevicePointer,
    from: DevicePointer,
    parts: PlanParts,
    units: u32,
});

kernel!(Embed, 128, {
    step: DevicePointer,
    rows: DevicePointer,
    sampled: DevicePointer,
    table: DevicePointer,
    hidden: DevicePointer,
    width: u32,
});

kernel!(Gather, 128, {
    step: DevicePointer,
    logit_rows: DevicePointer,
    x: DevicePointer,
    out: DevicePointer,
    width: u32,
    first: u32,
    count: u32,
});

kernel!(
    /// `y` of 0: nothing is added.
    RmsNorm, 256, {
    step: DevicePointer,
    hidden: DevicePointer,
    y: DevicePointer,
    scales: Scales,
    weight: DevicePointer,
    x: DevicePointer,
    x8: DevicePointer,
    x_scales: DevicePointer,
    width: u32,
    eps: f32,
});

kernel!(
    /// In clusters: one takes a tile of rows, each of its blocks a slice of the inputs.
    LoraShrink, 256, {
    step: DevicePointer,
    tiles: DevicePointer,
    x: DevicePointer,
    inputs: u32,
    z: DevicePointer,
    z_stride: u32,
    layer: u32,
    group: u32,
    first_linear: u32,
    linears: u32,
});

kernel!(RopeKv, 128, {
    step: DevicePointer,
    rows: DevicePointer,
    tiles: DevicePointer,
    y: DevicePointer,
    z: DevicePointer,
    z_stride: u32,
    scales: Scales,
    family: Heads,
    cosines: DevicePointer,
    sines: DevicePointer,
    queries: DevicePointer,
    kv: DevicePointer,
    heads: u32,
    kv_heads: u32,
    layer: u32,
    layers: u32,
});

kernel!(
    /// `scale` includes log2(e): weights are powers of two. `window`: positions that a row sees, its
    /// own among them; 0: all.
    Attention, 256, {
    step: DevicePointer,
    items: DevicePointer,
    block_table: DevicePointer,
    queries: DevicePointer,
    kv: DevicePointer,
    out: DevicePointer,
    heads: u32,
    kv_heads: u32,
    layer: u32,
    layers: u32,
    window: u32,
    scale: f32,
});

kernel!(
    /// `scale` and `window` as for [`Attention`]. `queue` of 0: it reads what the kernel just before it wrote.
    /// Otherwise that kernel is [`Attention`], and both run side by side.
    AttentionDecode, 128, {
    step: DevicePointer,
    items: DevicePointer,
    block_table: DevicePointer,
    queries: DevicePointer,
    kv: DevicePointer,
    out: DevicePointer,
    partial_out: DevicePointer,
    partial_sums: DevicePointer,
    finished: DevicePointer,
    queue: DevicePointer,
    heads: u32,
    kv_heads: u32,
    layer: u32,
    layers: u32,
    window: u32,
    scale: f32,
});

kernel!(
    /// At most [`FEW_ROWS`](super::FEW_ROWS) rows; one thread block for 16 outputs, or for 16 ranks of an
    /// adapter.
    FewRowsBf16, 256, {
    weights: DevicePointer,
    x: DevicePointer,
    y: DevicePointer,
    outputs: u32,
    inputs: u32,
    rows: u32,
    adapters: RowAdapters,
});

kernel!(
    /// As [`FewRowsBf16`], with f32 results and no adapters.
    FewRowsF32, 256, {
    weights: DevicePointer,
    x: DevicePointer,
    y: DevicePointer,
    outputs: u32,
    inputs: u32,
    rows: u32,
});

kernel!(
    /// `step` of 0: `rows` rows, else the step's.
    Quantise, 256, {
    step: DevicePointer,
    x: DevicePointer,
    out: DevicePointer,
    scales: DevicePointer,
    rows: u32,
    width: u32,
});

kernel!(SiluMul, 128, {
    step: DevicePointer,
    tiles: DevicePointer,
    y: DevicePointer,
    z: DevicePointer,
    z_stride: u32,
    scales: Scales,
    out: DevicePointer,
    width: u32,
    layer: u32,
});

kernel!(Residual, 128, {
    step: DevicePointer,
    tiles: DevicePointer,
    y: DevicePointer,
    z: DevicePointer,
    z_stride: u32,
    scales: Scales,
    hidden: DevicePointer,
    width: u32,
    layer: u32,
    linear: u32,
});

kernel!(Sample, 1024, {
    step: DevicePointer,
    draws: DevicePointer,
    edits: DevicePointer,
    masks: DevicePointer,
    logits: DevicePointer,
    vocabulary: u32,
    first: u32,
    count: u32,
    tokens: DevicePointer,
    logprobs: DevicePointer,
    top_ids: DevicePointer,
    top_logprobs: DevicePointer,
});

kernel!(DoraGain, 256, {
    w: DevicePointer,
    w_scales: DevicePointer,
    a: DevicePointer,
    b: DevicePointer,
    magnitude: DevicePointer,
    gain: DevicePointer,
    outputs: u32,
    inputs: u32,
    rank: u32,
    scale: f32,
});

kernel!(Fill, 256, {
    out: DevicePointer,
    count: u64,
    seed: u64,
    scale: f32,
});

//! The kernels, with their arguments as types: one struct for each, whose fields are the parameters
//! of the function of the same name in `kernels/`, in order.

use super::device::{Device, DevicePointer, Stream};
use super::error::{Context, CudaError};
use super::nvrtc::{Compiler, Source};
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::Arc;

pub const PRELUDE: &str = include_str!("kernels/prelude.cuh");

/// File, source, and the kernels in it.
const FILES: [(&str, &str, &[KernelId]); 10] = [
    ("embed.cu", include_str!("kernels/embed.cu"), &[KernelId::Embed, KernelId::Gather]),
    ("norm.cu", include_str!("kernels/norm.cu"), &[KernelId::RmsNorm]),
    ("lora_shrink.cu", include_str!("kernels/lora_shrink.cu"), &[KernelId::LoraShrink]),
    ("rope_kv.cu", include_str!("kernels/rope_kv.cu"), &[KernelId::RopeKv]),
    (
        "attention.cu",
        include_str!("kernels/attention.cu"),
        &[KernelId::Attention, KernelId::Combine],
    ),
    ("silu_mul.cu", include_str!("kernels/silu_mul.cu"), &[KernelId::SiluMul]),
    ("residual.cu", include_str!("kernels/residual.cu"), &[KernelId::Residual]),
    ("sample.cu", include_str!("kernels/sample.cu"), &[KernelId::Sample]),
    ("dora_gain.cu", include_str!("kernels/dora_gain.cu"), &[KernelId::DoraGain]),
    ("fill.cu", include_str!("kernels/fill.cu"), &[KernelId::Fill]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelId {
    Embed,
    Gather,
    RmsNorm,
    LoraShrink,
    RopeKv,
    Attention,
    Combine,
    SiluMul,
    Residual,
    Sample,
    DoraGain,
    Fill,
}

impl KernelId {
    const COUNT: usize = KernelId::Fill as usize + 1;

    pub fn name(self) -> &'static str {
        match self {
            KernelId::Embed => "embed",
            KernelId::Gather => "gather",
            KernelId::RmsNorm => "rms_norm",
            KernelId::LoraShrink => "lora_shrink",
            KernelId::RopeKv => "rope_kv",
            KernelId::Attention => "attention",
            KernelId::Combine => "combine",
            KernelId::SiluMul => "silu_mul",
            KernelId::Residual => "residual",
            KernelId::Sample => "sample",
            KernelId::DoraGain => "dora_gain",
            KernelId::Fill => "fill",
        }
    }
}

/// The arguments of a launch.
pub trait Kernel {
    const ID: KernelId;
    /// Threads of a thread block.
    const THREADS: u32;

    fn with_arguments<R>(&self, launch: impl FnOnce(&mut [*mut c_void]) -> R) -> R;
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
    weight: DevicePointer,
    x: DevicePointer,
    width: u32,
    eps: f32,
});

kernel!(LoraShrink, 128, {
    step: DevicePointer,
    tiles: DevicePointer,
    x: DevicePointer,
    inputs: u32,
    z: DevicePointer,
    z_stride: u32,
    partials: DevicePointer,
    finished: DevicePointer,
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
    /// `scale` includes log2(e): weights are powers of two.
    Attention, 128, {
    step: DevicePointer,
    items: DevicePointer,
    block_table: DevicePointer,
    queries: DevicePointer,
    kv: DevicePointer,
    out: DevicePointer,
    partial_out: DevicePointer,
    partial_sums: DevicePointer,
    heads: u32,
    kv_heads: u32,
    layer: u32,
    layers: u32,
    scale: f32,
});

kernel!(Combine, 0, {
    step: DevicePointer,
    items: DevicePointer,
    partial_out: DevicePointer,
    partial_sums: DevicePointer,
    out: DevicePointer,
    heads: u32,
});

kernel!(SiluMul, 128, {
    step: DevicePointer,
    tiles: DevicePointer,
    y: DevicePointer,
    z: DevicePointer,
    z_stride: u32,
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
    hidden: DevicePointer,
    width: u32,
    layer: u32,
    linear: u32,
});

kernel!(Sample, 1024, {
    step: DevicePointer,
    draws: DevicePointer,
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

/// All kernels, compiled for one device and head size.
pub struct Kernels {
    functions: [sys::CUfunction; KernelId::COUNT],
    head_dim: u32,
    multiprocessors: u32,
}

// SAFETY: function handles belong to the context and may be used from any thread that entered it.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// What to compile for models of this head size.
pub fn sources(head_dim: u32) -> Vec<Source> {
    let source = |&(file, source, _): &(&'static str, &str, &[KernelId])| Source {
        file,
        source: format!("{PRELUDE}#line 1 \"{file}\"\n{source}"),
        defines: vec![format!("HEAD_DIM={head_dim}")],
    };
    FILES.iter().map(source).collect()
}

impl Kernels {
    pub fn load(
        device: &Arc<Device>,
        head_dim: u32,
        cache: Option<PathBuf>,
    ) -> Result<Self, CudaError> {
        if head_dim != 64 && head_dim != 128 {
            return Err(CudaError::Model(format!("its heads are {head_dim} wide, not 64 or 128")));
        }
        let cubins = Compiler::new(device.info.arch, cache)?.compile_all(&sources(head_dim))?;
        let mut functions = [std::ptr::null_mut(); KernelId::COUNT];
        for ((_, _, ids), cubin) in FILES.iter().zip(cubins) {
            // SAFETY: a whole cubin. The module is kept until the process ends.
            let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
                .during("loading a module")?;
            for id in *ids {
                let name = CString::new(id.name()).during("naming a kernel")?;
                // SAFETY: the module was just loaded.
                functions[*id as usize] = unsafe { result::module::get_function(module, name) }
                    .during("finding a kernel")?;
            }
        }
        Ok(Self { functions, head_dim, multiprocessors: device.info.multiprocessors })
    }

    /// Thread blocks for `items` of work, at most `per_multiprocessor` on each.
    pub fn blocks(&self, items: u32, per_multiprocessor: u32) -> u32 {
        items.clamp(1, self.multiprocessors * per_multiprocessor)
    }

    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// # Safety
    /// The arguments' addresses are valid for what the kernel reads and writes until the stream has
    /// run it, and no other work uses them meanwhile.
    pub unsafe fn launch<K: Kernel>(
        &self,
        stream: &Stream,
        blocks: u32,
        arguments: &K,
    ) -> Result<(), CudaError> {
        let threads = if K::THREADS == 0 { self.head_dim } else { K::THREADS };
        let function = self.functions[K::ID as usize];
        let (grid, block) = ((blocks, 1, 1), (threads, 1, 1));
        arguments.with_arguments(|pointers| {
            // SAFETY: the struct's fields are the function's parameters; the rest is the caller's.
            unsafe { result::launch_kernel(function, grid, block, 0, stream.raw(), pointers) }
                .during(K::ID.name())
        })
    }
}

//! The kernels: what they are compiled from, and how they are launched.

mod arguments;

pub use arguments::*;

use super::device::{Device, Stream};
use super::error::{Context, CudaError};
use super::nvrtc::{Compiler, Source};
use super::weights::Precision;
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file of sources, and what is built in of it.
type Part = (&'static str, &'static str);

macro_rules! part {
    ($file:literal) => {
        ($file, include_str!(concat!("kernels/", $file)))
    };
}

pub const PRELUDE: Part = part!("prelude.cuh");
const EXPAND: Part = part!("expand.cuh");
const KV: Part = part!("kv.cuh");
const ORDER: Part = part!("order.cuh");

/// What a file needs beside the prelude, the file, and the kernels in it.
const FILES: [(&[Part], Part, &[KernelId]); 14] = [
    (&[], part!("copy_plan.cu"), &[KernelId::CopyPlan]),
    (&[], part!("embed.cu"), &[KernelId::Embed, KernelId::Gather]),
    (&[], part!("norm.cu"), &[KernelId::RmsNorm]),
    (&[], part!("lora_shrink.cu"), &[KernelId::LoraShrink]),
    (&[EXPAND, KV], part!("rope_kv.cu"), &[KernelId::RopeKv]),
    (&[KV], part!("attention.cu"), &[KernelId::Attention]),
    (&[KV], part!("attention_decode.cu"), &[KernelId::AttentionDecode]),
    (&[], part!("few_rows.cu"), &[KernelId::FewRowsBf16, KernelId::FewRowsF32]),
    (&[], part!("quantise.cu"), &[KernelId::Quantise]),
    (&[EXPAND], part!("silu_mul.cu"), &[KernelId::SiluMul]),
    (&[EXPAND], part!("residual.cu"), &[KernelId::Residual]),
    (&[ORDER], part!("sample.cu"), &[KernelId::Sample]),
    (&[], part!("dora_gain.cu"), &[KernelId::DoraGain]),
    (&[], part!("fill.cu"), &[KernelId::Fill]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelId {
    CopyPlan,
    Embed,
    Gather,
    RmsNorm,
    LoraShrink,
    RopeKv,
    Attention,
    AttentionDecode,
    FewRowsBf16,
    FewRowsF32,
    Quantise,
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
            KernelId::CopyPlan => "copy_plan",
            KernelId::Embed => "embed",
            KernelId::Gather => "gather",
            KernelId::RmsNorm => "rms_norm",
            KernelId::LoraShrink => "lora_shrink",
            KernelId::RopeKv => "rope_kv",
            KernelId::Attention => "attention",
            KernelId::AttentionDecode => "attention_decode",
            KernelId::FewRowsBf16 => "few_rows_bf16",
            KernelId::FewRowsF32 => "few_rows_f32",
            KernelId::Quantise => "quantise",
            KernelId::SiluMul => "silu_mul",
            KernelId::Residual => "residual",
            KernelId::Sample => "sample",
            KernelId::DoraGain => "dora_gain",
            KernelId::Fill => "fill",
        }
    }
}

/// Shared memory that a launch gives a thread block beside what the kernel declares.
fn shared_bytes(id: KernelId) -> u32 {
    match id {
        KernelId::Attention => 72 << 10,
        _ => 0,
    }
}

/// When a kernel may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// When all work before it on the stream has ended.
    Afterwards,
    /// While the kernel just before it on the stream ends; it waits for that one itself.
    Early,
}

/// Thread blocks of a launch. Those of a cluster run at the same time and may read each other's
/// shared memory.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: u32,
    pub cluster: u32,
}

impl From<u32> for Grid {
    fn from(blocks: u32) -> Self {
        Self { blocks, cluster: 1 }
    }
}

/// The arguments of a launch.
pub trait Kernel {
    const ID: KernelId;
    /// Threads of a thread block.
    const THREADS: u32;

    fn with_arguments<R>(&self, launch: impl FnOnce(&mut [*mut c_void]) -> R) -> R;
}

/// Rows of the products that kernels of our own compute: the columns of one matrix instruction.
pub const FEW_ROWS: u32 = 8;

/// What kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub head_dim: u32,
    pub precision: Precision,
    pub kv_precision: Precision,
}

/// All kernels, compiled for one device and target.
pub struct Kernels {
    functions: [sys::CUfunction; KernelId::COUNT],
    target: Target,
    multiprocessors: u32,
}

// SAFETY: function handles belong to the context and may be used from any thread that entered it.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// What to compile. Files of the folder take the place of those built in, so that a kernel can be
/// worked on without building the program anew.
pub fn sources(target: Target, folder: Option<&Path>) -> Vec<Source> {
    let text = |&(file, built_in): &Part| {
        let other = folder.and_then(|folder| std::fs::read_to_string(folder.join(file)).ok());
        format!("#line 1 \"{file}\"\n{}", other.as_deref().unwrap_or(built_in))
    };
    let source = |(needs, own, _): &(&[Part], Part, &[KernelId])| {
        let parts = [&[PRELUDE], *needs, &[*own]].concat();
        Source { file: own.0, source: parts.iter().map(text).collect(), defines: defines(target) }
    };
    FILES.iter().map(source).collect()
}

fn defines(target: Target) -> Vec<String> {
    let bits = |precision: Precision| 8 * precision.bytes();
    vec![
        format!("HEAD_DIM={}", target.head_dim),
        format!("WEIGHT_BITS={}", bits(target.precision)),
        format!("KV_BITS={}", bits(target.kv_precision)),
    ]
}

impl Kernels {
    pub fn load(
        device: &Arc<Device>,
        target: Target,
        cache: Option<PathBuf>,
        folder: Option<&Path>,
    ) -> Result<Self, CudaError> {
        let head_dim = target.head_dim;
        if head_dim != 64 && head_dim != 128 {
            return Err(CudaError::Model(format!("its heads are {head_dim} wide, not 64 or 128")));
        }
        let cubins =
            Compiler::new(device.info.arch, cache)?.compile_all(&sources(target, folder))?;
        let mut functions = [std::ptr::null_mut(); KernelId::COUNT];
        for ((_, _, ids), cubin) in FILES.iter().zip(cubins) {
            // SAFETY: a whole cubin. The module is kept until the process ends.
            let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }
                .during("loading a module")?;
            for id in *ids {
                let name = CString::new(id.name()).during("naming a kernel")?;
                // SAFETY: the module was just loaded.
                let function = unsafe { result::module::get_function(module, name) }
                    .during("finding a kernel")?;
                let most =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function was just found.
                unsafe {
                    result::function::set_function_attribute(
                        function,
                        most,
                        shared_bytes(*id) as i32,
                    )
                }
                .during("reserving shared memory")?;
                functions[*id as usize] = function;
            }
        }
        Ok(Self { functions, target, multiprocessors: device.info.multiprocessors })
    }

    pub fn target(&self) -> Target {
        self.target
    }

    /// Thread blocks for `items` of work, at most `per_multiprocessor` on each.
    pub fn blocks(&self, items: u32, per_multiprocessor: u32) -> u32 {
        items.clamp(1, self.multiprocessors * per_multiprocessor)
    }

    /// Clusters for the shrink: one for each tile of a full device. More blocks to each where there are
    /// few tiles, and up to four clusters to a tile.
    pub fn shrink_grid(&self, rows: u32) -> Grid {
        let cluster = if rows <= FEW_ROWS { 8 } else { 4 };
        let blocks = 2 * self.multiprocessors / cluster * cluster;
        Grid { blocks: blocks.min(rows * cluster * 4), cluster }
    }

    /// Thread blocks for the product of few rows: one for each 16 outputs, and some for the ranks of the
    /// rows' adapters, as far as the device holds them.
    pub fn few_rows_blocks(&self, outputs: u32, adapted_rows: u32) -> u32 {
        self.blocks(outputs.div_ceil(16) + 12 * adapted_rows, 3)
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
        start: Start,
        grid: impl Into<Grid>,
        arguments: &K,
    ) -> Result<(), CudaError> {
        use sys::CUlaunchAttributeID as Id;
        let Grid { blocks, cluster } = grid.into();
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let shape = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
        let mut attributes = [
            attribute(
                Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue { clusterDim: shape },
            ),
            attribute(
                Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ),
        ];
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: K::THREADS,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes(K::ID),
            hStream: stream.raw(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: 1 + u32::from(start == Start::Early),
        };
        let function = self.functions[K::ID as usize];
        arguments.with_arguments(|pointers| {
            // SAFETY: the struct's fields are the function's parameters; the rest is the caller's.
            unsafe {
                sys::cuLaunchKernelEx(
                    &config,
                    function,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
            .result()
            .during(K::ID.name())
        })
    }
}

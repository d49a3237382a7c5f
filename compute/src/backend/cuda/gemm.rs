//! Products with the weights, through cublasLt: `y = x W^T`, bf16 or e4m3 in, f32 sums. Scales of
//! e4m3 are left to the kernel that reads `y`: taking them into the product costs 25 % at few rows.
//!
//! cublasLt's own first choice is up to 17 % off for some shapes, so the candidates are timed once
//! for each shape and row bucket, and the picks kept on disk: another pick rounds differently, and
//! a restarted node should not.

mod picks;

use super::device::{Device, DeviceMemory, DevicePointer, Event, Stream};
use super::error::{Context, CudaError};
use cudarc::cublaslt::{result, sys};
use picks::Picks;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

const WORKSPACE: u64 = 32 << 20;
const CANDIDATES: usize = 16;
/// Weights of this many layers take turns, so that the L2 cache holds none of them.
const TIMED_LAYERS: usize = 8;

/// `outputs x inputs` weights times `inputs` values of each of `rows` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    pub outputs: u32,
    pub inputs: u32,
    pub rows: u32,
    pub numbers: Numbers,
}

/// Weights and inputs, then results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Numbers {
    Bf16,
    Bf16ToF32,
    E4m3ToBf16,
}

impl Shape {
    fn name(self) -> String {
        let kind = match self.numbers {
            Numbers::Bf16 => "bf16",
            Numbers::Bf16ToF32 => "f32",
            Numbers::E4m3ToBf16 => "e4m3",
        };
        format!("{}x{}x{} {kind}", self.rows, self.outputs, self.inputs)
    }
}

struct Plan {
    weights: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

pub struct Gemm {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    description_8: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    workspace: DeviceMemory,
    plans: HashMap<Shape, Plan>,
    picks: Picks,
}

// SAFETY: the handles are used by the owner of the value alone.
unsafe impl Send for Gemm {}

/// The row counts that products are planned for; a step runs at the next larger one.
pub fn row_buckets(max_rows: u32) -> Vec<u32> {
    let small = [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768];
    let large = (1024..).step_by(256);
    let mut buckets: Vec<u32> =
        small.into_iter().chain(large).take_while(|&rows| rows < max_rows).collect();
    buckets.push(max_rows);
    buckets
}

impl Gemm {
    pub fn new(device: &Arc<Device>, cache: Option<PathBuf>) -> Result<Self, CudaError> {
        let handle = result::create_handle().during("starting cublasLt")?;
        let (description, description_8) = (describe(false)?, describe(true)?);
        let preference = preference()?;
        // SAFETY: takes no arguments.
        let version = unsafe { sys::cublasLtGetVersion() };
        let file = format!("{} cublasLt {version}.json", device.info.name).replace([' ', '/'], "-");
        Ok(Self {
            device: device.clone(),
            handle,
            description,
            description_8,
            preference,
            workspace: device.allocate("device memory for products", WORKSPACE)?,
            plans: HashMap::new(),
            picks: Picks::read(cache.map(|dir| dir.join(file))),
        })
    }

    /// Makes a shape ready. `weights` are those of some layers, `x` and `y` have room for the rows:
    /// candidates are timed on them.
    pub fn plan(
        &mut self,
        stream: &Stream,
        shape: Shape,
        weights: &[DevicePointer],
        x: DevicePointer,
        y: DevicePointer,
    ) -> Result<(), CudaError> {
        if self.plans.contains_key(&shape) {
            return Ok(());
        }
        let mut plan = self.layouts(shape)?;
        if let Some(data) = self.picks.get(&shape.name()) {
            plan.algorithm = sys::cublasLtMatmulAlgo_t { data };
            self.plans.insert(shape, plan);
            return Ok(());
        }
        let mut best = (f32::INFINITY, None);
        for algorithm in self.candidates(shape, &plan)? {
            plan.algorithm = algorithm;
            let Ok(time) = self.time(stream, shape.numbers, &plan, weights, x, y) else { continue };
            if time < best.0 {
                best = (time, Some(algorithm));
            }
        }
        let Some(algorithm) = best.1 else {
            return Err(CudaError::Model(format!("cublasLt has no product {}", shape.name())));
        };
        plan.algorithm = algorithm;
        self.plans.insert(shape, plan);
        self.picks.add(shape.name(), algorithm.data);
        Ok(())
    }

    /// Writes new picks to disk.
    pub fn keep_picks(&mut self) {
        self.picks.keep();
    }

    /// # Safety
    /// The shape has been planned; the addresses are valid for its sizes until the stream has run
    /// this, and no other work writes them meanwhile.
    pub unsafe fn multiply(
        &self,
        stream: &Stream,
        shape: Shape,
        weights: DevicePointer,
        x: DevicePointer,
        y: DevicePointer,
    ) -> Result<(), CudaError> {
        let Some(plan) = self.plans.get(&shape) else {
            let code = format!("{} was not planned", shape.name());
            return Err(CudaError::Driver { what: "multiplying", code });
        };
        // SAFETY: forwarded from the caller.
        unsafe { self.run(stream, shape.numbers, plan, weights, x, y) }
    }

    fn description(&self, numbers: Numbers) -> sys::cublasLtMatmulDesc_t {
        match numbers {
            Numbers::Bf16 | Numbers::Bf16ToF32 => self.description,
            Numbers::E4m3ToBf16 => self.description_8,
        }
    }

    unsafe fn run(
        &self,
        stream: &Stream,
        numbers: Numbers,
        plan: &Plan,
        weights: DevicePointer,
        x: DevicePointer,
        y: DevicePointer,
    ) -> Result<(), CudaError> {
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the descriptors live as long as `self`; the rest is the caller's.
        unsafe {
            result::matmul(
                self.handle,
                self.description(numbers),
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&zero).cast(),
                weights as *const _,
                plan.weights,
                x as *const _,
                plan.x,
                y as *const _,
                plan.y,
                y as *mut _,
                plan.y,
                &plan.algorithm,
                self.workspace.address() as *mut _,
                self.workspace.bytes() as usize,
                stream.raw().cast(),
            )
        }
        .during("multiplying")
    }

    /// cublasLt counts in columns: W is `inputs x outputs` transposed, x `inputs x rows`.
    fn layouts(&self, shape: Shape) -> Result<Plan, CudaError> {
        let layout = |kind, rows: u32, columns: u32| {
            result::create_matrix_layout(kind, rows.into(), columns.into(), rows.into())
                .during("describing a matrix")
        };
        let bf16 = sys::cudaDataType::CUDA_R_16BF;
        let (inputs, result) = match shape.numbers {
            Numbers::Bf16 => (bf16, bf16),
            Numbers::Bf16ToF32 => (bf16, sys::cudaDataType::CUDA_R_32F),
            Numbers::E4m3ToBf16 => (sys::cudaDataType::CUDA_R_8F_E4M3, bf16),
        };
        Ok(Plan {
            weights: layout(inputs, shape.inputs, shape.outputs)?,
            x: layout(inputs, shape.inputs, shape.rows)?,
            y: layout(result, shape.outputs, shape.rows)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        })
    }

    fn candidates(
        &self,
        shape: Shape,
        plan: &Plan,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CudaError> {
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(CANDIDATES);
        let mut count = 0;
        // SAFETY: the descriptors are alive, and `found` has room for as many results.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.description(shape.numbers),
                plan.weights,
                plan.x,
                plan.y,
                plan.y,
                self.preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if status.result().is_err() {
            return Err(CudaError::Model(format!("cublasLt has no product {}", shape.name())));
        }
        // SAFETY: the library has written this many.
        unsafe { found.set_len(count.max(0) as usize) };
        let works = |c: &sys::cublasLtMatmulHeuristicResult_t| c.state.result().is_ok();
        Ok(found.into_iter().filter(works).map(|c| c.algo).collect())
    }

    /// Milliseconds of one product.
    fn time(
        &self,
        stream: &Stream,
        numbers: Numbers,
        plan: &Plan,
        weights: &[DevicePointer],
        x: DevicePointer,
        y: DevicePointer,
    ) -> Result<f32, CudaError> {
        let turn = &weights[..weights.len().min(TIMED_LAYERS)];
        let run = |weights: &[DevicePointer]| {
            for &weights in weights {
                // SAFETY: the caller's memory, which nothing else uses while products are timed.
                unsafe { self.run(stream, numbers, plan, weights, x, y) }?;
            }
            Ok(())
        };
        run(&turn[..1])?;
        let (start, end) = (self.device.event(true)?, self.device.event(true)?);
        let mut best = f32::INFINITY;
        for _ in 0..2 {
            stream.record(&start)?;
            run(turn)?;
            stream.record(&end)?;
            Event::synchronize(&end)?;
            best = best.min(end.milliseconds_since(&start)?);
        }
        Ok(best / turn.len() as f32)
    }
}

/// A product with the transposed weights. `fast`: of e4m3, summed without the extra promotions to f32,
/// as others serve it; what is lost lies far below e4m3's own rounding.
fn describe(fast: bool) -> Result<sys::cublasLtMatmulDesc_t, CudaError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let description = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)
        .during("describing a product")?;
    let transposed = cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_T;
    // SAFETY: the attribute's value is of this type.
    unsafe {
        result::set_matmul_desc_attribute(
            description,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            std::ptr::from_ref(&transposed).cast(),
            size_of_val(&transposed),
        )
    }
    .during("describing a product")?;
    let fast = i8::from(fast);
    // SAFETY: as above.
    unsafe {
        result::set_matmul_desc_attribute(
            description,
            Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM,
            std::ptr::from_ref(&fast).cast(),
            size_of_val(&fast),
        )
    }
    .during("describing a product")?;
    Ok(description)
}

/// Sums split over the inputs are reduced in f32, or not at all: in bf16 they would round twice.
fn preference() -> Result<sys::cublasLtMatmulPreference_t, CudaError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    use sys::cublasLtReductionScheme_t as Scheme;
    let preference = result::create_matmul_pref().during("describing a preference")?;
    let workspace = WORKSPACE as usize;
    let schemes = Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    // SAFETY: the attributes' values are of these types.
    unsafe {
        result::set_matmul_pref_attribute(
            preference,
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&workspace).cast(),
            size_of_val(&workspace),
        )
        .during("describing a preference")?;
        result::set_matmul_pref_attribute(
            preference,
            Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            std::ptr::from_ref(&schemes).cast(),
            size_of_val(&schemes),
        )
        .during("describing a preference")?;
    }
    Ok(preference)
}

impl Drop for Gemm {
    fn drop(&mut self) {
        if self.device.bind().is_err() {
            return;
        }
        // SAFETY: created by `new` and `plan`, destroyed once.
        unsafe {
            for plan in self.plans.values() {
                for layout in [plan.weights, plan.x, plan.y] {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_matmul_pref(self.preference);
            let _ = result::destroy_matmul_desc(self.description);
            let _ = result::destroy_matmul_desc(self.description_8);
            let _ = result::destroy_handle(self.handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_bucket_and_wastes_at_most_half_of_it() {
        for max_rows in [1, 7, 256, 300, 2048] {
            let buckets = row_buckets(max_rows);
            assert!(buckets.is_sorted_by(|a, b| a < b));
            for rows in 1..=max_rows {
                let bucket = buckets.iter().find(|&&b| b >= rows);
                assert!(bucket.is_some_and(|&b| b < 2 * rows), "{rows} of {max_rows}");
            }
        }
    }
}

//! The engine's thread: on which device it computes, its start and its end.

use crate::adapters::ObjectStore;
use crate::adapters::loader::AdapterSource;
use crate::config::{Config, Device};
use crate::engine::{self, EngineConfig, EngineError, EngineHandle};
use lorikeet_compute::backend::cpu;
use lorikeet_compute::backend::cuda::{self, CudaBackend, StartTimes};
use lorikeet_compute::backend::sim::{SimBackend, SimConfig};
use lorikeet_compute::backend::{Backend, BackendError};
use lorikeet_compute::model::ModelWeights;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::task::spawn_blocking;

pub struct RunningEngine {
    pub handle: EngineHandle,
    /// cpu, cuda or sim.
    pub device: &'static str,
    thread: JoinHandle<Result<(), EngineError>>,
}

impl RunningEngine {
    /// Ends every request and the thread.
    pub async fn stop(self) {
        self.handle.shutdown().await;
        // How it ended has been logged there.
        let _ = spawn_blocking(|| self.thread.join()).await;
    }
}

pub fn start(
    config: &Config,
    weights: ModelWeights,
    store: Arc<dyn ObjectStore>,
) -> std::io::Result<RunningEngine> {
    let engine_config = EngineConfig {
        scheduler: config.scheduler,
        residency: config.residency,
        max_requests: config.max_requests,
        base: weights.config.spec.clone(),
        eos_tokens: weights.config.eos_tokens.clone(),
    };
    let source = AdapterSource {
        store,
        directory: config.data.join("adapters"),
        runtime: tokio::runtime::Handle::current(),
    };
    let wanted = choose(config.device.clone());
    let device = match wanted {
        Device::Cuda(_) => "cuda",
        Device::Auto { .. } | Device::Cpu(_) => "cpu",
        Device::Sim(_) => "sim",
    };
    let backend = move || backend(wanted, &weights);
    let (handle, thread) = engine::spawn(engine_config, source, backend)?;
    Ok(RunningEngine { handle, device, thread })
}

/// Looks whether there is a GPU, when that is to decide.
fn choose(device: Device) -> Device {
    let Device::Auto { cpu, cuda } = device else { return device };
    match cuda::probe(cuda.ordinal) {
        Ok(gpu) => {
            tracing::info!(gpu = gpu.name, "a GPU computes");
            Device::Cuda(cuda)
        }
        Err(reason) => {
            tracing::info!(%reason, "the CPU computes: no GPU can be used");
            Device::Cpu(cpu)
        }
    }
}

/// Called on the engine's thread.
fn backend(device: Device, weights: &ModelWeights) -> Result<Box<dyn Backend>, BackendError> {
    match device {
        Device::Cuda(config) => {
            let cuda = CudaBackend::new(weights, config)?;
            let StartTimes { kernels, weights, memory, products } = cuda.start_times();
            tracing::info!(kernels, weights, memory, products, "the GPU is ready: seconds it took");
            Ok(Box::new(cuda))
        }
        Device::Auto { cpu: config, .. } | Device::Cpu(config) => cpu::backend(weights, config),
        Device::Sim(config) => {
            let vocab_size = weights.config.spec.vocab_size;
            Ok(Box::new(SimBackend::new(SimConfig { vocab_size, ..config })))
        }
    }
}

use crate::backend::BackendError;

/// Why the GPU cannot be used, or stopped working.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CudaError {
    #[error("{library} cannot be loaded: {hint}")]
    MissingLibrary { library: &'static str, hint: &'static str },
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, at least {}.{} is needed",
        have / 1000, have % 1000 / 10, need / 1000, need % 1000 / 10
    )]
    DriverTooOld { have: i32, need: i32 },
    #[error("there is no device cuda:{ordinal}, the machine has {count}")]
    NoDevice { ordinal: u32, count: u32 },
    #[error("{name} has compute capability {}.{}, at least 9.0 is needed", arch / 10, arch % 10)]
    Architecture { name: String, arch: u32 },
    #[error("{what}: {code}")]
    Driver { what: &'static str, code: String },
    #[error("kernel {file} does not compile: {log}")]
    Compile { file: &'static str, log: String },
    #[error("out of {what}: {bytes} bytes were asked for")]
    OutOfMemory { what: &'static str, bytes: u64 },
    #[error("the GPU backend does not run this model: {0}")]
    Model(String),
}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::OutOfMemory { what, bytes } => BackendError::OutOfMemory { what, bytes },
            other => BackendError::Device(other.to_string()),
        }
    }
}

/// Adds what was being done to a CUDA library's result.
pub trait Context<T> {
    fn during(self, what: &'static str) -> Result<T, CudaError>;
}

impl<T, E: std::fmt::Display> Context<T> for Result<T, E> {
    fn during(self, what: &'static str) -> Result<T, CudaError> {
        self.map_err(|e| CudaError::Driver { what, code: e.to_string() })
    }
}

//! Compiles kernels for the card at hand. Header-free sources need nothing but NVRTC; what was
//! compiled once is kept on disk.

use super::error::{Context, CudaError};
use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::fs;
use std::path::PathBuf;

/// A file of kernels. `source` includes whatever it needs.
pub struct Source {
    pub file: &'static str,
    pub source: String,
    /// `NAME=VALUE`
    pub defines: Vec<String>,
}

pub struct Compiler {
    /// 90 for compute capability 9.0.
    arch: u32,
    version: (i32, i32),
    /// None: nothing is kept.
    cache: Option<PathBuf>,
}

impl Compiler {
    pub fn new(arch: u32, cache: Option<PathBuf>) -> Result<Self, CudaError> {
        super::probe::find_nvrtc()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        status.result().during("asking NVRTC for its version")?;
        Ok(Self { arch, version: (major, minor), cache })
    }

    /// Cubins in the order of the sources, compiled side by side.
    pub fn compile_all(&self, sources: &[Source]) -> Result<Vec<Vec<u8>>, CudaError> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                sources.iter().map(|source| scope.spawn(|| self.compile(source))).collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, Result<Vec<u8>, CudaError>>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        })
    }

    pub fn compile(&self, source: &Source) -> Result<Vec<u8>, CudaError> {
        let options = self.options(source);
        let kept = self.cache.as_ref().map(|dir| dir.join(self.key(source, &options)));
        if let Some(cubin) = kept.as_ref().and_then(|path| fs::read(path).ok()) {
            return Ok(cubin);
        }
        let cubin = compile(source, &options)?;
        if let Some(path) = kept
            && let Err(error) = keep(&path, &cubin)
        {
            tracing::warn!(path = %path.display(), %error, "a compiled kernel was not kept");
        }
        Ok(cubin)
    }

    fn options(&self, source: &Source) -> Vec<String> {
        // "a": with the instructions that only this generation has.
        let suffix = if self.arch >= 90 { "a" } else { "" };
        let mut options = vec![
            format!("--gpu-architecture=sm_{}{suffix}", self.arch),
            "--std=c++17".into(),
            "--extra-device-vectorization".into(),
        ];
        options.extend(source.defines.iter().map(|d| format!("--define-macro={d}")));
        options
    }

    fn key(&self, source: &Source, options: &[String]) -> String {
        let mut hash = Sha256::new();
        let (major, minor) = self.version;
        hash.update(format!("NVRTC {major}.{minor}\n{}\n", options.join("\n")));
        hash.update(&source.source);
        format!("{}-{}.cubin", source.file, hex::encode(&hash.finalize()[..16]))
    }
}

fn compile(source: &Source, options: &[String]) -> Result<Vec<u8>, CudaError> {
    let failed = |log: String| CudaError::Compile { file: source.file, log };
    let text = CString::new(source.source.as_str()).map_err(|e| failed(e.to_string()))?;
    let name = CString::new(source.file).map_err(|e| failed(e.to_string()))?;
    let program = result::create_program(&text, Some(&name)).during("creating a program")?;
    // SAFETY: the program is alive until it is destroyed below.
    let outcome = unsafe { result::compile_program(program, options) };
    let cubin = match outcome {
        Ok(()) => cubin(program),
        Err(error) => {
            // SAFETY: as above.
            let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
            Err(failed(format!("{error}: {}", String::from_utf8_lossy(&log))))
        }
    };
    // SAFETY: not used afterwards.
    unsafe { result::destroy_program(program) }.during("destroying a program")?;
    cubin
}

fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>, CudaError> {
    let mut bytes = 0;
    // SAFETY: the program has been compiled.
    unsafe { sys::nvrtcGetCUBINSize(program, &mut bytes) }.result().during("reading a cubin")?;
    let mut cubin = vec![0u8; bytes];
    // SAFETY: the buffer has the size that was just asked for.
    unsafe { sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()) }
        .result()
        .during("reading a cubin")?;
    Ok(cubin)
}

/// Whole or not at all: another process may be reading.
fn keep(path: &std::path::Path, cubin: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&draft, cubin)?;
    fs::rename(draft, path)
}

//! Whether this machine has a GPU that the backend can use. CUDA's libraries are loaded when asked
//! for: a machine without them runs the rest of the program.

use super::error::{Context, CudaError};
use cudarc::{cublaslt, driver, nvrtc};
use std::path::PathBuf;

/// CUDA 13.0, as the driver counts.
const LEAST_DRIVER: i32 = 13000;
/// The first with clusters of thread blocks, launches that overlap, and products in e4m3.
const LEAST_ARCH: u32 = 90;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub ordinal: u32,
    pub name: String,
    /// 90 for compute capability 9.0.
    pub arch: u32,
    pub multiprocessors: u32,
    /// Version of CUDA that the driver supports, 13000 for 13.0.
    pub driver: i32,
}

/// Looks for libraries, driver and device, in this order.
pub fn probe(ordinal: u32) -> Result<DeviceInfo, CudaError> {
    // SAFETY: loads the library, whose initialisers are NVIDIA's.
    if !unsafe { driver::sys::is_culib_present() } {
        let hint = "this machine has no NVIDIA driver";
        return Err(CudaError::MissingLibrary { library: "libcuda", hint });
    }
    find_nvrtc()?;
    // SAFETY: as above.
    if !unsafe { cublaslt::sys::is_culib_present() } {
        let hint = "install CUDA 13's cuBLAS, or put its folder into LD_LIBRARY_PATH";
        return Err(CudaError::MissingLibrary { library: "libcublasLt", hint });
    }
    driver::result::init().during("the driver does not start")?;
    let mut have = 0;
    // SAFETY: writes one integer.
    let status = unsafe { driver::sys::cuDriverGetVersion(&mut have) };
    status.result().during("asking the driver for its version")?;
    if have < LEAST_DRIVER {
        return Err(CudaError::DriverTooOld { have, need: LEAST_DRIVER });
    }
    let count = driver::result::device::get_count().during("counting devices")?.max(0) as u32;
    if ordinal >= count {
        return Err(CudaError::NoDevice { ordinal, count });
    }
    let device = driver::result::device::get(ordinal as i32).during("opening the device")?;
    let name = driver::result::device::get_name(device).during("asking for the device's name")?;
    let attribute = |attribute| {
        // SAFETY: the device was just opened.
        let value = unsafe { driver::result::device::get_attribute(device, attribute) };
        value.map(|v| v.max(0) as u32).during("asking for a device attribute")
    };
    use driver::sys::CUdevice_attribute as Attribute;
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let arch = major * 10 + minor;
    if arch < LEAST_ARCH {
        return Err(CudaError::Architecture { name, arch });
    }
    Ok(DeviceInfo { ordinal, name, arch, multiprocessors, driver: have })
}

/// NVRTC from the system, or from the folder into which `scripts/setup --tests` puts it.
pub fn find_nvrtc() -> Result<(), CudaError> {
    preload_nvrtc();
    // SAFETY: loads the library, whose initialisers are NVIDIA's.
    if unsafe { nvrtc::sys::is_culib_present() } {
        return Ok(());
    }
    let hint = "install CUDA 13's NVRTC, put its folder into LD_LIBRARY_PATH, or run scripts/setup --tests";
    Err(CudaError::MissingLibrary { library: "libnvrtc", hint })
}

/// A library that is loaded already is found by its name alone, wherever it lies.
fn preload_nvrtc() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let Some(folder) = cache_folder().map(|c| c.join("nvrtc/nvidia/cu13/lib")) else { return };
        for file in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
            // SAFETY: as in `find_nvrtc`.
            match unsafe { libloading::Library::new(folder.join(file)) } {
                Ok(library) => std::mem::forget(library),
                Err(_) => return,
            }
        }
    });
}

/// Where things are kept that can be made again: `LORIKEET_CACHE`, else the user's.
pub fn cache_folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    var("LORIKEET_CACHE").or_else(|| {
        let user = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")))?;
        Some(user.join("lorikeet"))
    })
}

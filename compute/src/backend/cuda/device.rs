//! A GPU, and what belongs to it: memory, streams, events. Thin owners around the driver's handles.

use super::error::{Context, CudaError};
use super::probe::{DeviceInfo, probe};
use crate::backend::HostBuffer;
use cudarc::driver::{result, sys};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An address in device memory.
pub type DevicePointer = sys::CUdeviceptr;

pub struct Device {
    context: sys::CUcontext,
    pub info: DeviceInfo,
    allocations: AtomicU64,
    waits: AtomicU64,
}

// SAFETY: a context may be used from any thread that has made it current.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Device {}

impl Device {
    /// Opens a device and makes its context current on this thread.
    pub fn open(ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let info = probe(ordinal)?;
        let device = result::device::get(ordinal as i32).during("opening the device")?;
        // SAFETY: the device exists. The context is kept until the process ends.
        let context = unsafe { result::primary_ctx::retain(device) }.during("making a context")?;
        let device =
            Self { context, info, allocations: AtomicU64::new(0), waits: AtomicU64::new(0) };
        device.bind()?;
        Ok(Arc::new(device))
    }

    /// Makes the context current on the calling thread, as every call of the driver needs it.
    pub fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.during("entering the context")
    }

    /// Allocations of device and of pinned memory so far.
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::Relaxed)
    }

    /// How often a thread has waited for a stream or an event so far.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// Free and total bytes of the device's memory.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = result::mem_get_info().during("asking for free memory")?;
        Ok((free as u64, total as u64))
    }

    /// Zeroed device memory.
    pub fn allocate(
        self: &Arc<Self>,
        what: &'static str,
        bytes: u64,
    ) -> Result<DeviceMemory, CudaError> {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        let size = bytes.max(1) as usize;
        // SAFETY: freed by `Drop` alone.
        let address = unsafe { result::malloc_sync(size) }
            .map_err(|_| CudaError::OutOfMemory { what, bytes })?;
        let memory = DeviceMemory { device: self.clone(), address, bytes };
        // SAFETY: the memory is ours and of this size.
        unsafe { result::memset_d8_sync(address, 0, size) }.during("clearing device memory")?;
        // The call returns before the memory is cleared, and our streams do not wait for the default one.
        // SAFETY: the default stream always exists.
        unsafe { result::stream::synchronize(std::ptr::null_mut()) }
            .during("clearing device memory")?;
        Ok(memory)
    }

    /// Page-locked host memory, zeroed. Takes about half a millisecond for each MiB.
    pub fn pinned(self: &Arc<Self>, bytes: usize) -> Result<PinnedMemory, CudaError> {
        self.allocations.fetch_add(1, Ordering::Relaxed);
        // SAFETY: freed by `Drop` alone.
        let address = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(|_| CudaError::OutOfMemory { what: "pinned memory", bytes: bytes as u64 })?;
        let first = address.cast::<u8>();
        // SAFETY: just allocated, of this size.
        unsafe { first.write_bytes(0, bytes) };
        Ok(PinnedMemory { device: self.clone(), first, bytes })
    }

    pub fn stream(self: &Arc<Self>) -> Result<Stream, CudaError> {
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create(kind).during("creating a stream")?;
        Ok(Stream { device: self.clone(), stream })
    }

    pub fn event(self: &Arc<Self>, timing: bool) -> Result<Event, CudaError> {
        let flags = if timing {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let event = result::event::create(flags).during("creating an event")?;
        Ok(Event { device: self.clone(), event })
    }
}

/// Hands out addresses of one allocation, in order. From 0 on it tells how much memory is needed.
pub struct Cursor {
    pub next: DevicePointer,
}

impl Cursor {
    pub fn take(&mut self, bytes: u64) -> DevicePointer {
        let address = self.next;
        self.next += bytes.next_multiple_of(256);
        address
    }
}

pub struct DeviceMemory {
    device: Arc<Device>,
    address: DevicePointer,
    bytes: u64,
}

impl DeviceMemory {
    pub fn address(&self) -> DevicePointer {
        self.address
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // A failure here means that the device is lost, and its memory with it.
        if self.device.bind().is_ok() {
            // SAFETY: allocated by `Device::allocate`, freed once.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked host memory: the device copies from and to it by itself.
pub struct PinnedMemory {
    device: Arc<Device>,
    first: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory; access goes through `&` and `&mut`.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Where kernels find it: host and device share one range of addresses.
    pub fn device_address(&self) -> DevicePointer {
        self.first as DevicePointer
    }

    /// # Safety
    /// The range lies inside, and nobody else reads or writes it while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "parts of a region have owners of their own")]
    pub unsafe fn part_mut(&self, start: usize, bytes: usize) -> &mut [u8] {
        // SAFETY: forwarded from the caller.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), bytes) }
    }

    /// # Safety
    /// The range lies inside, and nobody writes it while the slice lives.
    pub unsafe fn part(&self, start: usize, bytes: usize) -> &[u8] {
        // SAFETY: forwarded from the caller.
        unsafe { std::slice::from_raw_parts(self.first.add(start), bytes) }
    }
}

impl HostBuffer for PinnedMemory {
    fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated with this size and initialised.
        unsafe { std::slice::from_raw_parts(self.first, self.bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated by `Device::pinned`, freed once.
            let _ = unsafe { result::free_host(self.first.cast()) };
        }
    }
}

/// Work in order, on one device.
pub struct Stream {
    device: Arc<Device>,
    stream: sys::CUstream,
}

// SAFETY: streams may be used from any thread whose context is current.
unsafe impl Send for Stream {}

impl Stream {
    pub fn raw(&self) -> sys::CUstream {
        self.stream
    }

    /// Copies to the device.
    ///
    /// # Safety
    /// `to` has room for `from`, no work outside this stream uses it meanwhile, and pinned `from`
    /// stays as it is until the copy is done.
    pub unsafe fn upload<T: bytemuck::NoUninit>(
        &self,
        to: DevicePointer,
        from: &[T],
    ) -> Result<(), CudaError> {
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: forwarded from the caller.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.during("copying to the device")
    }

    /// Copies from the device; `to` is filled when the stream has come this far.
    ///
    /// # Safety
    /// `from` holds as many bytes, and `to` is neither read nor moved before the copy is done.
    pub unsafe fn download<T: bytemuck::AnyBitPattern>(
        &self,
        to: &mut [T],
        from: DevicePointer,
    ) -> Result<(), CudaError> {
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: forwarded from the caller.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }
            .during("copying from the device")
    }

    /// Copies inside the device.
    ///
    /// # Safety
    /// Both ranges are allocated, do not overlap, and are not used by other work meanwhile.
    pub unsafe fn copy(
        &self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: u64,
    ) -> Result<(), CudaError> {
        // SAFETY: forwarded from the caller.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream) }
            .during("copying inside the device")
    }

    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both are alive.
        unsafe { result::event::record(event.event, self.stream) }.during("recording an event")
    }

    /// Later work on this stream waits for the event.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(self.stream, event.event, flags) }
            .during("waiting for an event")
    }

    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.waits.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.stream) }.during("waiting for the device")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created by `Device::stream`, destroyed once; pending work still ends.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

pub struct Event {
    device: Arc<Device>,
    event: sys::CUevent,
}

// SAFETY: events may be used from any thread whose context is current.
unsafe impl Send for Event {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Event {}

impl Event {
    /// Spins: a thread that sleeps wakes 75 us late.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.waits.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }.during("waiting for the device")
    }

    /// Milliseconds from `start`. Both were created with timing, and have been reached.
    pub fn milliseconds_since(&self, start: &Event) -> Result<f32, CudaError> {
        // SAFETY: both events are alive.
        unsafe { result::event::elapsed(start.event, self.event) }.during("reading an event's time")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created by `Device::event`, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

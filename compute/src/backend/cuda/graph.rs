//! Launches recorded once and replayed with one call: 0.9 us each instead of 4.

use super::device::{Device, Stream};
use super::error::{Context, CudaError};
use cudarc::driver::{result, sys};
use std::sync::Arc;

pub struct Graph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
    launches: usize,
}

// SAFETY: a graph may be launched from any thread whose context is current.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `launches` puts on the stream; nothing runs yet.
    pub fn record(
        device: &Arc<Device>,
        stream: &Stream,
        launches: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(stream.raw(), mode) }.during("recording a graph")?;
        let launched = launches();
        // SAFETY: as above.
        let graph =
            unsafe { result::stream::end_capture(stream.raw()) }.during("recording a graph");
        launched?;
        let graph = graph?;
        let mut launches = 0;
        // SAFETY: without room for them, the nodes are only counted.
        unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut launches) }
            .result()
            .during("recording a graph")?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was just recorded.
        let executable =
            unsafe { result::graph::instantiate(graph, flags) }.during("making a graph");
        // SAFETY: the executable does not need it.
        unsafe { result::graph::destroy(graph) }.during("making a graph")?;
        Ok(Self { device: device.clone(), executable: executable?, launches })
    }

    /// Kernels in it.
    pub fn launches(&self) -> usize {
        self.launches
    }

    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both are alive.
        unsafe { result::graph::launch(self.executable, stream.raw()) }.during("launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made by `record`, destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

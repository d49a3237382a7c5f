//! What a backend has done, to be seen from outside.

/// What has happened since a backend's device was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Of device and of pinned memory.
    pub allocations: u64,
    /// Times that a thread waited for the device.
    pub waits: u64,
    /// Graphs recorded, and steps that were replays of one.
    pub recordings: u64,
    pub replays: u64,
}

impl Counters {
    pub fn since(self, before: Self) -> Self {
        Self {
            allocations: self.allocations - before.allocations,
            waits: self.waits - before.waits,
            recordings: self.recordings - before.recordings,
            replays: self.replays - before.replays,
        }
    }
}

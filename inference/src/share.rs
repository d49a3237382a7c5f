//! What a tenant is entitled to on this node.

/// A tenant's share of what tenants compete for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantShare {
    /// Service in proportion to the weights of those who want some. At least 1.
    pub weight: u32,
    /// Most bytes of the tenant's adapters in host memory, and on the device. None: the node's room.
    pub host_bytes: Option<u64>,
    pub device_bytes: Option<u64>,
}

impl Default for TenantShare {
    fn default() -> Self {
        Self { weight: 100, host_bytes: None, device_bytes: None }
    }
}

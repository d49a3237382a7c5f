//! The room that adapters have.

use super::vars::{ConfigError, Vars};
use crate::adapters::ResidencyConfig;
use std::time::Duration;

pub(super) fn residency(vars: Vars<'_>) -> Result<ResidencyConfig, ConfigError> {
    let default = ResidencyConfig::default();
    Ok(ResidencyConfig {
        host_bytes: vars.positive("LORIKEET_ADAPTER_HOST_BYTES")?.unwrap_or(default.host_bytes),
        disk_bytes: vars.positive("LORIKEET_ADAPTER_DISK_BYTES")?.unwrap_or(default.disk_bytes),
        download_deadline: vars
            .positive("LORIKEET_ADAPTER_DOWNLOAD_SECONDS")?
            .map_or(default.download_deadline, Duration::from_secs),
        ..default
    })
}

//! The room that adapters have.

use super::vars::{ConfigError, Vars};
use crate::adapters::ResidencyConfig;
use std::time::Duration;

pub(super) fn residency(vars: Vars<'_>) -> Result<ResidencyConfig, ConfigError> {
    let default = ResidencyConfig::default();
    Ok(ResidencyConfig {
        host_bytes: vars.positive("LORIKEET_ADAPTER_HOST_BYTES")?.unwrap_or(default.host_bytes),
        disk_bytes: vars.positive("LORIKEET_ADAPTER_DISK_BYTES")?.unwrap_or(default.disk_bytes),
        load_deadline: vars
            .positive("LORIKEET_ADAPTER_LOAD_SECONDS")?
            .map_or(default.load_deadline, Duration::from_secs),
        ..default
    })
}

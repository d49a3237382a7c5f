//! Which files make an adapter, decided from names, sizes and first bytes.

use super::error::{AdapterError, quoted};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Largest adapter_config.json, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 256 << 10;
/// Largest adapter_model.safetensors, in bytes: the largest object that S3 copies in one request.
/// Quotas are apart from it and usually lower.
pub const MAX_WEIGHTS_BYTES: u64 = 5 << 30;

const ARCHIVES: [&str; 11] =
    [".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tbz2", ".txz"];
const PICKLES: [&str; 6] = [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"];

/// Checks that the named files, with their sizes in bytes, are the two of an adapter.
pub fn check<'a>(files: impl IntoIterator<Item = (&'a str, u64)>) -> Result<(), AdapterError> {
    let mut config = None;
    let mut weights = None;
    for (name, bytes) in files {
        let slot = match name {
            CONFIG_FILE => &mut config,
            WEIGHTS_FILE => &mut weights,
            _ => return Err(refuse_name(name)),
        };
        if slot.replace(bytes).is_some() {
            return Err(AdapterError::UnexpectedFile(format!("A second {}", quoted(name))));
        }
    }
    let config = config.ok_or(AdapterError::MissingFile(CONFIG_FILE))?;
    let weights = weights.ok_or(AdapterError::MissingFile(WEIGHTS_FILE))?;
    check_size(CONFIG_FILE, config, MAX_CONFIG_BYTES)?;
    check_size(WEIGHTS_FILE, weights, MAX_WEIGHTS_BYTES)?;
    if config == 0 {
        return Err(AdapterError::Config("is empty: upload it again".into()));
    }
    if weights == 0 {
        return Err(AdapterError::Safetensors("is empty: upload it again".into()));
    }
    Ok(())
}

pub(super) fn check_size(file: &'static str, bytes: u64, limit: u64) -> Result<(), AdapterError> {
    if bytes > limit {
        return Err(AdapterError::FileTooLarge { file, bytes, limit });
    }
    Ok(())
}

fn refuse_name(name: &str) -> AdapterError {
    let lower = name.to_ascii_lowercase();
    let ends_in = |endings: &[&str]| endings.iter().any(|e| lower.ends_with(e));
    if ends_in(&ARCHIVES) {
        AdapterError::Archive(quoted(name))
    } else if ends_in(&PICKLES) {
        AdapterError::Pickle(quoted(name))
    } else {
        AdapterError::UnexpectedFile(quoted(name))
    }
}

/// Refuses an archive or a pickle that carries the name of the weights file.
pub(super) fn refuse_disguise(prefix: &[u8]) -> Result<(), AdapterError> {
    // A safetensors header; its length may look like any of the signatures below.
    if prefix.get(8) == Some(&b'{') {
        return Ok(());
    }
    let named = || quoted(WEIGHTS_FILE);
    let magic = |m: &[u8]| prefix.starts_with(m);
    let tar = prefix.get(257..262) == Some(b"ustar");
    // 28 B5 2F FD is zstd, FD 37 7A 58 5A is xz.
    if tar
        || magic(b"PK\x03\x04")
        || magic(b"PK\x05\x06")
        || magic(b"\x1f\x8b")
        || magic(b"BZh")
        || magic(b"\x28\xb5\x2f\xfd")
        || magic(b"\xfd7zXZ")
        || magic(b"7z\xbc\xaf")
        || magic(b"Rar!")
    {
        return Err(AdapterError::Archive(named()));
    }
    // Pickle's protocols 2 to 5.
    if matches!(prefix, [0x80, 2..=5, ..]) {
        return Err(AdapterError::Pickle(named()));
    }
    Ok(())
}

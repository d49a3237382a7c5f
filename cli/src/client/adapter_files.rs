//! An adapter's directory as PEFT saves it.

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";

/// The control plane reads no longer header than this, in bytes; a longer one is refused by it.
const LONGEST_HEADER: u64 = 8 + (1 << 20);

pub struct AdapterFiles {
    pub files: Vec<LocalFile>,
    pub config: Value,
    /// The first bytes of the weights: length and JSON header.
    header: Vec<u8>,
}

pub struct LocalFile {
    pub name: &'static str,
    pub path: PathBuf,
    pub bytes: u64,
}

impl AdapterFiles {
    /// Looks at names and the header only; whether the adapter fits the base is the control
    /// plane's to say.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        if dir.is_file() {
            bail!(
                "{} is a file: an adapter is a directory with {CONFIG} and {WEIGHTS}; unpack an \
                 archive first",
                dir.display()
            );
        }
        if !dir.join(WEIGHTS).is_file() && dir.join(PICKLE).is_file() {
            bail!(
                "{} is a pickle, which can run code and is never read: save the adapter as \
                 {WEIGHTS} (PEFT: save_pretrained(..., safe_serialization=True))",
                dir.join(PICKLE).display()
            );
        }
        let files = [CONFIG, WEIGHTS].map(|name| file(dir, name));
        let files = files.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let config = dir.join(CONFIG);
        let text =
            std::fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
        let config = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not JSON", config.display()))?;
        Ok(Self { files, config, header: header(&dir.join(WEIGHTS))? })
    }

    pub fn header_base64(&self) -> String {
        STANDARD.encode(&self.header)
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

fn file(dir: &Path, name: &'static str) -> anyhow::Result<LocalFile> {
    let path = dir.join(name);
    let meta = path.metadata().with_context(|| {
        format!(
            "{} is missing: an adapter is a directory with {CONFIG} and {WEIGHTS}",
            path.display()
        )
    })?;
    Ok(LocalFile { name, path, bytes: meta.len() })
}

fn header(path: &Path) -> anyhow::Result<Vec<u8>> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes).with_context(context)?;
    let Ok(length) = <[u8; 8]>::try_from(bytes.as_slice()) else { return Ok(bytes) };
    let length = u64::from_le_bytes(length).min(LONGEST_HEADER - 8);
    file.take(length).read_to_end(&mut bytes).with_context(context)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trained_adapter_is_read_with_its_header_alone() {
        let adapter = AdapterFiles::open(&lorikeet_kit::adapter_dir("pirate")).unwrap();
        assert_eq!(adapter.config["peft_type"], "LORA");
        let json = std::str::from_utf8(&adapter.header[8..]).unwrap();
        assert!(json.starts_with('{') && json.trim_end().ends_with('}'));
        assert!((adapter.header.len() as u64) < adapter.bytes() / 10);
    }

    #[test]
    fn what_is_missing_or_not_json_or_a_pickle_is_said_by_name() {
        for (case, part) in [
            ("missing_config", "adapter_config.json is missing"),
            ("missing_weights", "adapter_model.safetensors is missing"),
            ("config_not_json", "adapter_config.json is not JSON"),
            ("pickle_bin", "pickle"),
            ("control_ok.zip", "unpack"),
        ] {
            let error = AdapterFiles::open(&lorikeet_kit::bad_path(case)).err().unwrap();
            assert!(format!("{error:#}").contains(part), "{case}: {error:#}");
        }
    }

    #[test]
    fn a_header_that_claims_to_be_huge_is_not_believed() {
        let bomb = AdapterFiles::open(&lorikeet_kit::bad_path("header_len_bomb")).unwrap();
        assert!(bomb.header.len() as u64 <= LONGEST_HEADER);
    }
}

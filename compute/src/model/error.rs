use std::path::{Path, PathBuf};

/// Why a base model could not be loaded. Names the file, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{} is not a model: name a .gguf file, or a Hugging Face directory with config.json, \
         tokenizer.json and *.safetensors",
        path.display()
    )]
    NotAModel { path: PathBuf },
    #[error("{} is damaged or incomplete: {reason}; download or convert it again", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error("{} needs something that is not served: {feature}", path.display())]
    Unsupported { path: PathBuf, feature: String },
}

impl ModelError {
    pub(super) fn malformed(path: &Path, reason: impl ToString) -> Self {
        Self::Malformed { path: path.into(), reason: reason.to_string() }
    }

    pub(super) fn unsupported(path: &Path, feature: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), feature: feature.into() }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        |source| Self::Io { path: path.into(), source }
    }
}

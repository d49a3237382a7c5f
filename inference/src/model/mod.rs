//! The base model: configuration, weights, tokenizer and chat template.

pub mod weights;

pub use weights::{LayerWeights, Matrix, ModelConfig, ModelWeights};

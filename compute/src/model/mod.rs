//! The base model: configuration, weights, tokenizer and chat template, from a GGUF file or a Hugging
//! Face directory.

mod assemble;
pub mod chat_template;
pub mod detokenizer;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod gguf;
mod hugging_face;
mod load;
mod parallel;
mod progress;
mod python;
pub mod reference;
mod rope;
#[cfg(test)]
mod tests;
pub mod tokenizer;
mod tools;
mod values;
pub mod weights;

pub use assemble::TensorShape;
pub use chat_template::{ChatMessage, ChatTemplate, TemplateError};
pub use detokenizer::Detokenizer;
pub use error::ModelError;
pub use load::{LoadedModel, PromptError, load, load_config, load_weights};
pub use progress::LoadProgress;
pub use rope::{Rope, RopeScaling, RopeTable, Yarn};
pub use tokenizer::{Specials, Tokenizer, TokenizerError};
pub use tools::{FunctionCall, ToolCall, ToolFormat};
pub use values::Values;
pub use weights::{HeadNorms, LayerWeights, Matrix, ModelConfig, ModelWeights, SlidingWindow};

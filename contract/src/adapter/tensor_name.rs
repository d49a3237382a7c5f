//! Names of tensors in a PEFT checkpoint: `base_model.model.` + module path + role.

use super::error::{AdapterError, quoted};
use crate::base_model::{BaseModelSpec, Linear};

const PREFIX: &str = "base_model.model.";

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    A,
    B,
    Magnitude,
}

/// Endings by role. `.default.` is the adapter's name, which old versions left in.
const ROLES: [(&str, Role); 8] = [
    (".lora_A.weight", Role::A),
    (".lora_B.weight", Role::B),
    (".lora_A.default.weight", Role::A),
    (".lora_B.default.weight", Role::B),
    (".lora_magnitude_vector", Role::Magnitude),
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_magnitude_vector.default", Role::Magnitude),
    (".lora_magnitude_vector.default.weight", Role::Magnitude),
];

/// Modules of a decoder that exist but cannot carry an adapter here, by their last part.
const OTHER_MODULES: [&str; 7] = [
    "lm_head",
    "embed_tokens",
    "norm",
    "input_layernorm",
    "post_attention_layernorm",
    "q_norm",
    "k_norm",
];

/// Layer, linear and role of a tensor; refuses every name that the base model has no place for.
pub(super) fn parse(name: &str, base: &BaseModelSpec) -> Result<(u32, Linear, Role), AdapterError> {
    let unknown = |reason| AdapterError::UnknownTensor { tensor: quoted(name), reason };
    let path = name
        .strip_prefix(PREFIX)
        .ok_or_else(|| unknown("names start with base_model.model. in PEFT's format"))?;
    let role = ROLES.into_iter().find_map(|(end, role)| Some((path.strip_suffix(end)?, role)));
    let Some((module, role)) = role else {
        return Err(unknown(if path.ends_with(".bias") {
            "biases are not served: train with bias=\"none\" and lora_bias=False"
        } else if path.contains(".lora_embedding_") {
            "embeddings cannot carry an adapter here: train without embed_tokens"
        } else {
            "only lora_A, lora_B and lora_magnitude_vector are; whole modules (modules_to_save) are not"
        }));
    };
    let last = module.rsplit('.').next().unwrap_or_default();
    if is_unsupported(last) {
        return Err(AdapterError::UnsupportedModule(quoted(last)));
    }
    let place = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let place = place.and_then(|(layer, path)| {
        let layer: u64 = layer.parse().ok().filter(|n: &u64| n.to_string() == layer)?;
        Some((layer, Linear::from_path(path)?))
    });
    let (layer, linear) =
        place.ok_or_else(|| unknown("the base model has no such linear layer"))?;
    match u32::try_from(layer) {
        Ok(layer) if layer < base.num_layers => Ok((layer, linear, role)),
        _ => Err(AdapterError::LayerOutOfRange {
            what: format!("tensor {}", quoted(name)),
            layer,
            num_layers: base.num_layers,
        }),
    }
}

/// True for a module that the base has and that cannot carry an adapter.
pub(super) fn is_unsupported(last_part: &str) -> bool {
    OTHER_MODULES.contains(&last_part)
}

/// `model.layers.0.self_attn.q_proj`
pub(super) fn module_path(layer: u32, linear: Linear) -> String {
    format!("model.layers.{layer}.{}", linear.path())
}

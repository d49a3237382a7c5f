//! Does an adapter fit the base model? Decided from configuration and header, without the data.

use super::config::AdapterConfig;
use super::error::{AdapterError, quoted};
use super::safetensors::{Header, TensorInfo};
use super::target::is_named;
use super::tensor_name::{self, Role, module_path};
use crate::base_model::{BaseModelSpec, Linear};
use crate::digest::WeightsDigest;
use std::collections::BTreeMap;

/// One targeted linear layer, its arithmetic resolved, and where its tensors lie in the upload.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedModule {
    pub layer: u32,
    pub linear: Linear,
    pub rank: u32,
    pub in_features: u32,
    pub out_features: u32,
    /// `y += scale * B (A x)`
    pub scale: f32,
    /// `rank x in_features`
    pub a: TensorInfo,
    /// `out_features x rank`
    pub b: TensorInfo,
    /// DoRA: `out_features`.
    pub magnitude: Option<TensorInfo>,
}

/// An adapter that fits its base model, whole: modules in layer order, inside a layer in the order
/// of [`Linear::ALL`]. Only the values have not been looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterPlan {
    pub base_weights_digest: WeightsDigest,
    pub modules: Vec<PlannedModule>,
}

#[derive(Default)]
struct Found<'a> {
    a: Option<&'a TensorInfo>,
    b: Option<&'a TensorInfo>,
    magnitude: Option<&'a TensorInfo>,
}

impl AdapterPlan {
    pub fn new(
        config: &AdapterConfig,
        header: &Header,
        base: &BaseModelSpec,
    ) -> Result<Self, AdapterError> {
        check_targets(config, base)?;
        let mut found: BTreeMap<(u32, Linear), Found<'_>> = BTreeMap::new();
        for tensor in header.tensors() {
            let (layer, linear, role) = tensor_name::parse(&tensor.name, base)?;
            let unknown =
                |reason| AdapterError::UnknownTensor { tensor: quoted(&tensor.name), reason };
            if !config.targets(&module_path(layer, linear)) {
                return Err(unknown("adapter_config.json does not target its module"));
            }
            if role == Role::Magnitude && !config.use_dora() {
                return Err(unknown("adapter_config.json does not set use_dora"));
            }
            let module = found.entry((layer, linear)).or_default();
            let place = match role {
                Role::A => &mut module.a,
                Role::B => &mut module.b,
                Role::Magnitude => &mut module.magnitude,
            };
            if place.replace(tensor).is_some() {
                return Err(unknown("another tensor is the same one under its older name"));
            }
        }

        let mut modules = Vec::with_capacity(found.len());
        for layer in 0..base.num_layers {
            for linear in Linear::ALL {
                let path = module_path(layer, linear);
                if config.targets(&path) {
                    let found = found.remove(&(layer, linear)).unwrap_or_default();
                    modules.push(plan_module(config, base, layer, linear, &path, found)?);
                }
            }
        }
        Ok(Self { base_weights_digest: base.weights_digest, modules })
    }

    pub fn max_rank(&self) -> u32 {
        self.modules.iter().map(|m| m.rank).max().unwrap_or(0)
    }

    /// Distinct targets, in the order of [`Linear::ALL`].
    pub fn targets(&self) -> Vec<Linear> {
        Linear::ALL.into_iter().filter(|l| self.modules.iter().any(|m| m.linear == *l)).collect()
    }
}

/// Every name in the configuration stands for something in the base that can carry an adapter.
fn check_targets(config: &AdapterConfig, base: &BaseModelSpec) -> Result<(), AdapterError> {
    if let Some(layer) = config.layers().iter().find(|l| **l >= base.num_layers) {
        return Err(AdapterError::LayerOutOfRange {
            what: "layers_to_transform in adapter_config.json".into(),
            layer: (*layer).into(),
            num_layers: base.num_layers,
        });
    }
    let linears = || {
        (0..base.num_layers).flat_map(|l| Linear::ALL.into_iter().map(move |linear| (l, linear)))
    };
    for name in config.target_names() {
        let last = name.rsplit('.').next().unwrap_or_default();
        if tensor_name::is_unsupported(last) {
            return Err(AdapterError::UnsupportedModule(quoted(name)));
        }
        if !linears().any(|(layer, linear)| is_named(&module_path(layer, linear), name)) {
            return Err(AdapterError::UnknownTarget(quoted(name)));
        }
    }
    // PEFT leaves the output layer out of all-linear, but not out of a pattern.
    if config.has_target_pattern() {
        for path in ["lm_head", "model.embed_tokens", "model.norm"] {
            if config.targets(path) {
                return Err(AdapterError::UnsupportedModule(quoted(path)));
            }
        }
    }
    if !linears().any(|(layer, linear)| config.targets(&module_path(layer, linear))) {
        return Err(AdapterError::UnknownTarget("nothing".into()));
    }
    Ok(())
}

fn plan_module(
    config: &AdapterConfig,
    base: &BaseModelSpec,
    layer: u32,
    linear: Linear,
    path: &str,
    found: Found<'_>,
) -> Result<PlannedModule, AdapterError> {
    let missing =
        |missing, reason| AdapterError::MissingTensor { module: quoted(path), missing, reason };
    let targeted = "adapter_config.json targets it, so the file is incomplete";
    let a = found.a.ok_or_else(|| missing("lora_A", targeted))?;
    let b = found.b.ok_or_else(|| missing("lora_B", targeted))?;
    if config.use_dora() && found.magnitude.is_none() {
        return Err(missing(
            "lora_magnitude_vector",
            "adapter_config.json sets use_dora, so the file is incomplete",
        ));
    }

    let (out_features, in_features) = base.shape(linear);
    let (out_features, in_features) = (out_features as u64, in_features as u64);
    let shape = |tensor: &TensorInfo, expected: String| AdapterError::Shape {
        tensor: quoted(&tensor.name),
        actual: format!("{:?}", tensor.shape),
        expected,
    };
    let rank = match a.shape[..] {
        [rank, columns] if columns == in_features => rank,
        _ => return Err(shape(a, format!("[rank, {in_features}]"))),
    };
    let rank_of_b = match b.shape[..] {
        [rows, rank] if rows == out_features => rank,
        _ => return Err(shape(b, format!("[{out_features}, rank]"))),
    };
    let rank_error = |tensor: &TensorInfo, actual, source_of_rank, expected| AdapterError::Rank {
        tensor: quoted(&tensor.name),
        actual,
        source_of_rank,
        expected,
    };
    if rank_of_b != rank {
        return Err(rank_error(b, rank_of_b, "lora_A of the same module", rank));
    }
    let expected = config.rank(path);
    if rank != u64::from(expected) {
        return Err(rank_error(a, rank, "adapter_config.json", expected.into()));
    }
    if let Some(magnitude) = found.magnitude.filter(|m| m.shape != [out_features]) {
        return Err(shape(magnitude, format!("[{out_features}]")));
    }
    Ok(PlannedModule {
        layer,
        linear,
        rank: expected,
        in_features: in_features as u32,
        out_features: out_features as u32,
        scale: config.scale(path),
        a: a.clone(),
        b: b.clone(),
        magnitude: found.magnitude.cloned(),
    })
}

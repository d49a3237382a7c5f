//! What single families have beside the plain decoder, as random models of a size that the kernels take:
//! against the slow f32 reference, which Transformers' logits hold for each family.

use super::lab::{Random, to_f32};
use super::model::{TOLERANCE, check_base, random_model};
use super::{CheckError, Outcome};
use crate::backend::cuda::CudaConfig;
use crate::model::{HeadNorms, ModelWeights, Rope, RopeScaling, SlidingWindow, Yarn};
use half::bf16;
use lorikeet_contract::{BaseModelSpec, Linear};

/// A context that the prompts are longer than, so that stretched waves show.
const ORIGINAL_CONTEXT: u32 = 16;

/// What makes a plain model one of the family.
type Part = fn(&mut ModelWeights);

const FAMILIES: [(&str, Part); 6] = [
    ("Llama 3's stretched waves", llama3),
    ("positions closer together", closer),
    ("Mistral's window in every layer", window_everywhere),
    ("Qwen2's biases, tied output layer", biases),
    ("Qwen2's windows in some layers, YaRN", windows_and_yarn),
    ("Qwen3's normalised heads, YaRN", head_norms_and_yarn),
];

pub fn check(
    config: &CudaConfig,
    spec: &BaseModelSpec,
    report: &mut dyn FnMut(Outcome),
) -> Result<(), CheckError> {
    let plain = random_model(spec.clone());
    for (name, part) in FAMILIES {
        let mut weights = plain.clone();
        part(&mut weights);
        check_base(config, &weights, name, TOLERANCE, report)?;
    }
    Ok(())
}

/// How far each family's logits are from those of the plain model: what the check would see if the
/// device left the family's part out.
#[cfg(test)]
pub fn distances_from_plain(spec: &BaseModelSpec) -> Result<Vec<(&'static str, f64)>, CheckError> {
    use super::forced::Reference;
    use super::lab::relative_error;
    let plain = random_model(spec.clone());
    let expected = Reference::new(&plain)?.logits(0, None)?;
    let distance = |(name, part): (&'static str, Part)| {
        let mut weights = plain.clone();
        part(&mut weights);
        let logits = Reference::new(&weights)?.logits(0, None)?;
        Ok((name, relative_error(&expected, &logits)))
    };
    FAMILIES.into_iter().map(distance).collect()
}

fn llama3(weights: &mut ModelWeights) {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: ORIGINAL_CONTEXT,
    };
    weights.config.rope = Rope { theta: 500_000.0, scaling };
}

fn closer(weights: &mut ModelWeights) {
    weights.config.rope.scaling = RopeScaling::Linear { factor: 4.0 };
}

fn yarn(weights: &mut ModelWeights) {
    weights.config.rope.scaling = RopeScaling::Yarn(Yarn {
        factor: 4.0,
        original_context: ORIGINAL_CONTEXT,
        beta_fast: Yarn::BETA_FAST,
        beta_slow: Yarn::BETA_SLOW,
        truncate: true,
        attention_factor: Yarn::attention_factor(4.0, 1.0),
    });
}

fn window(weights: &mut ModelWeights, has: fn(u32) -> bool) {
    let layers = (0..weights.config.spec.num_layers).map(has).collect();
    weights.config.sliding_window = Some(SlidingWindow { positions: 19, layers });
}

fn window_everywhere(weights: &mut ModelWeights) {
    window(weights, |_| true);
}

fn windows_and_yarn(weights: &mut ModelWeights) {
    window(weights, |layer| layer % 2 == 0);
    yarn(weights);
}

fn biases(weights: &mut ModelWeights) {
    let linears = [Linear::QProj, Linear::KProj, Linear::VProj];
    for (index, layer) in (0..).zip(&mut weights.layers) {
        for linear in linears {
            let seed = 30_000 + index * 10 + linear.index() as u64;
            let bias = Random::new(seed).bf16s(weights.config.spec.shape(linear).0, 1.0);
            layer.biases[linear.index()] = Some(to_f32(&bias));
        }
    }
    weights.config.biased = linears.to_vec();
    weights.config.tie_word_embeddings = true;
    weights.lm_head = None;
}

fn head_norms_and_yarn(weights: &mut ModelWeights) {
    let head_dim = weights.config.spec.head_dim as usize;
    let around_one = |seed: u64| {
        let values = Random::new(seed).bf16s(head_dim, 0.5).into_iter();
        values.map(|v| bf16::from_f32(1.0 + v.to_f32()).to_f32()).collect()
    };
    for (index, layer) in (0..).zip(&mut weights.layers) {
        let norms =
            HeadNorms { query: around_one(40_000 + index), key: around_one(50_000 + index) };
        layer.head_norms = Some(norms);
    }
    weights.config.head_norms = true;
    yarn(weights);
}

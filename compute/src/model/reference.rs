//! The slow, obvious forward pass that fast ones are tested against: f32 throughout, one sequence,
//! every position computed anew, adapters by PEFT's formulas. Not for serving.

use super::{Matrix, ModelConfig, ModelWeights};
use candle_core::{D, Device, IndexOp, Result, Tensor};
use lorikeet_contract::Linear;
use lorikeet_contract::adapter::{ArtifactHeader, TensorRef};
use std::collections::HashMap;

pub struct ReferenceModel {
    config: ModelConfig,
    /// `vocabulary x hidden`
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `vocabulary x hidden`
    lm_head: Tensor,
}

struct Layer {
    /// `out x in`, in the order of [`Linear::ALL`].
    linears: Vec<Tensor>,
    biases: Vec<Option<Tensor>>,
    input_norm: Tensor,
    post_attention_norm: Tensor,
    /// Of queries and of keys.
    head_norms: Option<(Tensor, Tensor)>,
}

/// An adapter's modules; public, so that a test can plant mistakes.
#[derive(Clone)]
pub struct ReferenceAdapter {
    pub modules: HashMap<(u32, Linear), ReferenceModule>,
}

/// `y = W x + scale * B (A x)`. With a magnitude (DoRA): `y = V x`, where row i of `W + scale * B A` is
/// scaled to the norm `magnitude[i]`. The base model's bias comes on top, as it is.
#[derive(Clone)]
pub struct ReferenceModule {
    /// `rank x in`
    pub a: Tensor,
    /// `out x rank`
    pub b: Tensor,
    pub scale: f64,
    /// `out`
    pub magnitude: Option<Tensor>,
}

impl ReferenceAdapter {
    /// `file` is the whole packed file that `header` was parsed from.
    pub fn from_artifact(header: &ArtifactHeader, file: &[u8]) -> Result<Self> {
        let mut modules = HashMap::new();
        for m in &header.modules {
            let (rank, input, output) =
                (m.rank as usize, m.in_features as usize, m.out_features as usize);
            let module = ReferenceModule {
                a: Tensor::from_vec(floats(file, &m.a)?, (rank, input), &Device::Cpu)?,
                b: Tensor::from_vec(floats(file, &m.b)?, (output, rank), &Device::Cpu)?,
                scale: m.scale.into(),
                magnitude: match &m.magnitude {
                    Some(t) => Some(Tensor::from_vec(floats(file, t)?, output, &Device::Cpu)?),
                    None => None,
                },
            };
            modules.insert((m.layer, m.linear), module);
        }
        Ok(Self { modules })
    }
}

fn floats(file: &[u8], tensor: &TensorRef) -> Result<Vec<f32>> {
    let Some(bytes) = tensor.bytes_in(file) else {
        candle_core::bail!("a tensor lies outside the file");
    };
    Ok(tensor.dtype.to_f32(bytes))
}

impl ReferenceModule {
    /// `x`: `tokens x in`, `w`: `out x in`.
    fn forward(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let Some(magnitude) = &self.magnitude else {
            let update = linear(&linear(x, &self.a)?, &self.b)?;
            return linear(x, w)? + (update * self.scale)?;
        };
        let v = (w + (self.b.matmul(&self.a)? * self.scale)?)?;
        let norms = v.sqr()?.sum(D::Minus1)?.sqrt()?;
        let factors = (magnitude / norms)?.unsqueeze(1)?;
        linear(x, &v.broadcast_mul(&factors)?)
    }
}

impl ReferenceModel {
    pub fn new(weights: &ModelWeights) -> Result<Self> {
        let vector = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let embedding = matrix(&weights.embedding)?;
        let lm_head = weights.lm_head.as_ref().map_or_else(|| Ok(embedding.clone()), matrix)?;
        let layer = |layer: &super::LayerWeights| {
            Ok(Layer {
                linears: layer.linears.iter().map(matrix).collect::<Result<_>>()?,
                biases: layer
                    .biases
                    .iter()
                    .map(|bias| bias.as_deref().map(vector).transpose())
                    .collect::<Result<_>>()?,
                input_norm: vector(&layer.input_norm)?,
                post_attention_norm: vector(&layer.post_attention_norm)?,
                head_norms: match &layer.head_norms {
                    Some(norms) => Some((vector(&norms.query)?, vector(&norms.key)?)),
                    None => None,
                },
            })
        };
        Ok(Self {
            config: weights.config.clone(),
            embedding,
            layers: weights.layers.iter().map(layer).collect::<Result<_>>()?,
            norm: vector(&weights.norm)?,
            lm_head,
        })
    }

    /// Logits at every position, `tokens x vocabulary`. The adapter of `None` is the base model.
    pub fn forward(
        &self,
        tokens: &[u32],
        adapter: Option<&ReferenceAdapter>,
    ) -> Result<Vec<Vec<f32>>> {
        let eps = self.config.rms_norm_eps;
        let (cos, sin) = self.rope(tokens.len())?;
        let everything = mask(tokens.len(), None)?;
        let windowed = match &self.config.sliding_window {
            Some(window) => mask(tokens.len(), Some(window.positions as usize))?,
            None => everything.clone(),
        };
        let mut x = self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for (index, layer) in (0..).zip(&self.layers) {
            let apply = |linear_: Linear, x: &Tensor| {
                let w = &layer.linears[linear_.index()];
                let y = match adapter.and_then(|a| a.modules.get(&(index, linear_))) {
                    Some(module) => module.forward(x, w),
                    None => linear(x, w),
                }?;
                match &layer.biases[linear_.index()] {
                    Some(bias) => y.broadcast_add(bias),
                    None => Ok(y),
                }
            };
            let h = rms_norm(&x, &layer.input_norm, eps)?;
            let mut q = self.heads(apply(Linear::QProj, &h)?)?;
            let mut k = self.heads(apply(Linear::KProj, &h)?)?;
            let v = self.heads(apply(Linear::VProj, &h)?)?;
            if let Some((query, key)) = &layer.head_norms {
                (q, k) = (rms_norm(&q, query, eps)?, rms_norm(&k, key, eps)?);
            }
            let (q, k) = (rotate(&q, &cos, &sin)?, rotate(&k, &cos, &sin)?);
            let is_windowed = self.config.window(index as usize).is_some();
            let mask = if is_windowed { &windowed } else { &everything };
            let attended = self.attention(&q, &k, &v, mask)?;
            x = (x + apply(Linear::OProj, &attended)?)?;

            let h = rms_norm(&x, &layer.post_attention_norm, eps)?;
            let gate = apply(Linear::GateProj, &h)?.silu()?;
            let gated = (gate * apply(Linear::UpProj, &h)?)?;
            x = (x + apply(Linear::DownProj, &gated)?)?;
        }
        linear(&rms_norm(&x, &self.norm, eps)?, &self.lm_head)?.to_vec2()
    }

    /// `tokens x (heads * head_dim)` to `heads x tokens x head_dim`.
    fn heads(&self, x: Tensor) -> Result<Tensor> {
        let head_dim = self.config.spec.head_dim as usize;
        let (tokens, width) = x.dims2()?;
        x.reshape((tokens, width / head_dim, head_dim))?.transpose(0, 1)?.contiguous()
    }

    /// Query head h reads key/value head `h / group`. Returns `tokens x (heads * head_dim)`.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let spec = &self.config.spec;
        let group = (spec.num_heads / spec.num_kv_heads) as usize;
        let scale = 1.0 / f64::from(spec.head_dim).sqrt();
        let mut heads = Vec::new();
        for head in 0..spec.num_heads as usize {
            let (q, k, v) = (q.i(head)?, k.i(head / group)?, v.i(head / group)?);
            let scores = (linear(&q, &k)? * scale)?.add(mask)?;
            heads.push(softmax(&scores)?.matmul(&v)?);
        }
        Tensor::cat(&heads, D::Minus1)
    }

    /// Cosines and sines, each `tokens x head_dim / 2`.
    fn rope(&self, tokens: usize) -> Result<(Tensor, Tensor)> {
        let head_dim = self.config.spec.head_dim as usize;
        let table = self.config.rope.table(head_dim, tokens);
        let tensor = |values| Tensor::from_vec(values, (tokens, head_dim / 2), &Device::Cpu);
        Ok((tensor(table.cosines)?, tensor(table.sines)?))
    }
}

fn matrix(matrix: &Matrix) -> Result<Tensor> {
    let data = matrix.data.iter().map(|v| v.to_f32()).collect();
    Tensor::from_vec(data, (matrix.rows, matrix.cols), &Device::Cpu)
}

/// `x W^T`
fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(&w.t()?)
}

fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean_square = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?;
    x.broadcast_div(&mean_square.sqrt()?)?.broadcast_mul(weight)
}

/// Rotate-half: dimension i turns with dimension `i + head_dim / 2`. `x`: `heads x tokens x head_dim`.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turned_low = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let turned_high = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}

/// 0 where a position (row) may look, minus infinity at later ones and before its window.
fn mask(tokens: usize, window: Option<usize>) -> Result<Tensor> {
    let cell = |i: usize| {
        let (query, key) = (i / tokens, i % tokens);
        let seen = key <= query && window.is_none_or(|window| query - key < window);
        if seen { 0.0 } else { f32::NEG_INFINITY }
    };
    Tensor::from_vec((0..tokens * tokens).map(cell).collect(), (tokens, tokens), &Device::Cpu)
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}

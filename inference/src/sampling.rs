//! Drawing a token from logits. Pure: the same logits, parameters, seed and index give the same
//! token, whatever else runs.

/// How tokens are drawn. Defaults are OpenAI's.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0: greedy, ties to the lowest id.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probabilities sum to at least this.
    pub top_p: f32,
    /// Keep at most this many; 0: all.
    pub top_k: u32,
    /// Keep tokens of at least this share of the likeliest one's probability.
    pub min_p: f32,
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 }
    }
}

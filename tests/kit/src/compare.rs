//! How far computed logits are from the reference.

use crate::{Case, PositionLogits};

/// The kit's limit for fp32 arithmetic, on logits and on natural-log probabilities.
pub const FP32_TOLERANCE: f64 = 0.002;

impl PositionLogits {
    /// Largest distance over the 50 highest logits, the log of the sum of exponentials and the mean;
    /// infinite if `row`, one logit for each token of the vocabulary, holds a value that is not finite.
    pub fn distance(&self, row: &[f32]) -> f64 {
        if row.iter().any(|v| !v.is_finite()) {
            return f64::INFINITY;
        }
        let top = self.top_errors(row).map(f64::abs).fold(0.0, f64::max);
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / row.len() as f64;
        top.max((log_sum_exp(row) - self.logsumexp).abs()).max((mean - self.mean).abs())
    }

    /// Root mean square of the distances over the 50 highest logits.
    pub fn root_mean_square(&self, row: &[f32]) -> f64 {
        (self.top_errors(row).map(|e| e * e).sum::<f64>() / self.ids.len() as f64).sqrt()
    }

    fn top_errors<'a>(&'a self, row: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
        self.ids.iter().zip(&self.logits).map(|(id, logit)| f64::from(row[*id as usize]) - logit)
    }
}

impl Case {
    /// Prompt and expected answer but for its last token: fed in one pass, the logits from position
    /// `prompt_ids.len() - 1` on predict the answer.
    pub fn teacher_forced(&self) -> Vec<u32> {
        [&self.prompt_ids, &self.tokens[..self.tokens.len() - 1]].concat()
    }

    /// Largest distance of a log probability over the five likeliest tokens of each position; `rows`
    /// are the logits that predict the answer. Infinite if a value is not finite.
    pub fn logprob_distance(&self, rows: &[Vec<f32>]) -> f64 {
        assert_eq!(rows.len(), self.top5.len(), "{}", self.id);
        if rows.iter().flatten().any(|v| !v.is_finite()) {
            return f64::INFINITY;
        }
        let position = |(row, top): (&Vec<f32>, &Vec<(u32, f64)>)| {
            let total = log_sum_exp(row);
            let error =
                |(id, logprob): &(u32, f64)| (f64::from(row[*id as usize]) - total - logprob).abs();
            top.iter().map(error).fold(0.0, f64::max)
        };
        rows.iter().zip(&self.top5).map(position).fold(0.0, f64::max)
    }
}

/// The likeliest token.
pub fn argmax(row: &[f32]) -> u32 {
    let best = (0u32..).zip(row).max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.expect("a vocabulary").0
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row.iter().map(|v| (f64::from(*v) - max).exp()).sum::<f64>().ln()
}

//! Rotary position embedding (Su et al., 2021): the frequencies that each scaling gives, and the
//! tables that every forward pass reads.

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub theta: f32,
    pub scaling: RopeScaling,
}

/// How a model's context was made longer than the one it was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All positions closer together (Chen et al., 2023).
    Linear {
        factor: f32,
    },
    /// Llama 3.1's: long waves are stretched, short ones are not, those between a little.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_context: u32,
    },
    Yarn(Yarn),
    /// What each frequency is divided by, `head_dim / 2`: GGUF's form of Llama 3.1's scaling.
    Divisors(Vec<f32>),
}

/// YaRN (Peng et al., 2023, section 3): waves that turn often in the original context stay, those
/// that turn rarely are stretched, with a ramp between.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    pub factor: f32,
    pub original_context: u32,
    /// Turns in the original context from which a wave stays.
    pub beta_fast: f32,
    /// Turns below which it is stretched whole.
    pub beta_slow: f32,
    /// The ramp begins and ends at whole dimensions.
    pub truncate: bool,
    /// Multiplies queries and keys.
    pub attention_factor: f32,
}

/// Cosines and sines of every position, `head_dim / 2` of each, in f32 as Transformers has them. An
/// attention factor is in them.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    half: usize,
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
}

impl Yarn {
    pub const BETA_FAST: f32 = 32.0;
    pub const BETA_SLOW: f32 = 1.0;

    /// The paper's factor on queries and keys (section 3.4), where a configuration gives no other.
    /// `weight` is DeepSeek's `mscale`, 1 elsewhere.
    pub fn attention_factor(factor: f32, weight: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
    }

    /// How much of each plain frequency is kept, 0 to 1.
    fn kept(&self, theta: f32, dim: usize) -> impl Fn(usize) -> f32 {
        let dimension = |turns: f32| {
            let wave =
                f64::from(self.original_context) / (f64::from(turns) * std::f64::consts::TAU);
            dim as f64 * wave.ln() / (2.0 * f64::from(theta).ln())
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0) as f32, high.min((dim - 1) as f64) as f32);
        if low == high {
            // As Transformers does, against a division by zero.
            high += 0.001;
        }
        move |i| 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

impl Rope {
    /// Without a scaling.
    pub fn plain(theta: f32) -> Self {
        Self { theta, scaling: RopeScaling::None }
    }

    /// The context that a model serves, of the one that its configuration names: YaRN's is often left
    /// at the original.
    pub(super) fn context(&self, configured: u32) -> u32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => {
                configured.max((yarn.original_context as f32 * yarn.factor) as u32)
            }
            _ => configured,
        }
    }

    /// What the arithmetic relies on; an error says what is wrong.
    pub(super) fn check(&self, head_dim: u32) -> Result<(), String> {
        let positive = |what: &str, value: f32| {
            let sound = value.is_finite() && value > 0.0;
            if sound { Ok(()) } else { Err(format!("rope's {what} is {value}")) }
        };
        positive("theta", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive(
                    "high_freq_factor less its low_freq_factor",
                    high_freq_factor - low_freq_factor,
                )?;
                positive("original context", *original_context as f32)
            }
            RopeScaling::Yarn(yarn) => {
                positive("factor", yarn.factor)?;
                positive("beta_fast", yarn.beta_fast)?;
                positive("beta_slow", yarn.beta_slow)?;
                positive("attention_factor", yarn.attention_factor)?;
                positive("original context", yarn.original_context as f32)
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != head_dim as usize / 2 {
                    let count = divisors.len();
                    return Err(format!("{count} rope factors for heads of {head_dim}"));
                }
                divisors.iter().try_for_each(|divisor| positive("factor", *divisor))
            }
        }
    }

    /// How far each pair of a head turns per position, `head_dim / 2`, in radians.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain =
            (0..head_dim / 2).map(|i| 1.0 / self.theta.powf((2 * i) as f32 / head_dim as f32));
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let scaled = |frequency: f32| {
                    let turns = original_context as f32 * frequency / std::f32::consts::TAU;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                plain.map(scaled).collect()
            }
            RopeScaling::Yarn(yarn) => {
                let kept = yarn.kept(self.theta, head_dim);
                let scaled = |(i, f): (usize, f32)| f / yarn.factor * (1.0 - kept(i)) + f * kept(i);
                plain.enumerate().map(scaled).collect()
            }
            RopeScaling::Divisors(divisors) => plain.zip(divisors).map(|(f, d)| f / d).collect(),
        }
    }

    /// For positions below `context`.
    pub fn table(&self, head_dim: usize, context: usize) -> RopeTable {
        let frequencies = self.frequencies(head_dim);
        let factor = match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            _ => 1.0,
        };
        let (cosines, sines) = (0..context)
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
            .map(|angle| (angle.cos() * factor, angle.sin() * factor))
            .unzip();
        RopeTable { half: head_dim / 2, cosines, sines }
    }
}

impl RopeTable {
    /// `(cosines, sines)` at a position below the table's context.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cosines[range.clone()], &self.sines[range])
    }
}

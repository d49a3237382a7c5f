//! What can be tested without a GPU: that the kernels compile, and the host's side of a step. The
//! rest is `lorikeet kernels check`.

mod adapters;
mod compile;
mod plan;

use crate::backend::cuda::check::{TOLERANCE, distances_from_plain, smollm2};
use crate::backend::cuda::probe::probe;
use crate::backend::cuda::weights::check_config;
use crate::model::{ModelConfig, Rope, RopeScaling, SlidingWindow};
use lorikeet_contract::{BaseModelSpec, Linear};

#[test]
fn a_device_that_is_not_there_is_refused_with_what_to_do() {
    let message = probe(99).expect_err("nobody has a hundred GPUs").to_string();
    let known = ["no NVIDIA driver", "LD_LIBRARY_PATH", "cuda:99", "at least"];
    assert!(known.iter().any(|part| message.contains(part)), "{message}");
}

/// Else the check on the device could not see that a family's part is missing.
#[test]
fn the_models_of_every_checked_family_are_far_from_plain_ones() {
    let spec = BaseModelSpec { vocab_size: 500, ..smollm2(3) };
    for (name, distance) in distances_from_plain(&spec).expect("the reference computes them") {
        assert!(distance > 10.0 * TOLERANCE, "{name}: {distance}");
    }
}

#[test]
fn a_part_of_a_model_that_the_kernels_lack_is_refused_with_what_to_do() {
    let plain = ModelConfig::plain(smollm2(2));
    let biased = ModelConfig { biased: vec![Linear::DownProj], ..plain.clone() };
    let message = check_config(&biased).expect_err("it is not computed").to_string();
    assert!(message.contains("biases") && message.contains("--device cpu"), "{message}");
    let family = ModelConfig {
        biased: vec![Linear::QProj, Linear::KProj, Linear::VProj],
        head_norms: true,
        sliding_window: Some(SlidingWindow { positions: 16, layers: vec![true; 2] }),
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.0 } },
        ..plain
    };
    assert!(check_config(&family).is_ok());
}

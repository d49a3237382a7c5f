//! What can be tested without a GPU: that the kernels compile, and the host's side of a step. The
//! rest is `lorikeet kernels check`.

mod adapters;
mod compile;
mod plan;

use crate::backend::cuda::probe::probe;

#[test]
fn a_device_that_is_not_there_is_refused_with_what_to_do() {
    let message = probe(99).expect_err("nobody has a hundred GPUs").to_string();
    let known = ["no NVIDIA driver", "LD_LIBRARY_PATH", "cuda:99", "at least"];
    assert!(known.iter().any(|part| message.contains(part)), "{message}");
}

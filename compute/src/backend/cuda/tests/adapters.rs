use crate::backend::cuda::adapters::{Piece, pieces};
use crate::backend::cuda::check::{AdapterShape, llama_8b, random_adapter, smollm2};
use crate::backend::cuda::layout::ExtentLayout;
use lorikeet_contract::Linear;
use lorikeet_contract::adapter::Dtype;

fn layout(rank: u32, dora: bool, dtype: Dtype) -> (ExtentLayout, u64) {
    let spec = smollm2(30);
    let shape = AdapterShape { rank, linears: Linear::ALL.to_vec(), dora, dtype };
    let adapter = random_adapter(&spec, &shape, 1);
    let parameters = adapter.header.parameters();
    (ExtentLayout::new(&adapter.header, &spec).expect("fits"), parameters)
}

#[test]
fn an_extent_takes_the_bytes_of_its_own_rank() {
    for rank in [1, 4, 13, 16, 64, 128] {
        let (layout, parameters) = layout(rank, false, Dtype::F32);
        let table = size_of_val(layout.table.as_slice()) as u64;
        let padding = layout.bytes - parameters * 2 - table;
        assert!(padding < 64 * 7 * 2 * 30, "rank {rank}: {padding} bytes of padding");
    }
}

#[test]
fn a_bf16_adapter_is_copied_in_one_piece_and_others_tensor_by_tensor() {
    let (whole, _) = layout(16, false, Dtype::BF16);
    assert!(matches!(pieces(&whole)[..], [Piece::Copy { .. }]));
    let (converted, _) = layout(16, false, Dtype::F16);
    assert_eq!(pieces(&converted).len(), 30 * 7 * 2);
}

#[test]
fn dora_reserves_a_gain_for_each_output() {
    let (layout, _) = layout(8, true, Dtype::BF16);
    assert_eq!(layout.gains.len(), 30 * 7);
    let mut ends: Vec<(u64, u64)> = layout
        .gains
        .iter()
        .map(|g| {
            (g.module.gain, g.module.gain + u64::from(smollm2(30).shape(g.linear).0 as u32) * 4)
        })
        .chain(layout.tensors.iter().map(|t| (t.offset, t.offset + t.tensor.bytes)))
        .collect();
    ends.sort_unstable();
    assert!(ends.windows(2).all(|w| w[0].1 <= w[1].0), "tensors and gains overlap");
    assert!(ends.last().is_some_and(|last| last.1 <= layout.bytes));
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let shape =
        AdapterShape { rank: 4, linears: vec![Linear::QProj], dora: false, dtype: Dtype::BF16 };
    let adapter = random_adapter(&smollm2(2), &shape, 1);
    let error = ExtentLayout::new(&adapter.header, &llama_8b(2)).expect_err("other shapes");
    assert!(error.to_string().contains("q_proj"), "{error}");
}

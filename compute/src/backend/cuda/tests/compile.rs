use crate::backend::cuda::Precision;
use crate::backend::cuda::kernels::{
    Heads, PLAN_PARTS, PRELUDE, PlanParts, RowAdapters, Target, sources,
};
use crate::backend::cuda::layout::{
    AdapterGroup, AdapterLayer, AdapterModule, AttentionItem, BLOCK_TOKENS, DecodeItem, Draw, Edit,
    Row, StepCounts, TILE_ROWS, TOP_LOGPROBS, Tile,
};
use crate::backend::cuda::nvrtc::{Compiler, Source};

/// Hopper's; compiling needs no GPU.
fn compiler() -> Compiler {
    Compiler::new(90, None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_kernel_compiles_for_hopper_and_every_target() {
    let all = [64, 128].map(|head_dim| {
        let (bf16, fp8) = (Precision::Bf16, Precision::Fp8);
        [(bf16, bf16), (fp8, bf16), (bf16, fp8)].map(|(precision, kv_precision)| Target {
            head_dim,
            precision,
            kv_precision,
        })
    });
    for target in all.into_iter().flatten() {
        let sources = sources(target, None);
        let cubins = compiler().compile_all(&sources).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(cubins.len(), sources.len());
        assert!(cubins.iter().all(|cubin| cubin.starts_with(b"\x7fELF")));
    }
}

#[test]
fn host_and_kernels_agree_on_what_lies_in_device_memory() {
    let file = |name: &str| {
        let (precision, kv_precision) = (Precision::Bf16, Precision::Bf16);
        let all = sources(Target { head_dim: 64, precision, kv_precision }, None);
        all.into_iter().find(|s| s.file == name).map(|s| s.source).expect("such a file")
    };
    let check = |source: String, asserts: &[(&str, usize)]| {
        let asserts: String = asserts
            .iter()
            .map(|(what, value)| format!("static_assert({what} == {value}, \"{what}\");\n"))
            .collect();
        let source = source + &asserts;
        let defines = ["HEAD_DIM=64", "WEIGHT_BITS=16", "KV_BITS=16"].map(String::from).into();
        let compiled = compiler().compile(&Source { file: "sizes.cu", source, defines });
        compiled.unwrap_or_else(|error| panic!("{error}"));
    };
    check(
        PRELUDE.1.into(),
        &[
            ("sizeof(Row)", size_of::<Row>()),
            ("sizeof(Tile)", size_of::<Tile>()),
            ("sizeof(Step)", size_of::<StepCounts>()),
            ("sizeof(AdapterGroup)", size_of::<AdapterGroup>()),
            ("sizeof(AdapterModule)", size_of::<AdapterModule>()),
            ("sizeof(AdapterLayer)", size_of::<AdapterLayer>()),
            ("TILE_ROWS", TILE_ROWS as usize),
            ("BLOCK_TOKENS", BLOCK_TOKENS as usize),
        ],
    );
    check(file("rope_kv.cu"), &[("sizeof(Heads)", size_of::<Heads>())]);
    check(file("few_rows.cu"), &[("sizeof(RowAdapters)", size_of::<RowAdapters>())]);
    check(
        file("copy_plan.cu"),
        &[("sizeof(PlanParts)", size_of::<PlanParts>()), ("PLAN_PARTS", PLAN_PARTS)],
    );
    check(file("attention.cu"), &[("sizeof(AttentionItem)", size_of::<AttentionItem>())]);
    check(file("attention_decode.cu"), &[("sizeof(DecodeItem)", size_of::<DecodeItem>())]);
    check(
        file("sample.cu"),
        &[
            ("sizeof(Draw)", size_of::<Draw>()),
            ("sizeof(Edit)", size_of::<Edit>()),
            ("TOP_LOGPROBS", TOP_LOGPROBS as usize),
        ],
    );
}

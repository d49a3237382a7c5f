//! Every family on this backend against Transformers: prompts in chunks, single tokens, base and
//! adapter beside each other in the same steps.

use super::batches::{Work, run_mixed};
use super::harness::Driver;
use crate::backend::AdapterKey;
use crate::backend::cpu::element::Element;
use crate::backend::cpu::kernel::Isa;
use crate::backend::cpu::{CpuBackend, CpuConfig};
use crate::backend::{HostAdapter, HostData};
use crate::model::fixture::families::{FAMILIES, Family, family};
use half::bf16;
use lorikeet_contract::TenantId;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The largest distance, where logits are of the size of 2 to 6.
const F32_TOLERANCE: f32 = 1e-3;
/// The root mean square distance, as a part of that of the logits: activations, keys and values are
/// rounded to bf16 on the way.
const BF16_TOLERANCE: f64 = 0.03;

fn adapter(family: &Family) -> Option<HostAdapter> {
    let (header, file) = family.adapter.as_ref()?;
    let key = AdapterKey {
        tenant: TenantId::from_uuid(uuid::Uuid::nil()),
        digest: header.adapter_digest,
    };
    Some(HostAdapter { key, header: header.clone(), data: HostData::File(Box::new(file.clone())) })
}

/// The largest distance of all logits of base and adapter, and the relative root mean square.
fn distance<T: Element>(family: &Family, isa: Isa, seed: u64) -> (f32, f64) {
    let config = CpuConfig { kv_tokens: 2048, threads: 2, ..CpuConfig::default() };
    let backend = CpuBackend::<T>::with_isa(&family.weights, config, isa).unwrap();
    let mut driver = Driver::new(backend);
    let slot = adapter(family).map(|adapter| driver.upload(0, adapter));
    let mut work = Vec::new();
    let mut expected = Vec::new();
    for case in &family.cases {
        work.push(Work { tokens: case.tokens.clone(), adapter: None });
        expected.push((&case.positions, &case.base));
        if slot.is_some() {
            work.push(Work { tokens: case.tokens.clone(), adapter: slot });
            expected.push((&case.positions, &case.adapted));
        }
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let logits = run_mixed(&mut driver, &mut rng, &work);
    let (mut worst, mut squares, mut whole) = (0.0, 0.0, 0.0);
    for (logits, (positions, rows)) in logits.iter().zip(expected) {
        for (position, row) in positions.iter().zip(rows) {
            for (got, want) in logits[*position].iter().zip(row) {
                let off = (got - want).abs();
                worst = if off > worst { off } else { worst };
                squares += f64::from(off) * f64::from(off);
                whole += f64::from(*want) * f64::from(*want);
            }
        }
    }
    (worst, (squares / whole).sqrt())
}

#[test]
fn every_family_and_its_adapter_give_the_logits_of_transformers_in_mixed_batches() {
    for (seed, name) in (0..).zip(FAMILIES) {
        let family = family(name);
        for isa in Isa::available() {
            let (worst, _) = distance::<f32>(&family, isa, seed);
            assert!(worst < F32_TOLERANCE, "{name} {isa:?} f32: {worst}");
            let (_, relative) = distance::<bf16>(&family, isa, seed);
            assert!(relative < BF16_TOLERANCE, "{name} {isa:?} bf16: {relative}");
        }
    }
}

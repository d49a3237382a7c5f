//! The kernels against the obvious sum, over shapes, rows and ranks.

use super::{Isa, Write};
use crate::backend::cpu::element::Element;
use crate::backend::cpu::pack::{Packed, Rows};
use crate::backend::cpu::shared::Columns;
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct Case<T> {
    outputs: usize,
    inputs: usize,
    rows: usize,
    x: Vec<T>,
    packed: Packed<T>,
}

impl<T: Element> Case<T> {
    fn random(rng: &mut StdRng, outputs: usize, inputs: usize, rows: usize) -> Self {
        let mut packed = Packed::zeros(outputs, inputs);
        for output in 0..outputs {
            packed.set_output(output, (0..inputs).map(|_| rng.random_range(-1.0..1.0)));
        }
        let x = (0..rows * inputs).map(|_| T::from_f32(rng.random_range(-1.0..1.0))).collect();
        Self { outputs, inputs, rows, x, packed }
    }

    fn run(&self, isa: Isa, write: Write, out: &mut [f32]) {
        let x = Rows { data: &self.x, stride: self.inputs, count: self.rows };
        let mut columns = Columns::of(out, self.outputs);
        self.packed.multiply(isa, x, 0..self.packed.panels(), &mut columns, write);
    }

    fn oracle(&self) -> Vec<f64> {
        let mut out = Vec::new();
        for row in self.x.chunks(self.inputs) {
            for output in 0..self.outputs {
                let products = row.iter().zip(self.packed.output(output));
                out.push(products.map(|(x, w)| f64::from(x.to_f32()) * f64::from(w)).sum());
            }
        }
        out
    }

    fn check(&self, isa: Isa) {
        let exact = self.oracle();
        let mut out = vec![f32::NAN; exact.len()];
        self.run(isa, Write::Store, &mut out);
        let tolerance = 1e-5 * self.inputs as f64;
        for (got, want) in out.iter().zip(&exact) {
            assert!((f64::from(*got) - want).abs() < tolerance, "{isa:?}: {got} is not {want}");
        }
        self.run(isa, Write::Add(0.5), &mut out);
        for (got, want) in out.iter().zip(&exact) {
            assert!((f64::from(*got) - 1.5 * want).abs() < 2.0 * tolerance, "{isa:?}: added");
        }
    }
}

#[test]
fn products_are_the_obvious_sums_for_every_instruction_set() {
    let mut rng = StdRng::seed_from_u64(1);
    for isa in Isa::available() {
        for outputs in [1, 4, 15, 16, 17, 31, 32, 33, 64, 100] {
            for inputs in [2, 6, 32, 66] {
                for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 23, 70] {
                    Case::<bf16>::random(&mut rng, outputs, inputs, rows).check(isa);
                    Case::<f32>::random(&mut rng, outputs, inputs, rows).check(isa);
                }
            }
        }
    }
}

#[test]
fn a_rows_result_is_the_same_bit_for_bit_beside_any_number_of_rows() {
    let mut rng = StdRng::seed_from_u64(2);
    for isa in Isa::available() {
        let all = Case::<bf16>::random(&mut rng, 50, 96, 70);
        let mut together = vec![0.0; 70 * 50];
        all.run(isa, Write::Store, &mut together);
        for (row, expected) in together.chunks(50).enumerate() {
            let alone = Rows { data: &all.x[row * 96..], stride: 96, count: 1 };
            let mut out = vec![0.0; 50];
            let mut columns = Columns::of(&mut out, 50);
            all.packed.multiply(isa, alone, 0..2, &mut columns, Write::Store);
            assert_eq!(out, expected, "{isa:?} row {row}");
        }
    }
}

#[test]
fn panels_multiplied_apart_fill_their_own_columns_only() {
    let case = Case::<bf16>::random(&mut StdRng::seed_from_u64(3), 80, 64, 5);
    let mut whole = vec![0.0; 5 * 80];
    case.run(Isa::detect(), Write::Store, &mut whole);
    let mut parts = vec![0.0; 5 * 80];
    let x = Rows { data: &case.x, stride: 64, count: 5 };
    for panel in 0..3 {
        let start = case.packed.panel_outputs(panel).start;
        let mut columns = Columns::of(&mut parts, 80);
        let mut part = columns.part(0..5, start);
        case.packed.multiply(Isa::detect(), x, panel..panel + 1, &mut part, Write::Store);
    }
    assert_eq!(whole, parts);
}

//! Linears that read the same input: one product for each group.

use lorikeet_contract::{BaseModelSpec, Linear};
use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Qkv,
    Output,
    GateUp,
    Down,
}

impl Group {
    pub const ALL: [Group; 4] = [Group::Qkv, Group::Output, Group::GateUp, Group::Down];

    pub fn linears(self) -> &'static [Linear] {
        match self {
            Group::Qkv => &[Linear::QProj, Linear::KProj, Linear::VProj],
            Group::Output => &[Linear::OProj],
            Group::GateUp => &[Linear::GateProj, Linear::UpProj],
            Group::Down => &[Linear::DownProj],
        }
    }

    pub fn of(linear: Linear) -> Self {
        match linear {
            Linear::QProj | Linear::KProj | Linear::VProj => Group::Qkv,
            Linear::OProj => Group::Output,
            Linear::GateProj | Linear::UpProj => Group::GateUp,
            Linear::DownProj => Group::Down,
        }
    }

    /// `(outputs, inputs)` of the group's product.
    pub fn shape(self, spec: &BaseModelSpec) -> (u32, u32) {
        let shapes = self.linears().iter().map(|&linear| spec.shape(linear));
        let (outputs, inputs) =
            shapes.fold((0, 0), |(outputs, _), (out, inputs)| (outputs + out, inputs));
        (outputs as u32, inputs as u32)
    }

    /// Where a linear's outputs begin among its group's.
    pub fn first_output(self, spec: &BaseModelSpec, linear: Linear) -> u32 {
        let before = self.linears().iter().take_while(|&&l| l != linear);
        before.map(|&l| spec.shape(l).0 as u32).sum()
    }

    /// Where a linear's outputs stand among its group's.
    pub fn columns(spec: &BaseModelSpec, linear: Linear) -> Range<usize> {
        let start = Group::of(linear).first_output(spec, linear) as usize;
        start..start + spec.shape(linear).0
    }
}

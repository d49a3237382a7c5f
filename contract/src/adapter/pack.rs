//! Writes layout 1 of [`artifact`](super::artifact) from a plan and the uploaded file.

use super::artifact::{
    ArtifactHeader, DATA_ALIGN, LAYOUT_VERSION, ModuleEntry, TENSOR_ALIGN, TensorRef,
};
use super::check::{AdapterPlan, PlannedModule};
use super::safetensors::TensorInfo;
use crate::base_model::Linear;
use crate::digest::{AdapterDigest, ArtifactDigest, ContentHasher};
use std::io::{self, Read, Seek, SeekFrom, Write};

/// What [`pack`] wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedArtifact {
    pub header: ArtifactHeader,
    /// Of the whole file.
    pub bytes: u64,
    pub digest: ArtifactDigest,
}

/// Projections that read the same input: their A tensors lie together.
const SAME_INPUT: [&[Linear]; 4] = [
    &[Linear::QProj, Linear::KProj, Linear::VProj],
    &[Linear::OProj],
    &[Linear::GateProj, Linear::UpProj],
    &[Linear::DownProj],
];

/// Copies the planned tensors from the safetensors file `source` into `out`, byte for byte.
/// Fails only where reading or writing does.
pub fn pack(
    plan: &AdapterPlan,
    digest: AdapterDigest,
    source: &mut (impl Read + Seek),
    out: &mut impl Write,
) -> io::Result<PackedArtifact> {
    let order = storage_order(&plan.modules);
    let (header, start) = lay_out(plan, digest, &order);
    let mut writer = Hashed { out, hasher: ContentHasher::new(), at: 0 };
    writer.write_all(&start)?;
    for (_, _, tensor) in order {
        writer
            .write_all(&vec![0; (writer.at.next_multiple_of(TENSOR_ALIGN) - writer.at) as usize])?;
        source.seek(SeekFrom::Start(tensor.offset))?;
        let copied = io::copy(&mut source.by_ref().take(tensor.bytes), &mut writer)?;
        if copied != tensor.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    writer.flush()?;
    let (bytes, digest) = (writer.at, writer.hasher.finish().into());
    Ok(PackedArtifact { header, bytes, digest })
}

#[derive(Clone, Copy)]
enum Part {
    A,
    B,
    Magnitude,
}

/// Index of a module, which of its tensors, and where that lies in the upload.
type Stored<'a> = (usize, Part, &'a TensorInfo);

fn storage_order(modules: &[PlannedModule]) -> Vec<Stored<'_>> {
    let mut order = Vec::with_capacity(modules.len() * 3);
    let mut rest = modules.iter().enumerate().peekable();
    while let Some((_, first)) = rest.peek() {
        let together = SAME_INPUT.into_iter().find(|g| g.contains(&first.linear)).unwrap_or(&[]);
        let layer = first.layer;
        let mut group = Vec::with_capacity(together.len());
        while let Some(m) = rest.next_if(|(_, m)| m.layer == layer && together.contains(&m.linear))
        {
            group.push(m);
        }
        order.extend(group.iter().map(|(i, m)| (*i, Part::A, &m.a)));
        order.extend(group.iter().map(|(i, m)| (*i, Part::B, &m.b)));
        let magnitudes = group.iter().filter_map(|(i, m)| Some((*i, m.magnitude.as_ref()?)));
        order.extend(magnitudes.map(|(i, t)| (i, Part::Magnitude, t)));
    }
    order
}

/// The header and its encoding. Offsets count from the start of the file and so depend on the
/// header's own length, which grows with them: repeated until it stands still.
fn lay_out(
    plan: &AdapterPlan,
    digest: AdapterDigest,
    order: &[Stored<'_>],
) -> (ArtifactHeader, Vec<u8>) {
    let mut start = DATA_ALIGN;
    loop {
        let header = header_at(start, plan, digest, order);
        let encoded = header.encode();
        if encoded.len() as u64 == start {
            return (header, encoded);
        }
        start = encoded.len() as u64;
    }
}

fn header_at(
    start: u64,
    plan: &AdapterPlan,
    adapter_digest: AdapterDigest,
    order: &[Stored<'_>],
) -> ArtifactHeader {
    let nowhere = |t: &TensorInfo| TensorRef { dtype: t.dtype, offset: 0, bytes: t.bytes };
    let entry = |m: &PlannedModule| ModuleEntry {
        layer: m.layer,
        linear: m.linear,
        rank: m.rank,
        in_features: m.in_features,
        out_features: m.out_features,
        scale: m.scale,
        a: nowhere(&m.a),
        b: nowhere(&m.b),
        magnitude: m.magnitude.as_ref().map(nowhere),
    };
    let mut modules: Vec<ModuleEntry> = plan.modules.iter().map(entry).collect();
    let mut at = start;
    for (index, part, tensor) in order {
        let module = &mut modules[*index];
        let place = match part {
            Part::A => Some(&mut module.a),
            Part::B => Some(&mut module.b),
            Part::Magnitude => module.magnitude.as_mut(),
        };
        at = at.next_multiple_of(TENSOR_ALIGN);
        if let Some(place) = place {
            place.offset = at;
        }
        at += tensor.bytes;
    }
    ArtifactHeader {
        layout_version: LAYOUT_VERSION,
        adapter_digest,
        base_weights_digest: plan.base_weights_digest,
        modules,
    }
}

struct Hashed<'a, W> {
    out: &'a mut W,
    hasher: ContentHasher,
    at: u64,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

//! A tensor's values: where a file has them as they are served, they stay in the file.

use half::bf16;
use memmap2::Mmap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// bf16 values, in memory of their own or in a mapped file. What is read of a mapped file lies in the
/// page cache, so that a model takes no memory of the process's own while it is brought to a device.
#[derive(Clone)]
pub struct Values(Place);

#[derive(Clone)]
enum Place {
    Memory(Vec<bf16>),
    /// Bytes from `start` on, aligned for bf16.
    File {
        file: Arc<Mmap>,
        start: usize,
        bytes: usize,
    },
}

impl Values {
    /// `bytes`: a part of the file, little-endian bf16. None where they are not aligned, or this
    /// machine has another order of bytes.
    pub(super) fn mapped(file: &Arc<Mmap>, bytes: &[u8]) -> Option<Self> {
        if cfg!(target_endian = "big") || bytemuck::try_cast_slice::<u8, bf16>(bytes).is_err() {
            return None;
        }
        let start = (bytes.as_ptr() as usize).checked_sub(file.as_ptr() as usize)?;
        let inside = start.checked_add(bytes.len()).is_some_and(|end| end <= file.len());
        let place = Place::File { file: file.clone(), start, bytes: bytes.len() };
        inside.then_some(Self(place))
    }

    /// Reads what lies in a file ahead, all at once: page by page, as it is first touched, takes longer.
    pub(super) fn read_ahead(&self) {
        #[cfg(target_os = "linux")]
        if let Place::File { file, start, bytes } = &self.0 {
            // A hint: a kernel that does not know it reads the pages when they are touched.
            let _ = file.advise_range(memmap2::Advice::PopulateRead, *start, *bytes);
        }
    }
}

impl Deref for Values {
    type Target = [bf16];

    fn deref(&self) -> &[bf16] {
        match &self.0 {
            Place::Memory(values) => values,
            Place::File { file, start, bytes } => {
                bytemuck::cast_slice(&file[*start..*start + *bytes])
            }
        }
    }
}

impl From<Vec<bf16>> for Values {
    fn from(values: Vec<bf16>) -> Self {
        Self(Place::Memory(values))
    }
}

impl FromIterator<bf16> for Values {
    fn from_iter<I: IntoIterator<Item = bf16>>(values: I) -> Self {
        Vec::from_iter(values).into()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.0 {
            Place::Memory(_) => "in memory",
            Place::File { .. } => "in a file",
        };
        write!(f, "{} values {place}", self.len())
    }
}

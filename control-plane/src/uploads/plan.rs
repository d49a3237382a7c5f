//! How a file is cut into parts.

use serde::{Deserialize, Serialize};

/// Bytes of every part but the last. S3 wants at least 5 MiB and at most 10,000 parts.
pub(super) const PART_BYTES: u64 = 8 << 20;

/// A file of an upload, as the table keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    pub name: String,
    pub bytes: u64,
    pub object_key: String,
    pub s3_upload_id: String,
    pub part_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// From 1.
    pub number: i32,
    pub offset: u64,
    pub bytes: u64,
}

impl PlannedFile {
    /// In order, without gaps. `bytes` is above zero, so there is at least one.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        let (total, size) = (self.bytes, self.part_bytes.max(1));
        (1..=i32::MAX)
            .zip((0..total).step_by(usize::try_from(size).unwrap_or(usize::MAX)))
            .map(move |(number, offset)| Part { number, offset, bytes: size.min(total - offset) })
    }

    pub(super) fn part(&self, number: i32) -> Option<Part> {
        let index = u64::try_from(number).ok()?.checked_sub(1)?;
        let offset = index.checked_mul(self.part_bytes).filter(|at| *at < self.bytes)?;
        Some(Part { number, offset, bytes: self.part_bytes.min(self.bytes - offset) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_parts_are_the_file(bytes in 1u64..10_000, part_bytes in 1u64..3_000) {
            let file = PlannedFile {
                name: "a".into(), bytes, object_key: "k".into(), s3_upload_id: "u".into(), part_bytes,
            };
            let mut end = 0;
            for (number, part) in (1..).zip(file.parts()) {
                prop_assert_eq!((part.number, part.offset), (number, end));
                prop_assert_eq!(file.part(number), Some(part));
                prop_assert!(part.bytes > 0 && part.bytes <= part_bytes);
                end += part.bytes;
            }
            prop_assert_eq!(end, bytes);
            prop_assert_eq!(file.part(file.parts().count() as i32 + 1), None);
            prop_assert_eq!(file.part(0), None);
            prop_assert_eq!(file.part(-1), None);
        }
    }
}

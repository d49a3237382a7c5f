//! One record as it stands in a segment:
//!
//! ```text
//! payload length u32 | crc32 u32 | seq u64 | prev_hash 32 | payload        (little endian)
//! ```
//! The checksum covers all but itself. `prev_hash` is the chain value before the record.

pub const HEADER_BYTES: usize = 4 + 4 + 8 + 32;

/// A payload is a usage record of some 300 bytes; a longer length is damage.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub seq: u64,
    pub prev_hash: [u8; 32],
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }
}

pub fn append(out: &mut Vec<u8>, frame: Frame<'_>) {
    debug_assert!(frame.payload.len() <= MAX_PAYLOAD_BYTES);
    let len = (frame.payload.len() as u32).to_le_bytes();
    let seq = frame.seq.to_le_bytes();
    out.extend_from_slice(&len);
    out.extend_from_slice(&checksum(&len, &seq, &frame.prev_hash, frame.payload).to_le_bytes());
    out.extend_from_slice(&seq);
    out.extend_from_slice(&frame.prev_hash);
    out.extend_from_slice(frame.payload);
}

/// The frame at the start of `bytes`; None when there is none, whole and undamaged.
pub fn read(bytes: &[u8]) -> Option<Frame<'_>> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (prev_hash, rest) = rest.split_first_chunk::<32>()?;
    let payload_len = payload_len(len)?;
    let payload = rest.get(..payload_len)?;
    if checksum(len, seq, prev_hash, payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some(Frame { seq: u64::from_le_bytes(*seq), prev_hash: *prev_hash, payload })
}

/// True when `rest`, which does not start with a frame, is what a crash leaves of the last write: one
/// frame cut short or never filled, or zeros, and nothing whole after it.
pub fn is_torn_tail(rest: &[u8]) -> bool {
    if rest.iter().all(|byte| *byte == 0) {
        return true;
    }
    let claimed_end = match rest.first_chunk::<4>() {
        None => usize::MAX,
        Some(len) => payload_len(len).map_or(0, |payload| HEADER_BYTES + payload),
    };
    claimed_end >= rest.len() && (1..rest.len()).all(|offset| read(&rest[offset..]).is_none())
}

fn payload_len(len: &[u8; 4]) -> Option<usize> {
    let len = u32::from_le_bytes(*len) as usize;
    (len <= MAX_PAYLOAD_BYTES).then_some(len)
}

fn checksum(len: &[u8; 4], seq: &[u8; 8], prev_hash: &[u8; 32], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [&len[..], seq, prev_hash, payload] {
        hasher.update(part);
    }
    hasher.finalize()
}

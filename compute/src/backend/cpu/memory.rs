//! Memory that starts at a cache line, so that no vector load crosses one.

use bytemuck::Pod;
use memmap2::{Advice, MmapMut};
use std::marker::PhantomData;

/// A cache line, in bytes.
const LINE: usize = 64;
/// From here on memory is mapped by itself: in huge pages where the system has them, since weights
/// are streamed in every step, and untouched until used.
const MAP_FROM: usize = 1 << 20;

/// A fixed number of elements, all zero at first.
pub struct Memory<T> {
    backing: Backing,
    len: usize,
    element: PhantomData<T>,
}

enum Backing {
    Heap { bytes: Vec<u8>, start: usize },
    Map(MmapMut),
}

impl<T: Pod> Memory<T> {
    pub fn zeroed(len: usize) -> Self {
        let size = len * size_of::<T>();
        let backing = if size < MAP_FROM { heap(size) } else { map(size) };
        Self { backing, len, element: PhantomData }
    }

    pub fn as_slice(&self) -> &[T] {
        let size = self.len * size_of::<T>();
        match &self.backing {
            Backing::Heap { bytes, start } => bytemuck::cast_slice(&bytes[*start..][..size]),
            Backing::Map(map) => bytemuck::cast_slice(&map[..size]),
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let size = self.len * size_of::<T>();
        match &mut self.backing {
            Backing::Heap { bytes, start } => {
                bytemuck::cast_slice_mut(&mut bytes[*start..][..size])
            }
            Backing::Map(map) => bytemuck::cast_slice_mut(&mut map[..size]),
        }
    }
}

fn heap(size: usize) -> Backing {
    let bytes = vec![0; size + LINE];
    let start = bytes.as_ptr().align_offset(LINE);
    Backing::Heap { bytes, start }
}

fn map(size: usize) -> Backing {
    let Ok(map) = MmapMut::map_anon(size) else {
        // The allocator then reports the shortage as it does for any allocation.
        return heap(size);
    };
    // Advice only: without huge pages everything works, more slowly.
    let _ = map.advise(Advice::HugePage);
    Backing::Map(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_and_starts_at_a_line_whatever_its_size() {
        for len in [0, 1, 1000, MAP_FROM] {
            let mut memory = Memory::<f32>::zeroed(len);
            assert!(memory.as_slice().iter().all(|&v| v == 0.0));
            assert_eq!(memory.as_mut_slice().len(), len);
            assert!(memory.as_slice().as_ptr().addr().is_multiple_of(LINE));
        }
    }
}

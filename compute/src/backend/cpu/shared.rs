//! Buffers that the threads of one step write in disjoint parts between two barriers.

use super::memory::Memory;
use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::Range;

/// A buffer whose parts different threads may write at the same time. The borrow checker cannot
/// follow who writes what between two barriers; the unsafe accessors say what must hold instead.
pub struct Shared<T> {
    first: *mut T,
    len: usize,
    /// Owns what `first` points to; not touched again.
    _memory: Memory<T>,
}

// SAFETY: plain data; access through a shared reference is unsafe, and its callers keep parts
// disjoint.
unsafe impl<T: Pod + Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for Shared<T> {}

impl<T: Pod> Shared<T> {
    pub fn zeroed(len: usize) -> Self {
        let mut memory = Memory::zeroed(len);
        Self { first: memory.as_mut_slice().as_mut_ptr(), len, _memory: memory }
    }

    /// # Safety
    /// Until the borrow ends, no thread writes into the range.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range was checked; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.first.add(range.start), range.len()) }
    }

    /// # Safety
    /// Until the borrow ends, no other reference into the range is used.
    #[expect(clippy::mut_from_ref, reason = "that is what the type is for")]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range was checked; the caller keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// No other thread reads or writes this element meanwhile.
    pub unsafe fn set(&self, index: usize, value: T) {
        assert!(index < self.len);
        // SAFETY: the index was checked; the caller keeps others away.
        unsafe { self.first.add(index).write(value) };
    }
}

impl Shared<f32> {
    /// A view of some columns of a matrix with rows `stride` apart.
    ///
    /// # Safety
    /// Until the view is dropped, no other reference to these columns of these rows is used.
    pub unsafe fn columns(
        &self,
        rows: Range<usize>,
        stride: usize,
        columns: Range<usize>,
    ) -> Columns<'_> {
        assert!(columns.end <= stride && rows.end * stride <= self.len);
        Columns {
            first: self.first.wrapping_add(rows.start * stride + columns.start),
            rows: rows.len(),
            width: columns.len(),
            stride,
            owner: PhantomData,
        }
    }
}

/// Some columns of a matrix, written by one thread.
pub struct Columns<'a> {
    first: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    owner: PhantomData<&'a mut f32>,
}

impl<'a> Columns<'a> {
    /// A whole matrix with rows `stride` apart.
    pub fn of(data: &'a mut [f32], stride: usize) -> Self {
        let rows = data.len() / stride;
        Self { first: data.as_mut_ptr(), rows, width: stride, stride, owner: PhantomData }
    }

    /// The rows of a range, from a column on.
    pub fn part(&mut self, rows: Range<usize>, column: usize) -> Columns<'_> {
        assert!(rows.end <= self.rows && column <= self.width);
        Columns {
            first: self.first.wrapping_add(rows.start * self.stride + column),
            rows: rows.len(),
            width: self.width - column,
            stride: self.stride,
            owner: PhantomData,
        }
    }

    pub fn holds(&self, rows: usize, width: usize) -> bool {
        rows <= self.rows && width <= self.width
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Pointer to the first element of a row.
    pub fn row_mut(&mut self, row: usize) -> *mut f32 {
        assert!(row < self.rows);
        self.first.wrapping_add(row * self.stride)
    }
}

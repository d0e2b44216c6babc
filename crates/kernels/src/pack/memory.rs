//! Memory for packed weights: aligned, zeroed, on huge pages.
//!
//! A step walks through all weights, so that pages of 4 KiB would cost a translation miss every few hundred nanoseconds.
//! Large matrices have an allocation of their own; smaller ones share slabs, which are freed with their last matrix.

use std::alloc::{Layout, alloc, dealloc};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::LINE;
use crate::error::KernelError;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Bytes of a slab.
const SLAB: usize = 4 * HUGE;

/// Below this a matrix is not worth a place in a slab.
const SMALL: usize = 64 << 10;

/// A fixed number of bytes that begin on a cache line.
pub(crate) struct Memory {
    block: Arc<Block>,
    /// This memory's own part of the block.
    part: Range<usize>,
}

/// One allocation.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a plain allocation; who reads and writes which part is the business of `Memory`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

/// The slab that has room, and how much of it is taken.
static OPEN: Mutex<(Weak<Block>, usize)> = Mutex::new((Weak::new(), 0));

impl Memory {
    /// Zeroed memory.
    pub fn zeroed(bytes: usize) -> Result<Memory, KernelError> {
        let memory = if (SMALL..HUGE).contains(&bytes) {
            Memory::in_slab(bytes)?
        } else {
            Memory { block: Arc::new(Block::new(bytes, bytes)?), part: 0..bytes }
        };
        // SAFETY: the part is inside the block, and nobody else's.
        unsafe { memory.start().write_bytes(0, bytes) };
        Ok(memory)
    }

    fn in_slab(bytes: usize) -> Result<Memory, KernelError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let room = open.0.upgrade().filter(|_| open.1 + bytes <= SLAB);
        let block = match room {
            Some(block) => block,
            None => {
                let block = Arc::new(Block::new(SLAB, bytes)?);
                *open = (Arc::downgrade(&block), 0);
                block
            }
        };
        let part = open.1..open.1 + bytes;
        open.1 = part.end.next_multiple_of(LINE);
        Ok(Memory { block, part })
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the part is inside the block.
        unsafe { self.block.start.as_ptr().add(self.part.start) }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: this part is inside the block, zeroed or written since, and written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start(), self.part.len()) }
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above; no other `Memory` has this part.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.part.len()) }
    }
}

impl Block {
    /// `bytes` bytes, not initialised; the error tells of `wanted`.
    fn new(bytes: usize, wanted: usize) -> Result<Block, KernelError> {
        let align = if bytes >= HUGE { HUGE } else { LINE };
        let failed = || KernelError::Memory { bytes: wanted };
        let layout = Layout::from_size_align(bytes.max(1), align).map_err(|_| failed())?;
        // SAFETY: the layout has a size above 0.
        let start = NonNull::new(unsafe { alloc(layout) }).ok_or_else(failed)?;
        #[cfg(target_os = "linux")]
        if align == HUGE {
            // SAFETY: the range was just allocated and is ours; the advice changes no content. It must come before the
            // first touch.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(Block { start, layout })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the last `Memory` in it is gone.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_aligned_zeroed_and_do_not_overlap() {
        for _ in 0..2 {
            let sizes = [0, 1, 64, SMALL, SMALL + 1, HUGE - 1, HUGE, HUGE - 1, HUGE - 1, HUGE - 1, HUGE - 1, SLAB + 5];
            let mut all: Vec<Memory> = sizes.iter().map(|&bytes| Memory::zeroed(bytes).expect("memory")).collect();
            for (index, memory) in all.iter_mut().enumerate() {
                assert_eq!(memory.as_slice().len(), sizes[index]);
                assert!(memory.as_slice().iter().all(|&byte| byte == 0));
                assert_eq!(memory.as_slice().as_ptr() as usize % LINE, 0);
                memory.as_mut_slice().fill(index as u8 + 1);
            }
            for (index, memory) in all.iter().enumerate() {
                assert!(memory.as_slice().iter().all(|&byte| byte == index as u8 + 1));
            }
        }
        assert_eq!(Memory::zeroed(isize::MAX as usize).err(), Some(KernelError::Memory { bytes: isize::MAX as usize }));
    }
}

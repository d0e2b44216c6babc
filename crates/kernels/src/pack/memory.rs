//! Memory for packed weights: aligned, zeroed, on huge pages where it is large.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use super::LINE;
use crate::error::KernelError;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// A fixed number of bytes that begin on a cache line, on a huge page where there are enough of them.
pub(crate) struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    layout: Layout,
}

// SAFETY: a plain allocation; shared only for reading.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory.
    pub fn zeroed(bytes: usize) -> Result<Memory, KernelError> {
        let align = if bytes >= HUGE { HUGE } else { LINE };
        let failed = KernelError::Memory { bytes };
        let layout = Layout::from_size_align(bytes.max(1), align).map_err(|_| failed.clone())?;
        // `alloc_zeroed` with an alignment above that of malloc writes every page; for large memory the advice must come
        // before the first touch, so that is done apart.
        if align == LINE {
            // SAFETY: the layout has a size above 0.
            let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(failed)?;
            return Ok(Memory {
                start,
                bytes,
                layout,
            });
        }
        // SAFETY: the layout has a size above 0.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) }).ok_or(failed)?;
        #[cfg(target_os = "linux")]
        // SAFETY: the range was just allocated and is ours; the advice changes no content.
        unsafe {
            libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
        }
        // SAFETY: just allocated with at least this size.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Ok(Memory {
            start,
            bytes,
            layout,
        })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated with this size, initialised, and not written while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

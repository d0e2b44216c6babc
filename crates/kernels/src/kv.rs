//! The store of keys and values: an array of slots, one row's keys and values in every layer each.
//!
//! [`PAGE`] consecutive slots form a page. A page is contiguous over all layers; inside, every (layer, kv head) has its
//! 32 keys transposed, `[dim][PAGE]`, so that scores of 32 keys are formed side by side without a horizontal sum, and
//! then its 32 values, `[PAGE][width]`, with `width` the head size rounded up to 16.
use half::{bf16, f16};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

/// Rows that a page holds. Attention accumulates over blocks of this many absolute places, so it is part of the
/// arithmetic and not a tuning knob.
pub const PAGE: usize = 32;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 4 bytes, exact.
    F32,
    /// 2 bytes, 11 bits of precision; beyond 65504 it becomes infinite.
    F16,
    /// 2 bytes, 8 bits of precision, the range of f32.
    Bf16,
}
impl KvDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::F16 | KvDtype::Bf16 => 2,
        }
    }
}

/// Why a store could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The shape is not one that the kernels serve.
    #[error(
        "expected a head size that is a positive multiple of 8 and at least one kv head in each layer, found head size {dim} and kv heads {kv_heads:?}"
    )]
    Shape {
        /// Head size.
        dim: usize,
        /// Kv heads of each layer.
        kv_heads: Vec<usize>,
    },
    /// The system refuses that much memory.
    #[error("a store of {slots} slots of {slot_bytes} bytes does not fit in memory: use fewer pages or a 2-byte cache")]
    Memory {
        /// Slots asked for.
        slots: usize,
        /// Bytes of each.
        slot_bytes: usize,
    },
}

/// Keys and values of all slots. Memory is zero pages of the system until it is written.
///
/// Writing takes `&self`, so that the threads of a step can write their rows; everything that reads takes `&mut self`
/// and so never meets a write.
pub struct KvStore {
    memory: NonNull<u8>,
    layout: Layout,
    dtype: KvDtype,
    dim: usize,
    width: usize,
    /// Elements before each layer inside a page; the last entry is the page's size.
    offsets: Vec<usize>,
    slots: usize,
}

// SAFETY: the store owns its memory. Shared access writes through relaxed atomics only; plain reads need `&mut self`.
unsafe impl Send for KvStore {}
// SAFETY: as above.
unsafe impl Sync for KvStore {}

impl std::fmt::Debug for KvStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvStore")
            .field("dtype", &self.dtype)
            .field("dim", &self.dim)
            .field("layers", &self.layers())
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl KvStore {
    /// A store of `slots` slots for one layer per entry of `kv_heads`, every head of `dim` elements.
    ///
    /// # Errors
    /// `dim` is not a positive multiple of 8, a layer has no head, or the system refuses the memory.
    pub fn new(dtype: KvDtype, kv_heads: &[usize], dim: usize, slots: usize) -> Result<Self, KvError> {
        if dim == 0 || !dim.is_multiple_of(8) || kv_heads.contains(&0) || kv_heads.is_empty() {
            return Err(KvError::Shape { dim, kv_heads: kv_heads.to_vec() });
        }
        let width = dim.next_multiple_of(16);
        let mut offsets = vec![0];
        for heads in kv_heads {
            offsets.push(offsets[offsets.len() - 1] + heads * PAGE * (dim + width));
        }
        let page = offsets[kv_heads.len()] * dtype.bytes();
        let too_much = || KvError::Memory { slots, slot_bytes: page / PAGE };
        let bytes = page.checked_mul(slots.div_ceil(PAGE)).ok_or_else(too_much)?;
        // Alignment 16: the system's `calloc`, whose large blocks are untouched zero pages.
        let layout = Layout::from_size_align(bytes.max(16), 16).map_err(|_| too_much())?;
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(too_much)?;
        Ok(Self { memory, layout, dtype, dim, width, offsets, slots })
    }

    /// How elements are stored.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }
    /// Head size.
    pub fn dim(&self) -> usize {
        self.dim
    }
    /// Layers.
    pub fn layers(&self) -> usize {
        self.offsets.len() - 1
    }
    /// Slots.
    pub fn slots(&self) -> usize {
        self.slots
    }
    /// Kv heads of a layer.
    pub fn kv_heads(&self, layer: usize) -> usize {
        (self.offsets[layer + 1] - self.offsets[layer]) / self.head_elements()
    }
    /// Bytes of one slot over all layers.
    pub fn slot_bytes(&self) -> usize {
        self.offsets[self.layers()] * self.dtype.bytes() / PAGE
    }

    /// Elements of one page of one (layer, kv head).
    fn head_elements(&self) -> usize {
        PAGE * (self.dim + self.width)
    }
    /// Row stride of values.
    pub(crate) fn width(&self) -> usize {
        self.width
    }
    /// Index of the first element of a page in (layer, kv head 0).
    fn page_start(&self, layer: usize, page: usize) -> usize {
        page * self.offsets[self.layers()] + self.offsets[layer]
    }
    /// Keys, then values, of a page in one (layer, kv head). `T` has the dtype's size.
    ///
    /// # Safety
    /// The page, layer and head exist.
    #[inline]
    pub(crate) unsafe fn page<T>(&self, layer: usize, head: usize, page: usize) -> (*const T, *const T) {
        debug_assert_eq!(size_of::<T>(), self.dtype.bytes());
        let at = self.page_start(layer, page) + head * self.head_elements();
        // SAFETY: the caller's duty.
        unsafe {
            let keys = self.memory.as_ptr().cast::<T>().add(at).cast_const();
            (keys, keys.add(PAGE * self.dim))
        }
    }

    /// Write one row's keys and values, `[kv_heads, dim]` each, into a slot of a layer. Threads may write different
    /// slots at the same time; two writes to one slot at once leave a mix of both.
    ///
    /// # Panics
    /// When the layer or slot does not exist, or a length is wrong.
    pub fn write(&self, layer: usize, slot: u32, k: &[f32], v: &[f32]) {
        let (heads, slot) = (self.kv_heads(layer), slot as usize);
        assert!(slot < self.slots, "write: slot {slot} of {}", self.slots);
        assert!(k.len() == heads * self.dim && v.len() == k.len(), "write: {} and {} floats", k.len(), v.len());
        let base = self.page_start(layer, slot / PAGE);
        let lane = slot % PAGE;
        // SAFETY (both pointers): inside the allocation, as checked above, aligned, and reached only through atomics
        // while the store is shared.
        let put32 = |at: usize, x: f32| unsafe {
            AtomicU32::from_ptr(self.memory.as_ptr().cast::<u32>().add(at)).store(x.to_bits(), Relaxed);
        };
        let put16 = |at: usize, x: u16| unsafe {
            AtomicU16::from_ptr(self.memory.as_ptr().cast::<u16>().add(at)).store(x, Relaxed);
        };
        for head in 0..heads {
            let keys = base + head * self.head_elements();
            let values = keys + PAGE * self.dim + lane * self.width;
            let range = head * self.dim..(head + 1) * self.dim;
            for (e, (&k, &v)) in k[range.clone()].iter().zip(&v[range]).enumerate() {
                let (key, value) = (keys + e * PAGE + lane, values + e);
                match self.dtype {
                    KvDtype::F32 => {
                        put32(key, k);
                        put32(value, v);
                    }
                    KvDtype::F16 => {
                        put16(key, f16::from_f32(k).to_bits());
                        put16(value, f16::from_f32(v).to_bits());
                    }
                    KvDtype::Bf16 => {
                        put16(key, bf16::from_f32(k).to_bits());
                        put16(value, bf16::from_f32(v).to_bits());
                    }
                }
            }
        }
    }

    /// Copy whole slots, in order, in every layer. `moves` are (from, to).
    ///
    /// # Panics
    /// When a slot does not exist.
    pub fn copy(&mut self, moves: &[(u32, u32)]) {
        match self.dtype {
            KvDtype::F32 => self.copy_as::<u32>(moves),
            KvDtype::F16 | KvDtype::Bf16 => self.copy_as::<u16>(moves),
        }
    }

    fn copy_as<T: Copy>(&mut self, moves: &[(u32, u32)]) {
        let mut rest = moves;
        while let Some(&(from, to)) = rest.first() {
            // Neighbours that move together inside two pages are copied together.
            let room = PAGE - (from as usize % PAGE).max(to as usize % PAGE);
            let n = rest
                .iter()
                .take(room)
                .enumerate()
                .take_while(|&(i, &(f, t))| f as usize == from as usize + i && t as usize == to as usize + i)
                .count();
            let (from, to) = (from as usize, to as usize);
            assert!(from + n <= self.slots && to + n <= self.slots, "copy: {from} to {to} of {} slots", self.slots);
            if from != to {
                // SAFETY: the slots exist, and `self` is borrowed mutably.
                unsafe { self.copy_run::<T>(from, to, n) };
            }
            rest = &rest[n..];
        }
    }

    /// Copy `n` slots that start at `from` and `to`, none of which leaves its page.
    ///
    /// # Safety
    /// They exist, `T` has the dtype's size, nobody else uses the store.
    unsafe fn copy_run<T: Copy>(&mut self, from: usize, to: usize, n: usize) {
        let memory = self.memory.as_ptr().cast::<T>();
        let (source, target) = (self.page_start(0, from / PAGE), self.page_start(0, to / PAGE));
        let page = self.offsets[self.layers()];
        // SAFETY: the caller's duty. Ascending order, element by element, is what copying slot by slot would do.
        unsafe {
            if n == PAGE {
                std::ptr::copy_nonoverlapping(memory.add(source), memory.add(target), page);
                return;
            }
            for head in (0..page).step_by(self.head_elements()) {
                for e in 0..self.dim {
                    let row = head + e * PAGE;
                    for i in 0..n {
                        *memory.add(target + row + to % PAGE + i) = *memory.add(source + row + from % PAGE + i);
                    }
                }
                let values = head + PAGE * self.dim;
                for i in 0..n {
                    let row = |slot: usize| values + (slot % PAGE + i) * self.width;
                    std::ptr::copy(memory.add(source + row(from)), memory.add(target + row(to)), self.dim);
                }
            }
        }
    }
}

impl Drop for KvStore {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;

//! The store of keys and values: an array of slots, one row's keys and values in every layer each.
//!
//! [`PAGE`] consecutive slots form a page. Every (layer, kv head) has its pages one after the other, so that a long
//! context is read as a stream. A page holds 32 keys transposed, `[dim][PAGE]`, so that scores of 32 keys are formed
//! side by side without a horizontal sum, and then its 32 values, `[PAGE][width]`, with `width` the head size rounded
//! up to 16. In bf16 what is summed over lies in pairs, as its product takes them: keys `[dim / 2][PAGE][2]`, two
//! dimensions of a key side by side, values `[PAGE / 2][width][2]`, one dimension of two neighbours.
pub use omnidecode_core::PAGE;

use crate::tier::Tier;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

/// Elements that are rounded at a time.
const NARROW: usize = 64;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 4 bytes, exact.
    F32,
    /// 2 bytes, 11 bits of precision; beyond 65504 it becomes infinite.
    F16,
    /// 2 bytes, 8 bits of precision, the range of f32; queries and attention weights are rounded to it as well.
    Bf16,
}
impl KvDtype {
    /// The format of 2 bytes that attention is fastest on: bf16 where the processor has its products, else f16.
    pub fn short() -> Self {
        if Tier::current() == Tier::Avx512Bf16 { KvDtype::Bf16 } else { KvDtype::F16 }
    }
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
    /// Kv heads before each layer; the last entry is all of them.
    offsets: Vec<usize>,
    pages: usize,
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
            offsets.push(offsets[offsets.len() - 1] + heads);
        }
        let page = offsets[kv_heads.len()] * PAGE * (dim + width) * dtype.bytes();
        let pages = slots.div_ceil(PAGE);
        let too_much = || KvError::Memory { slots, slot_bytes: page / PAGE };
        let bytes = page.checked_mul(pages).ok_or_else(too_much)?;
        // Alignment 16: the system's `calloc`, whose large blocks are untouched zero pages.
        let layout = Layout::from_size_align(bytes.max(16), 16).map_err(|_| too_much())?;
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(too_much)?;
        small_pages(memory, layout);
        Ok(Self { memory, layout, dtype, dim, width, offsets, pages, slots })
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
        self.offsets[layer + 1] - self.offsets[layer]
    }
    /// Bytes of one slot over all layers.
    pub fn slot_bytes(&self) -> usize {
        self.offsets[self.layers()] * (self.dim + self.width) * self.dtype.bytes()
    }

    /// Elements of one page of one (layer, kv head).
    fn page_elements(&self) -> usize {
        PAGE * (self.dim + self.width)
    }
    /// Row stride of values.
    pub(crate) fn width(&self) -> usize {
        self.width
    }
    /// Index of the first element of a page of a head, heads counted over all layers.
    fn page_start(&self, head: usize, page: usize) -> usize {
        (head * self.pages + page) * self.page_elements()
    }
    /// Keys, then values, of a page in one (layer, kv head). `T` is an element or a pair.
    ///
    /// # Safety
    /// The page, layer and head exist.
    #[inline]
    pub(crate) unsafe fn page<T>(&self, layer: usize, head: usize, page: usize) -> (*const T, *const T) {
        debug_assert!(size_of::<T>().is_multiple_of(self.dtype.bytes()));
        let (at, bytes) = (self.page_start(self.offsets[layer] + head, page), self.dtype.bytes());
        // SAFETY: the caller's duty.
        unsafe {
            let keys = self.memory.as_ptr().add(at * bytes).cast_const();
            (keys.cast(), keys.add(PAGE * self.dim * bytes).cast())
        }
    }
    /// Element of a page that holds dimension `e` of the key at `lane`.
    #[inline]
    pub(crate) fn key_at(&self, lane: usize, e: usize) -> usize {
        if self.dtype == KvDtype::Bf16 { (e / 2 * PAGE + lane) * 2 + e % 2 } else { e * PAGE + lane }
    }
    /// Element of a page that holds dimension `e` of the value at `lane`.
    #[inline]
    pub(crate) fn value_at(&self, lane: usize, e: usize) -> usize {
        let values = PAGE * self.dim;
        values
            + if self.dtype == KvDtype::Bf16 {
                (lane / 2 * self.width + e) * 2 + lane % 2
            } else {
                lane * self.width + e
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
            let page = self.page_start(self.offsets[layer] + head, slot / PAGE);
            let range = head * self.dim..(head + 1) * self.dim;
            let (k, v) = (&k[range.clone()], &v[range]);
            if self.dtype == KvDtype::F32 {
                for (e, (&k, &v)) in k.iter().zip(v).enumerate() {
                    put32(page + self.key_at(lane, e), k);
                    put32(page + self.value_at(lane, e), v);
                }
                continue;
            }
            let mut short = [[0u16; NARROW]; 2];
            for (first, (k, v)) in k.chunks(NARROW).zip(v.chunks(NARROW)).enumerate() {
                self.narrow(k, &mut short[0]);
                self.narrow(v, &mut short[1]);
                let (start, [keys, values]) = (first * NARROW, &short);
                for (e, &v) in values[..v.len()].iter().enumerate() {
                    put16(page + self.value_at(lane, start + e), v);
                }
                if self.dtype == KvDtype::Bf16 {
                    // Both halves of a pair are this slot's.
                    for (e, &[first, second]) in keys[..k.len()].as_chunks::<2>().0.iter().enumerate() {
                        let at = (page + self.key_at(lane, start + 2 * e)) / 2;
                        put32(at, f32::from_bits(u32::from(first) | u32::from(second) << 16));
                    }
                } else {
                    for (e, &k) in keys[..k.len()].iter().enumerate() {
                        put16(page + self.key_at(lane, start + e), k);
                    }
                }
            }
        }
    }

    /// Round up to [`NARROW`] floats to the store's two-byte type.
    fn narrow(&self, from: &[f32], to: &mut [u16; NARROW]) {
        let to = &mut to[..from.len()];
        if self.dtype == KvDtype::F16 {
            to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from);
        } else {
            to.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(from);
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
        for head in 0..self.offsets[self.layers()] {
            // SAFETY: the caller's duty. Ascending order, element by element, is what copying slot by slot would do.
            unsafe {
                let source = memory.add(self.page_start(head, from / PAGE));
                let target = memory.add(self.page_start(head, to / PAGE));
                if n == PAGE {
                    std::ptr::copy_nonoverlapping(source, target, self.page_elements());
                    continue;
                }
                if self.dtype == KvDtype::Bf16 {
                    let (from_keys, to_keys) = (source.cast::<u32>(), target.cast::<u32>());
                    for e in 0..self.dim / 2 {
                        for i in 0..n {
                            *to_keys.add(e * PAGE + to % PAGE + i) = *from_keys.add(e * PAGE + from % PAGE + i);
                        }
                    }
                    for i in 0..n {
                        let value = |slot: usize| self.value_at(slot % PAGE + i, 0);
                        let (from, to) = (source.add(value(from)), target.add(value(to)));
                        (0..self.dim).for_each(|e| *to.add(2 * e) = *from.add(2 * e));
                    }
                    continue;
                }
                for e in 0..self.dim {
                    for i in 0..n {
                        *target.add(e * PAGE + to % PAGE + i) = *source.add(e * PAGE + from % PAGE + i);
                    }
                }
                for i in 0..n {
                    let value = |slot: usize| self.value_at(slot % PAGE + i, 0);
                    std::ptr::copy(source.add(value(from)), target.add(value(to)), self.dim);
                }
            }
        }
    }
}

/// Keep huge pages away: each head's first write would touch one, and a short context would cost megabytes a head.
fn small_pages(memory: NonNull<u8>, layout: Layout) {
    #[cfg(target_os = "linux")]
    {
        const SMALL: usize = 4096;
        let start = (memory.as_ptr() as usize).next_multiple_of(SMALL);
        let end = (memory.as_ptr() as usize + layout.size()) / SMALL * SMALL;
        if start < end {
            // SAFETY: whole pages of our own allocation. Advice only: a refusal changes nothing.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_NOHUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (memory, layout);
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

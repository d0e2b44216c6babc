//! Files as bytes: the one place that maps a file into memory.
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A whole file, mapped read-only. Pages are read from disk when they are touched and shared between processes.
///
/// The bytes are those of the file at the time they are touched: a file that another process rewrites or truncates
/// while it is open changes what the model computes, or ends the process, as for every program that maps weights.
#[derive(Debug)]
pub struct Mapping(memmap2::Mmap);

impl Mapping {
    /// Map the file at `path`.
    ///
    /// # Errors
    /// What the system answers when the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only, and is only handed out as `&[u8]`, for which every bit pattern
        // is valid. That nobody truncates the file meanwhile is the caller's documented duty above.
        Ok(Self(unsafe { memmap2::Mmap::map(&file)? }))
    }
}

impl Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

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

    /// Let the system take back the memory behind `part`, if it is a part of this file. Its bytes stay readable: they come
    /// from the file again. Advice only: a refusal changes nothing.
    pub fn forget(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Some(at) = (part.as_ptr() as usize).checked_sub(self.0.as_ptr() as usize)
            && at.checked_add(part.len()).is_some_and(|end| end <= self.0.len())
        {
            // SAFETY: the mapping is read-only and of a file, so that pages that are dropped are read again as they were.
            let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, at, part.len()) };
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_read_again() {
        let path = std::env::temp_dir().join(format!("omnidecode-mapping-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("a temporary file");
        let mapping = Mapping::open(&path).expect("it is there");
        assert_eq!(mapping[..], bytes[..]);
        mapping.forget(&mapping[4_097..99_000]);
        mapping.forget(&[]);
        mapping.forget(&bytes); // of no file: nothing happens
        assert_eq!(mapping[..], bytes[..]);
        std::fs::remove_file(&path).expect("still there");
    }
}

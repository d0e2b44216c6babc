//! Several models, one text.
pub mod fs_gen;
pub mod router;

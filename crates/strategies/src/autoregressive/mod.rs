//! One token a forward.
pub mod plain;

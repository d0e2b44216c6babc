//! The engine's tests, in one binary.
mod carrier;
mod common;
mod judge;
mod laws;
mod lives;
mod verbs;
mod watch;

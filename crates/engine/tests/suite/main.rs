//! The engine's tests, in one binary.
mod carrier;
mod common;
mod judge;
mod laws;
mod lives;
mod pace;
mod verbs;
mod watch;

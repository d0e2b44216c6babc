//! Masked diffusion: a canvas of mask tokens, decided place by place in any order.
//!
//! One loop, [`denoise::denoise`], with plug points (sheet 00-diffusion §8): [`cache::Policy`] says which places a forward
//! runs and what is kept of it, [`guess::Chooser`] what each place would be and how sure that is, [`credit::Credit`] bends
//! these guesses, an [`unmask::Unmasker`] says which are committed, [`prophet::Prophet`] when the rest is filled at once.
pub mod cache;
pub mod credit;
pub mod denoise;
pub mod dream;
pub mod freedave;
pub mod guess;
pub mod likelihood;
pub mod llada;
pub mod prophet;
pub mod sdar;
mod settings;
pub mod unmask;

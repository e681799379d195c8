//! The one Rust static library that glimpse links.
//!
//! It carries the C functions of the Go tokenizers binding unchanged (`tokenizers_*`) and adds those in `ffi.rs`
//! (`glimpse_*`): chat templates, a look into a tokenizer.json before the binding loads it, and constrained decoding.

// The binding's C functions have to end up in the static library though nothing here calls them.
pub use tokenizers_ffi::*;

mod constraint;
mod ffi;
mod generation;
mod inspect;
mod python;
mod template;

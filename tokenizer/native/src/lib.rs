//! The one Rust static library that glimpse links.
//!
//! It carries the C functions of the Go tokenizers binding unchanged (`tokenizers_*`) and adds those in `ffi.rs`
//! (`glimpse_*`): chat templates, and a look into a tokenizer.json before the binding loads it.

// The binding's C functions have to end up in the static library though nothing here calls them.
pub use tokenizers_ffi::*;

mod ffi;
mod generation;
mod inspect;
mod python;
mod template;

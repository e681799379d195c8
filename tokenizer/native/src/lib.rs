pub use tokenizers_ffi::*;

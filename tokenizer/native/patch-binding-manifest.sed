# Turns the manifest of the Go binding's Rust crate into one that our static library can depend on.
# rlib beside staticlib: we link it as a library.
s/^crate-type = .*/crate-type = ["rlib", "staticlib"]/
# A git dependency cannot be fetched everywhere; the released crate has what is used.
s/^tiktoken-rs = .*/tiktoken-rs = "@TIKTOKEN_RS_VERSION@"/
# onig is the only default feature that encoding and decoding need (the others: a progress bar and C++ code for training).
s/^tokenizers = .*/tokenizers = { version = "0.22", default-features = false, features = ["onig"] }/
# Benchmarks of the binding are not built here.
/^\[dev-dependencies\]/,$d

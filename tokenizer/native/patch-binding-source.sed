# Turns a panic while decoding into an error like any other, as the binding does for encoding: a decoder configured by a
# hostile tokenizer.json must not end the process.
s/match unified_tokenizer\.decode(ids_slice, skip_special_tokens) {/match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unified_tokenizer.decode(ids_slice, skip_special_tokens))).unwrap_or_else(|_| Err("panic while decoding".into())) {/

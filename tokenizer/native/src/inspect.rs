//! What a tokenizer.json holds, told as JSON for the Go side: `{"added":[[id,content,special]…],"vocab":[[id,token]…]}`.
//! `vocab` has every token, the added ones included, in the order of their ids.

use serde_json::{json, Value};
use tokenizers_core::Tokenizer;

pub fn describe(json: &[u8]) -> Result<String, String> {
    let tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
    let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    added.sort_by_key(|(id, _)| *id);
    let added: Vec<Value> = added.into_iter().map(|(id, t)| json!([id, t.content, t.special])).collect();
    let mut vocab: Vec<(u32, String)> = tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    vocab.sort();
    let text = json!({ "added": added, "vocab": vocab });
    Ok(text.to_string())
}

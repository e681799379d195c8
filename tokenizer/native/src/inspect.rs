//! What a tokenizer.json holds, told as JSON for the Go side: `{"ids":[…],"tokens":[…],"special":[…]}`. `ids` and `tokens`
//! go together: every token, the added ones included, in the order of the ids. `special` are the ids that decoding can skip.

use serde_json::json;
use tokenizers_core::Tokenizer;

pub fn describe(json: &[u8]) -> Result<String, String> {
    let tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
    let added = tokenizer.get_added_tokens_decoder();
    let mut special: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
    special.sort_unstable();
    let mut vocab: Vec<(u32, String)> = tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    vocab.sort_unstable();
    let (ids, tokens): (Vec<u32>, Vec<String>) = vocab.into_iter().unzip();
    Ok(json!({ "ids": ids, "tokens": tokens, "special": special }).to_string())
}

//! Constrained decoding over llguidance: which tokens may come next when an answer has to be an instance of a JSON schema.

use std::sync::Arc;

use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;
use tokenizers_core::Tokenizer;

/// Bounds on one grammar, so that a stranger's schema costs neither minutes nor gigabytes: lexer states take 1 to 2 kB each,
/// fuel is spent at some 50,000 a millisecond in the lexer's making and 14,000 in a mask's.
const MAX_LEXER_STATES: usize = 10_000;
const MAX_GRAMMAR_SIZE: usize = 100_000;
const INITIAL_FUEL: u64 = 1_000_000;
const STEP_FUEL: u64 = 200_000;

/// Compilation walks schemas recursively; a chain of references may be as long as the schema. Only what is used of the
/// stack is ever backed by memory.
const COMPILER_STACK: usize = 256 << 20;

/// White space between JSON tokens: a space, or a new line and its indentation. A model that knows no JSON would otherwise
/// put blanks until its answer is cut.
const WHITE_SPACE: &str = r"\x20|\x0A(\x20{0,16}|\x09{0,8})";

/// A multiple is told by an automaton with a state for each remainder, which costs no fuel.
const MAX_REMAINDERS: u64 = 10_000;

/// Longest error text that goes out.
const MAX_MESSAGE: usize = 600;

/// What all constraints of one model share: the bytes of its tokens as a trie.
pub struct Grammars {
    factory: ParserFactory,
}

// One is used from several threads at once, the other handed from one to the next.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Grammars>();
    sent::<Constraint>();
};

impl Grammars {
    /// `width` is the number of logits, `eos` the tokens that end an answer.
    pub fn new(tokenizer: &[u8], width: usize, eos: &[u32]) -> Result<Self, String> {
        let eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < width).collect();
        let Some(&first) = eos.first() else {
            return Err("the model names no token that ends an answer".into());
        };
        let words = token_bytes(tokenizer, width, &eos)?;
        let trie = TokTrie::from(&TokRxInfo::new(width as u32, first), &words).with_eos_tokens(&eos);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| message(&e))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_GRAMMAR_SIZE;
        limits.initial_lexer_fuel = INITIAL_FUEL;
        limits.step_lexer_fuel = STEP_FUEL;
        limits.verbose_errors = false;
        // It would walk the whole vocabulary for a long regular expression, without fuel.
        limits.precompute_large_lexemes = false;
        Ok(Grammars { factory })
    }

    /// Compiles a JSON schema. With `lenient` keywords that cannot be enforced are passed over, else they are errors.
    pub fn compile(&self, schema: &str, lenient: bool) -> Result<Constraint, String> {
        let compile = || self.compile_here(schema, lenient);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILER_STACK).spawn_scoped(scope, compile);
            let thread = thread.map_err(|e| format!("starting the schema compiler: {e}"))?;
            thread.join().unwrap_or_else(|_| Err("the schema compiler failed".into()))
        })
    }

    fn compile_here(&self, schema: &str, lenient: bool) -> Result<Constraint, String> {
        let mut schema: Value = serde_json::from_str(schema).map_err(|e| format!("it is not JSON: {e}"))?;
        let Some(object) = schema.as_object() else {
            return Err("it is not a JSON object".into());
        };
        if object.contains_key("x-guidance") {
            return Err("the keyword x-guidance is not allowed".into());
        }
        if remainders(&schema, 1).is_none() {
            return Err(format!("its multipleOf need more than {MAX_REMAINDERS} remainders"));
        }
        let options = JsonCompileOptions { whitespace_pattern: Some(WHITE_SPACE.into()), lenient, ..Default::default() };
        options.apply_to(&mut schema);
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema)).map_err(|e| message(&e))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(text) => Err(clip(&text)),
            None => Ok(Constraint { matcher }),
        }
    }
}

/// One answer under way.
pub struct Constraint {
    matcher: Matcher,
}

impl Constraint {
    /// Sets the bit of every token that may come next; EOS is among them when the answer may end.
    pub fn mask(&mut self, out: &mut [u32]) -> Result<(), String> {
        self.check()?;
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| message(&e))?;
        let words = mask.as_slice();
        let n = words.len().min(out.len());
        out[..n].copy_from_slice(&words[..n]);
        out[n..].fill(0);
        self.check()
    }

    /// Takes the next token and says whether the answer is complete: nothing but its end can follow.
    pub fn commit(&mut self, token: u32) -> Result<bool, String> {
        self.matcher.consume_token(token).map_err(|e| message(&e))?;
        self.check()?;
        Ok(self.matcher.is_stopped())
    }

    /// An answer that ended for want of resources is not an instance of its schema.
    fn check(&self) -> Result<(), String> {
        match self.matcher.stop_reason() {
            StopReason::NotStopped | StopReason::NoExtension | StopReason::EndOfSentence => Ok(()),
            reason => Err(clip(&self.matcher.get_error().unwrap_or_else(|| format!("{reason:?}")))),
        }
    }
}

/// The least common multiple of every multipleOf in a schema, decimal points left out, with `so_far`; None when it is beyond
/// the limit. They count together because allOf may join any of them.
fn remainders(schema: &Value, so_far: u64) -> Option<u64> {
    match schema {
        Value::Array(items) => items.iter().try_fold(so_far, |n, item| remainders(item, n)),
        Value::Object(fields) => fields.iter().try_fold(so_far, |n, (name, value)| match value {
            Value::Number(number) if name == "multipleOf" => {
                let digits: String = number.to_string().chars().filter(char::is_ascii_digit).collect();
                let divisor = digits.parse::<u64>().ok().filter(|&d| d <= MAX_REMAINDERS)?.max(1);
                let exponent = number.to_string().contains(['e', 'E']);
                Some(n / gcd(n, divisor) * divisor).filter(|&lcm| lcm <= MAX_REMAINDERS && !exponent)
            }
            value => remainders(value, n),
        }),
        _ => Some(so_far),
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        gcd(b, a % b)
    }
}

/// The error and its causes on one line.
fn message(error: &anyhow::Error) -> String {
    clip(&format!("{error:#}"))
}

fn clip(text: &str) -> String {
    let text = text.split("<backtrace>").next().unwrap_or_default();
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ").chars().take(MAX_MESSAGE).collect()
}

/// How a tokenizer spells bytes in its vocabulary, read off its decoder.
#[derive(Default)]
struct Spelling {
    byte_level: bool,
    byte_fallback: bool,
    space: Option<char>,
}

impl Spelling {
    fn read(&mut self, decoder: &Value) {
        match decoder["type"].as_str() {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Metaspace") => self.space = decoder["replacement"].as_str().and_then(|s| s.chars().next()).or(Some('▁')),
            Some("Replace") if decoder["content"].as_str() == Some(" ") => {
                self.space = decoder["pattern"]["String"].as_str().and_then(|s| s.chars().next());
            }
            Some("Sequence") => decoder["decoders"].as_array().into_iter().flatten().for_each(|inner| self.read(inner)),
            _ => {}
        }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            return token.chars().flat_map(|c| byte_of(c).map_or_else(|| c.to_string().into_bytes(), |b| vec![b])).collect();
        }
        if self.byte_fallback && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>') {
            if let Ok(byte) = u8::from_str_radix(&token[3..5], 16) {
                return vec![byte];
            }
        }
        match self.space {
            Some(space) => token.replace(space, " ").into_bytes(),
            None => token.as_bytes().to_vec(),
        }
    }
}

/// The byte that a character stands for in GPT-2's spelling: printable Latin-1 is itself, the rest is counted up from U+0100.
fn byte_of(c: char) -> Option<u8> {
    let itself = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => Some(code as u8).filter(|&b| itself(b)),
        code => (0..=255u8).filter(|&b| !itself(b)).nth(code.checked_sub(0x100)? as usize),
    }
}

/// The bytes of every token by id; empty where an id has none. Special tokens and those that end an answer begin with a
/// byte that no text has, so that no string of an answer can hold them.
fn token_bytes(json: &[u8], width: usize, eos: &[u32]) -> Result<Vec<Vec<u8>>, String> {
    let file: Value = serde_json::from_slice(json).map_err(|e| format!("reading the tokenizer: {e}"))?;
    let mut spelling = Spelling::default();
    spelling.read(&file["decoder"]);
    if !spelling.byte_level && !spelling.byte_fallback && spelling.space.is_none() {
        return Err(format!("the bytes of this tokenizer's tokens are not known: its decoder is {}", file["decoder"]["type"]));
    }
    let tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
    let added = tokenizer.get_added_tokens_decoder();
    let mut words = vec![Vec::new(); width];
    for (token, id) in tokenizer.get_vocab(true) {
        let Some(word) = words.get_mut(id as usize) else { continue };
        let known = added.get(&id);
        let mut bytes = match known {
            Some(added) => added.content.as_bytes().to_vec(),
            None => spelling.bytes(&token),
        };
        if known.is_some_and(|added| added.special) || eos.contains(&id) {
            bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        *word = bytes;
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::{byte_of, remainders, Spelling};
    use serde_json::json;

    #[test]
    fn counts_remainders() {
        for (schema, want) in [
            (json!({"multipleOf": 5, "properties": {"a": {"multipleOf": 0.25}}}), Some(25)),
            (json!({"allOf": [{"multipleOf": 97}, {"multipleOf": 101}]}), Some(9797)),
            (json!({"allOf": [{"multipleOf": 103}, {"multipleOf": 101}]}), None),
            (json!({"multipleOf": 10001}), None),
            (json!({"multipleOf": 1e-300}), None),
            (json!({"multipleOf": 0}), Some(1)),
            (json!({"properties": {"multipleOf": {"type": "null"}}}), Some(1)),
        ] {
            assert_eq!(remainders(&schema, 1), want, "{schema}");
        }
    }

    #[test]
    fn spells_bytes() {
        assert_eq!(byte_of('!'), Some(b'!'));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xAD));
        assert_eq!(byte_of('語'), None);
        let mut every: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        every.sort_unstable();
        assert_eq!(every, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn reads_decoders() {
        let mut s = Spelling::default();
        s.read(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}));
        assert_eq!(s.bytes("▁a"), b" a");
        assert_eq!(s.bytes("<0xE4>"), [0xE4]);
        assert_eq!(s.bytes("<0xé>"), "<0xé>".as_bytes());
        let mut s = Spelling::default();
        s.read(&json!({"type": "ByteLevel"}));
        assert_eq!(s.bytes("Ġa"), b" a");
    }
}

// Package tokenizer turns text into token ids and back, streams decoded text, and renders chat templates.
//
// Tokenizers are the released tokenizer.json, run by the Rust crate that the field uses (github.com/daulet/tokenizers);
// templates are the released Jinja, run by minijinja. Both are in one static library, built from native/.
package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	binding "github.com/daulet/tokenizers"
)

var (
	// ErrNoTokenizerJSON says that a folder has a vocabulary but no tokenizer.json.
	ErrNoTokenizerJSON = errors.New("no tokenizer.json")
	// ErrClosed is returned by a tokenizer or template that was closed.
	ErrClosed = errors.New("closed")
	// ErrNUL is returned for text with a NUL byte, which the tokenizers binding cannot take.
	ErrNUL = errors.New("the text holds a NUL byte (U+0000)")
)

// fileName is what a tokenizer is called in a checkpoint and in a model folder.
const fileName = "tokenizer.json"

// maxFileBytes bounds a tokenizer.json; the largest released ones (260,000 tokens) have some 35 MB.
const maxFileBytes = 256 << 20

// otherVocabularies are the files in which releases without tokenizer.json keep their vocabulary.
var otherVocabularies = []string{"tokenizer.model", "*.tiktoken", "vocab.json", "vocab.txt", "spiece.model"}

// Tokenizer is one loaded tokenizer.json. It may be used by several goroutines at once; Close ends it.
type Tokenizer struct {
	mu    sync.RWMutex       // held for reading while native memory is in use
	main  *binding.Tokenizer // nil after Close
	plain *binding.Tokenizer // the same, reading special tokens' names as text; nil until first needed
	load  func() ([]byte, error)

	ids     []int32 // ascending
	tokens  []string
	byToken map[string]int32
	silent  map[int32]bool // tokens that decode to a NUL byte; left out of decoded text

	special    map[int32]bool
	specialIDs []int32 // ascending
}

// Open loads a tokenizer.json, given as the file or as the folder that holds it.
func Open(path string) (*Tokenizer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening tokenizer: %w", err)
	}
	file := path
	if info.IsDir() {
		file = filepath.Join(path, fileName)
		if info, err = os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, missingError(path)
		} else if err != nil {
			return nil, fmt.Errorf("opening tokenizer: %w", err)
		}
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("opening tokenizer %s: it has %d bytes, more than the limit of %d", file, info.Size(), maxFileBytes)
	}
	t, err := open(func() ([]byte, error) { return os.ReadFile(file) })
	if err != nil {
		return nil, fmt.Errorf("opening tokenizer %s: %w", file, err)
	}
	return t, nil
}

// missingError names what the folder has instead of a tokenizer.json and how to get one.
func missingError(dir string) error {
	for _, pattern := range otherVocabularies {
		// Dir may hold characters that Glob reads as a pattern; then the shorter message below has to do.
		if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) > 0 {
			return fmt.Errorf("opening tokenizer: %s has %s but %w; it is no model folder: `glimpse convert %s -o MODEL` makes one, and the tokenizer.json "+
				"from a tokenizer.model or a .tiktoken file", dir, filepath.Base(found[0]), ErrNoTokenizerJSON, dir)
		}
	}
	return fmt.Errorf("opening tokenizer: %s: %w", dir, ErrNoTokenizerJSON)
}

// Parse loads a tokenizer from the text of a tokenizer.json. It keeps data; do not change it.
func Parse(data []byte) (*Tokenizer, error) {
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("tokenizer: it has %d bytes, more than the limit of %d", len(data), maxFileBytes)
	}
	t, err := open(func() ([]byte, error) { return data, nil })
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	return t, nil
}

func open(load func() ([]byte, error)) (*Tokenizer, error) {
	t := &Tokenizer{load: func() ([]byte, error) {
		data, err := load()
		if err != nil {
			return nil, err
		}
		return withoutTruncation(data)
	}}
	data, err := t.load()
	if err != nil {
		return nil, err
	}
	if err := t.readTokens(data); err != nil {
		return nil, err
	}
	if t.main, err = binding.FromBytes(data); err != nil {
		return nil, err
	}
	t.findSilent()
	return t, nil
}

// withoutTruncation removes the truncation and padding that a tokenizer.json was last saved with. transformers does not
// apply them either unless a call asks for it; left in, they would cut long prompts without a word.
func withoutTruncation(data []byte) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("not a tokenizer.json: %w", err)
	}
	changed := false
	for _, name := range []string{"truncation", "padding"} {
		if value, ok := fields[name]; ok && string(value) != "null" {
			fields[name] = json.RawMessage("null")
			changed = true
		}
	}
	if !changed {
		return data, nil
	}
	return json.Marshal(fields)
}

// readTokens fills the tables of tokens. It also proves that the file loads, see inspectTokenizer.
func (t *Tokenizer) readTokens(data []byte) error {
	text, status := inspectTokenizer(data)
	if status != nativeOK {
		return fmt.Errorf("not a tokenizer.json that can be used: %s", text)
	}
	var described struct {
		IDs     []uint32 `json:"ids"`
		Tokens  []string `json:"tokens"`
		Special []uint32 `json:"special"`
	}
	if err := json.Unmarshal([]byte(text), &described); err != nil {
		return fmt.Errorf("reading the tokens: %w", err)
	}
	if len(described.IDs) == 0 {
		return errors.New("the vocabulary is empty")
	}
	if last := described.IDs[len(described.IDs)-1]; last > math.MaxInt32 {
		return fmt.Errorf("token %q has id %d, more than fits an int32", described.Tokens[len(described.Tokens)-1], last)
	}
	t.ids = make([]int32, len(described.IDs))
	t.tokens = described.Tokens
	t.byToken = make(map[string]int32, len(described.IDs))
	for i, id := range described.IDs {
		t.ids[i] = int32(id)
		t.byToken[described.Tokens[i]] = int32(id)
	}
	t.special = make(map[int32]bool, len(described.Special))
	for _, id := range described.Special {
		t.special[int32(id)] = true
		t.specialIDs = append(t.specialIDs, int32(id))
	}
	return nil
}

// findSilent finds the tokens whose text holds a NUL byte: the binding hands text over zero-terminated, so one of them
// would lose a whole answer. Only tokens that are spelled with the byte in one of the known ways are tried.
func (t *Tokenizer) findSilent() {
	t.silent = make(map[int32]bool)
	for i, token := range t.tokens {
		if token == "<0x00>" || strings.ContainsAny(token, "\x00\u0100") {
			if _, err := t.main.DecodeErr([]uint32{uint32(t.ids[i])}, false); err != nil {
				t.silent[t.ids[i]] = true
			}
		}
	}
}

// Close frees the tokenizer. It may be called more than once.
func (t *Tokenizer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, handle := range []*binding.Tokenizer{t.main, t.plain} {
		if handle != nil {
			handle.Close()
		}
	}
	t.main, t.plain = nil, nil
	return nil
}

// Encode gives the ids of text. Names of special tokens in it become those tokens, wherever they came from; text of users
// goes through a Shield. addSpecialTokens adds what the tokenizer puts around a text (BOS, [CLS] …).
// Bytes that are not UTF-8 count as U+FFFD; a NUL byte is ErrNUL.
func (t *Tokenizer) Encode(text string, addSpecialTokens bool) ([]int32, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return encode(t.main, text, addSpecialTokens)
}

// EncodePlain gives the ids of text in which names of special tokens are ordinary characters. Nothing is added around it.
// Added tokens that the tokenizer does not call special (<tool_call> of Qwen) are still found.
func (t *Tokenizer) EncodePlain(text string) ([]int32, error) {
	if err := t.loadPlain(); err != nil {
		return nil, fmt.Errorf("loading the tokenizer for plain text: %w", err)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return encode(t.plain, text, false)
}

// loadPlain loads the second handle once: in the binding the reading of special tokens is fixed at loading.
func (t *Tokenizer) loadPlain() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.plain != nil {
		return nil
	}
	if t.main == nil {
		return ErrClosed
	}
	data, err := t.load()
	if err != nil {
		return err
	}
	t.plain, err = binding.FromBytes(data, binding.WithEncodeSpecialTokens())
	return err
}

func encode(handle *binding.Tokenizer, text string, addSpecialTokens bool) ([]int32, error) {
	if handle == nil {
		return nil, fmt.Errorf("encoding text: tokenizer is %w", ErrClosed)
	}
	if at := strings.IndexByte(text, 0); at >= 0 {
		return nil, fmt.Errorf("encoding text: %w at byte %d", ErrNUL, at)
	}
	encoding, err := handle.EncodeWithOptionsErr(text, addSpecialTokens)
	if err != nil {
		return nil, fmt.Errorf("encoding %d bytes of text: %w", len(text), err)
	}
	ids := make([]int32, len(encoding.IDs))
	for i, id := range encoding.IDs {
		ids[i] = int32(id)
	}
	return ids, nil
}

// Decode gives the text of ids. Unknown ids are left out, as are tokens that stand for a NUL byte, and with skipSpecial
// the special tokens. Bytes that form no character are U+FFFD. A closed tokenizer gives "".
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.main == nil {
		return ""
	}
	known := make([]uint32, 0, len(ids))
	for _, id := range ids {
		if t.visible(id, skipSpecial) {
			known = append(known, uint32(id))
		}
	}
	// Special tokens are gone already; the binding needs not look again.
	return t.main.Decode(known, false)
}

// visible says whether an id takes part in decoding.
func (t *Tokenizer) visible(id int32, skipSpecial bool) bool {
	_, known := slices.BinarySearch(t.ids, id)
	return known && !t.silent[id] && !(skipSpecial && t.special[id])
}

// TokenID gives the id of a token by its spelling in the vocabulary ("<image>", "▁the").
func (t *Tokenizer) TokenID(token string) (int32, bool) {
	id, ok := t.byToken[token]
	return id, ok
}

// Token gives the spelling of an id in the vocabulary.
func (t *Tokenizer) Token(id int32) (string, bool) {
	i, ok := slices.BinarySearch(t.ids, id)
	if !ok {
		return "", false
	}
	return t.tokens[i], true
}

// IsSpecial says whether an id is a special token, one that Decode leaves out with skipSpecial.
func (t *Tokenizer) IsSpecial(id int32) bool { return t.special[id] }

// VocabSize is the number of tokens, the added ones included. Ids may have gaps and a model's logits are often wider.
func (t *Tokenizer) VocabSize() int { return len(t.ids) }

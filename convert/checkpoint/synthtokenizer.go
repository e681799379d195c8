package checkpoint

// A stand-in for a tokenizer that is not there: the 256 bytes, the special tokens at the ids that the configuration names,
// and words that no text encodes to on all other ids, so that whatever a random model says can be decoded.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tokenizerFiles are what a checkpoint may keep its vocabulary in; any of them makes a stand-in needless.
var tokenizerFiles = []string{"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "qwen.tiktoken"}

// addStandIn adds tokenizer.json and tokenizer_config.json to files that have none, and returns the vocabulary's size.
func addStandIn(files map[string][]byte, special map[string]int64, tensors Inventory) (int, error) {
	for _, name := range tokenizerFiles {
		if _, ok := files[name]; ok {
			return 0, nil
		}
	}
	config, ok := files["config.json"]
	if !ok {
		return 0, nil
	}
	c, err := readTokenConfig(config)
	if err != nil {
		return 0, err
	}
	c.vocabulary = max(c.vocabulary, embeddingRows(tensors))
	if c.vocabulary == 0 { // an image tower
		return 0, nil
	}
	if c.vocabulary > 1<<22 {
		return 0, fmt.Errorf("a vocabulary of %d is not believable", c.vocabulary)
	}
	names, err := c.name(special)
	if err != nil {
		return 0, err
	}
	tokenizer, err := StandInTokenizer(int(c.vocabulary), names)
	if err != nil {
		return 0, err
	}
	files["tokenizer.json"] = tokenizer
	if _, ok := files["tokenizer_config.json"]; !ok {
		files["tokenizer_config.json"], err = tokenizerConfig(c, names)
	}
	return int(c.vocabulary), err
}

// tokenConfig is what a config.json says about token ids.
type tokenConfig struct {
	vocabulary int64
	ids        map[string]int64 // "bos" → 1, "image" → 32000
}

// textConfigs are where families keep the language model's configuration.
var textConfigs = []string{"text_config", "llm_config", "language_config"}

func readTokenConfig(data []byte) (*tokenConfig, error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(data, &top); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	levels := []map[string]json.RawMessage{top}
	for _, key := range textConfigs {
		var inner map[string]json.RawMessage
		if json.Unmarshal(top[key], &inner) == nil && inner != nil {
			levels = append(levels, inner)
		}
	}
	c := &tokenConfig{ids: map[string]int64{}}
	for _, level := range levels {
		for key, value := range level {
			var number int64
			if json.Unmarshal(value, &number) != nil {
				var several []int64
				if json.Unmarshal(value, &several) != nil || len(several) == 0 {
					continue
				}
				number = several[0] // eos_token_id may be a list
			}
			role, isID := strings.CutSuffix(key, "_token_id")
			if !isID {
				role, isID = strings.CutSuffix(key, "_token_index")
			}
			switch {
			case key == "vocab_size":
				c.vocabulary = max(c.vocabulary, number)
			case isID && number >= 0:
				if _, known := c.ids[role]; !known { // the outer level counts
					c.ids[role] = number
				}
			}
		}
	}
	return c, nil
}

// embeddingRows is the vocabulary that the token embedding has room for; configurations leave vocab_size out when it is
// the library's default, and ids beyond it can still be the best of random logits.
func embeddingRows(tensors Inventory) int64 {
	rows := int64(0)
	for _, name := range tensors.Names() {
		for _, suffix := range []string{"embed_tokens.weight", "wte.weight", ".shared.weight", "word_embeddings.weight", "token_embedding.weight"} {
			if t, _ := tensors.Lookup(name); strings.HasSuffix(name, suffix) && len(t.Shape) == 2 {
				rows = max(rows, t.Shape[0])
			}
		}
	}
	return rows
}

// roleNames are the customary texts of tokens; other roles get theirs in angle brackets.
var roleNames = map[string]string{"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}

// name makes id → token out of the given names and the configuration's roles. The given names win.
func (c *tokenConfig) name(special map[string]int64) (map[int64]string, error) {
	names := map[int64]string{}
	used := map[string]bool{}
	for _, token := range slices.Sorted(maps.Keys(special)) {
		id := special[token]
		if token == "" || id < 0 {
			return nil, fmt.Errorf("special token %s with id %d", quoted(token), id)
		}
		if id >= c.vocabulary { // of another tokenizer: a Q-Former's, for instance
			continue
		}
		if first, twice := names[id]; twice {
			return nil, fmt.Errorf("special tokens %s and %s have the same id %d", quoted(first), quoted(token), id)
		}
		names[id], used[token] = token, true
	}
	for _, role := range slices.Sorted(maps.Keys(c.ids)) {
		id := c.ids[role]
		if _, named := names[id]; named || id >= c.vocabulary {
			continue
		}
		token := roleNames[role]
		if token == "" {
			token = "<" + role + ">"
		}
		if used[token] { // two ids for one text: the given one stays
			token = fmt.Sprintf("<%s_%d>", role, id)
		}
		names[id], used[token] = token, true
	}
	return names, nil
}

// newlineToken is how inventories write the token that ends a caption of OPT: byte 10, not a special token.
const newlineToken = "newline"

// StandInTokenizer is a tokenizer.json of the tokenizers library: byte-level BPE without merges, size ids in all. special
// says which ids are special tokens; the bytes take the lowest ids left, words like " w1234" the rest.
func StandInTokenizer(size int, special map[int64]string) ([]byte, error) {
	type addedToken struct {
		ID         int64  `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		Lstrip     bool   `json:"lstrip"`
		Rstrip     bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
		Special    bool   `json:"special"`
	}
	added := []addedToken{}
	content := make([]string, size)
	alphabet := byteAlphabet()
	for _, id := range slices.Sorted(maps.Keys(special)) {
		if id < 0 || id >= int64(size) {
			return nil, fmt.Errorf("stand-in tokenizer: special token %s has id %d, outside a vocabulary of %d", quoted(special[id]), id, size)
		}
		if special[id] == newlineToken {
			content[id] = alphabet['\n']
			alphabet['\n'] = ""
			continue
		}
		content[id] = special[id]
		added = append(added, addedToken{ID: id, Content: special[id], Special: true})
	}
	next := 0
	for _, letter := range alphabet {
		if letter == "" {
			continue
		}
		for next < size && content[next] != "" {
			next++
		}
		if next == size {
			return nil, errors.New("stand-in tokenizer: a vocabulary of " + fmt.Sprint(size) +
				" is too small for the 256 bytes and the special tokens; give a tokenizer.json")
		}
		content[next] = letter
	}
	for id := range content {
		if content[id] == "" {
			content[id] = fmt.Sprintf("%sw%d", alphabet[' '], id)
		}
	}
	addedJSON, err := json.Marshal(added)
	if err != nil {
		return nil, err
	}
	vocabulary, err := vocabularyJSON(content)
	if err != nil {
		return nil, err
	}
	return []byte(fmt.Sprintf(standInTemplate, addedJSON, vocabulary)), nil
}

const standInTemplate = `{
  "version": "1.0", "truncation": null, "padding": null,
  "added_tokens": %s,
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
  "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
    "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "merges": [],
    "vocab": %s}
}
`

// vocabularyJSON writes the tokens in the order of their ids, as releases have them. A token may appear once only.
func vocabularyJSON(content []string) ([]byte, error) {
	var b bytes.Buffer
	seen := make(map[string]int, len(content))
	b.WriteByte('{')
	for id, token := range content {
		if first, twice := seen[token]; twice {
			return nil, fmt.Errorf("stand-in tokenizer: token %s would have the ids %d and %d", quoted(token), first, id)
		}
		seen[token] = id
		if id > 0 {
			b.WriteString(", ")
		}
		key, err := json.Marshal(token)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s: %d", key, id)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// byteAlphabet is GPT-2's: bytes that print stand for themselves, the others for the code points from 256 on.
func byteAlphabet() [256]string {
	var alphabet [256]string
	next := rune(256)
	for b := range alphabet {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae) {
			r = next
			next++
		}
		alphabet[b] = string(r)
	}
	return alphabet
}

// tokenizerConfig is a minimal tokenizer_config.json for the stand-in.
func tokenizerConfig(c *tokenConfig, names map[int64]string) ([]byte, error) {
	config := map[string]any{"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false}
	for _, role := range []string{"bos", "eos", "pad", "unk"} {
		if id, ok := c.ids[role]; ok && names[id] != "" && names[id] != newlineToken {
			config[role+"_token"] = names[id]
		}
	}
	data, err := json.MarshalIndent(config, "", "  ")
	return append(data, '\n'), err
}

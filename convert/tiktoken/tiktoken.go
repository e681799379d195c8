// Package tiktoken turns a vocabulary in tiktoken's format (a token in base64 and its rank, a line each) into a
// tokenizer.json that gives the same ids.
//
// tiktoken merges whatever pair of neighbours is the token of the lowest rank. tokenizer.json wants the merges spelled out:
// each token's merge is the pair that is left when its own bytes are merged as far as the ranks below its own go
// (the derivation that transformers' TikTokenConverter uses too).
package tiktoken

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
)

// Bounds on what a vocabulary may be: real ones have 152,000 to 200,000 tokens of at most 256 bytes.
const (
	maxTokens     = 1 << 20
	maxTokenBytes = 512
)

// Special is a token that is no merge of bytes.
type Special struct {
	Text string
	// Plain says that texts of users may contain the token, and that it is shown in answers: marks of what is in a text,
	// and not of who speaks.
	Plain bool
}

// Spec is what the file of ranks leaves open.
type Spec struct {
	Pattern   string    // regular expression whose matches are merged each by itself
	Normalize string    // a Unicode normal form, "" for none
	Specials  []Special // their ids follow the ranks
}

// Convert returns the tokenizer.json of a file of ranks.
func Convert(ranks []byte, spec Spec) (json.RawMessage, error) {
	tokens, err := Parse(ranks)
	if err != nil {
		return nil, err
	}
	pairs, err := merges(tokens)
	if err != nil {
		return nil, err
	}
	vocab := make(map[string]int, len(tokens))
	for rank, token := range tokens {
		vocab[spell(token)] = rank
	}
	spelled := make([][2]string, len(pairs))
	for i, p := range pairs {
		spelled[i] = [2]string{spell(p[0]), spell(p[1])}
	}
	added := make([]map[string]any, len(spec.Specials))
	for i, s := range spec.Specials {
		added[i] = map[string]any{"id": len(tokens) + i, "content": s.Text, "single_word": false, "lstrip": false, "rstrip": false,
			"normalized": false, "special": !s.Plain}
	}
	var normalizer any
	if spec.Normalize != "" {
		normalizer = map[string]any{"type": spec.Normalize}
	}
	byteLevel := map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
	doc := map[string]any{
		"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added, "normalizer": normalizer, "post_processor": nil,
		"pre_tokenizer": map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Split", "pattern": map[string]any{"Regex": spec.Pattern}, "behavior": "Isolated", "invert": false}, byteLevel}},
		"decoder": byteLevel,
		"model": map[string]any{"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": spelled},
	}
	return json.Marshal(doc)
}

// Parse reads the ranks: token i is that of rank i.
func Parse(ranks []byte) ([]string, error) {
	byRank := map[int]string{}
	seen := map[string]bool{}
	line := 0
	for rest := ranks; len(rest) > 0; {
		var text []byte
		text, rest, _ = bytes.Cut(rest, []byte("\n"))
		line++
		text = bytes.TrimRight(text, "\r")
		if len(text) == 0 {
			continue
		}
		encoded, number, ok := bytes.Cut(text, []byte(" "))
		token, err := base64.StdEncoding.DecodeString(string(encoded))
		rank, bad := strconv.Atoi(string(number))
		switch {
		case !ok || err != nil || bad != nil || rank < 0 || rank >= maxTokens || len(token) == 0 || len(token) > maxTokenBytes:
			return nil, fmt.Errorf("read ranks: line %d is %.60q; a token in base64 and its rank are due", line, text)
		case byRank[rank] != "":
			return nil, fmt.Errorf("read ranks: line %d: rank %d is there twice", line, rank)
		case seen[string(token)]:
			return nil, fmt.Errorf("read ranks: line %d: the token of rank %d is there twice", line, rank)
		}
		byRank[rank], seen[string(token)] = string(token), true
	}
	tokens := make([]string, len(byRank))
	for i := range tokens {
		if tokens[i] = byRank[i]; tokens[i] == "" {
			return nil, fmt.Errorf("read ranks: rank %d of %d is missing", i, len(tokens))
		}
	}
	for b := range 256 {
		if !seen[string([]byte{byte(b)})] {
			return nil, fmt.Errorf("read ranks: the byte %#02x has no token", b)
		}
	}
	return tokens, nil
}

// merges returns the merge that makes each token of several bytes, in the order of ranks.
func merges(tokens []string) ([][2]string, error) {
	ranks := make(map[string]int, len(tokens))
	for i, t := range tokens {
		ranks[t] = i
	}
	var pairs [][2]string
	for rank, token := range tokens {
		if len(token) == 1 {
			continue
		}
		parts := split(token, ranks, rank)
		if len(parts) != 2 {
			return nil, fmt.Errorf("derive merges: the tokens below rank %d cut its token %.60q into %d parts, and two are due", rank, token, len(parts))
		}
		pairs = append(pairs, [2]string{parts[0], parts[1]})
	}
	return pairs, nil
}

// split merges the bytes of a token as far as the ranks below limit go.
func split(token string, ranks map[string]int, limit int) []string {
	parts := make([]string, len(token))
	for i := range parts {
		parts[i] = token[i : i+1]
	}
	for len(parts) > 1 {
		best, at := math.MaxInt, -1
		start := 0
		for i := range len(parts) - 1 {
			n := len(parts[i]) + len(parts[i+1])
			if r, ok := ranks[token[start:start+n]]; ok && r < limit && r < best {
				best, at = r, i
			}
			start += len(parts[i])
		}
		if at < 0 {
			break
		}
		parts[at] += parts[at+1]
		parts = append(parts[:at+1], parts[at+2:]...)
	}
	return parts
}

// letters are the characters that stand for bytes in tokenizer.json, as in GPT-2: printable ones for themselves, the
// others counted up from U+0100.
var letters = func() (out [256]rune) {
	next := rune(256)
	for b := range out {
		r := rune(b)
		if r >= '!' && r <= '~' || r >= '¡' && r <= '¬' || r >= '®' && r <= 'ÿ' {
			out[b] = r
		} else {
			out[b] = next
			next++
		}
	}
	return out
}()

func spell(token string) string {
	out := make([]rune, len(token))
	for i := range len(token) {
		out[i] = letters[token[i]]
	}
	return string(out)
}

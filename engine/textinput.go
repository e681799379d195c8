// Texts for graphs that read text beside or instead of a picture: a tokenizer of their own, ids and a mask.

package engine

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"glimpse/manifest"
	"glimpse/tokenizer"
)

// maxTokenBytes bounds a text before it is tokenized: no token stands for more bytes than this in any vocabulary.
const maxTokenBytes = 1 << 10

// textInput makes the two inputs that a manifest.TextInput describes. It is safe for many goroutines.
type textInput struct {
	spec      manifest.TextInput
	tokenizer *tokenizer.Tokenizer
}

func openTextInput(folder string, spec manifest.TextInput) (*textInput, error) {
	t, err := tokenizer.Open(filepath.Join(folder, spec.Tokenizer))
	if err != nil {
		return nil, err
	}
	return &textInput{spec: spec, tokenizer: t}, nil
}

// encode returns a text's ids, special tokens around it included. Names of special tokens in it are text, but in a raw
// one. A text that is too long is refused: cutting it would score or ask something else.
func (t *textInput) encode(param, text string, raw bool) ([]int32, error) {
	if len(text) > maxTokenBytes*t.spec.MaxTokens && !t.spec.Truncate {
		return nil, badRequest(param, CodeContextLength, ErrTextTooLong, "%s (%.40q…) has %d bytes and the model reads at most %d tokens of a text: shorten it", param, text, len(text), t.spec.MaxTokens)
	}
	if most := maxTokenBytes * t.spec.MaxTokens; len(text) > most { // behind what is kept
		text = strings.ToValidUTF8(text[:most], "")
	}
	shield, covered := t.tokenizer.NewShield(), text
	if !raw {
		covered = shield.Cover(text)
	}
	ids, err := shield.Encode(t.spec.Prefix+covered, true)
	switch {
	case errors.Is(err, tokenizer.ErrNUL):
		return nil, badRequest(param, CodeInvalid, err, "%s: %v", param, err)
	case err != nil:
		return nil, fmt.Errorf("encode a text: %w", err)
	case len(ids) == 0:
		return nil, badRequest(param, CodeInvalid, nil, "%s is empty", param)
	case len(ids) > t.spec.MaxTokens && t.spec.Truncate:
		return t.truncated(ids)
	case len(ids) > t.spec.MaxTokens:
		return nil, badRequest(param, CodeContextLength, ErrTextTooLong, "%s (%.40q) has %d tokens and the model reads at most %d of a text: shorten it", param, text, len(ids), t.spec.MaxTokens)
	}
	return ids, nil
}

// truncated cuts the ids of a text and keeps the special tokens that end it.
func (t *textInput) truncated(ids []int32) ([]int32, error) {
	around, err := t.tokenizer.Encode("", true)
	if err != nil {
		return nil, fmt.Errorf("encode a text: %w", err)
	}
	end := 0 // how many of the ids are those behind a text
	for end < min(len(around), t.spec.MaxTokens) && ids[len(ids)-1-end] == around[len(around)-1-end] {
		end++
	}
	return append(ids[:t.spec.MaxTokens-end:t.spec.MaxTokens-end], ids[len(ids)-end:]...), nil
}

// tensors pads texts to the longest of them: ids and mask, both [texts, tokens].
func (t *textInput) tensors(texts [][]int32) map[string]Array {
	width := 0
	for _, ids := range texts {
		width = max(width, len(ids))
	}
	shape := []int64{int64(len(texts)), int64(width)}
	ids := Array{Shape: shape, Int64: make([]int64, len(texts)*width)}
	mask := Array{Shape: shape, Int64: make([]int64, len(texts)*width)}
	for i, text := range texts {
		for j := range width {
			at := i*width + j
			ids.Int64[at] = int64(t.spec.Pad)
			if j < len(text) {
				ids.Int64[at], mask.Int64[at] = int64(text[j]), 1
			}
		}
	}
	return map[string]Array{t.spec.IDs: ids, t.spec.Mask: mask}
}

// Close frees the tokenizer. It is idempotent.
func (t *textInput) Close() error {
	if t == nil {
		return nil
	}
	return t.tokenizer.Close()
}

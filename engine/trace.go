// Looking into a request: the arrays on its way from pictures to logits, and given arrays in place of pictures. verify
// is built on this; so is finding out where a conversion goes wrong.

package engine

import (
	"slices"
)

// Names that a Trace uses beside those of the graphs' ports.
const (
	ArrayEmbeds      = "inputs_embeds" // [1, prompt tokens, hidden_size], the pictures' rows in place
	ArrayFirstLogits = "logits_first"  // [vocab_size], after the last prompt token
	ArrayLastLogits  = "logits_last"   // [vocab_size], those that the last generated token was drawn from
)

// Array is a row-major float32 array.
type Array struct {
	Shape []int64
	Data  []float32
}

// traceSink collects from the scheduler's goroutine. A nil sink collects nothing.
type traceSink struct {
	embeds      []float32
	first, last []float32
}

func (t *traceSink) embedding(row []float32) {
	if t != nil {
		t.embeds = append(t.embeds, row...)
	}
}

func (t *traceSink) logits(row []float32) {
	if t == nil {
		return
	}
	if t.first == nil {
		t.first = slices.Clone(row)
	}
	t.last = append(t.last[:0], row...)
}

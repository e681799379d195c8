// Looking into a request: the arrays on its way from pictures to logits, and given arrays in place of pictures. verify
// is built on this; so is finding out where a conversion goes wrong.

package engine

import (
	"context"
	"maps"
	"slices"
)

// Names that a Trace uses beside those of the graphs' ports.
const (
	ArrayEmbeds      = "inputs_embeds" // [1, prompt tokens, hidden_size], the pictures' rows in place, as decoder or encoder read them
	ArrayFirstLogits = "logits_first"  // [vocab_size], after the last prompt token
	ArrayPositions   = "position_ids"  // [4, 1, prompt tokens] of integers: place in the sequence, time, row, column
	ArrayLastLogits  = "logits_last"   // [vocab_size], those that the last generated token was drawn from
)

// Array is a row-major array of float32 values or, where Int64 is set, of integers.
type Array struct {
	Shape []int64
	Data  []float32
	Int64 []int64
}

// size returns how many values there are.
func (a Array) size() int { return max(len(a.Data), len(a.Int64)) }

// traceSink collects from the scheduler's goroutine. A nil sink collects nothing.
type traceSink struct {
	embeds      []float32
	first, last []float32
	arrays      map[string]Array // what the encoder made
}

func (t *traceSink) array(name string, a Array) {
	if t == nil {
		return
	}
	if t.arrays == nil {
		t.arrays = map[string]Array{}
	}
	t.arrays[name] = a
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

// TraceOptions say what a Trace runs on.
type TraceOptions struct {
	// Tensors take the place of what the picture recipe would make of the request's pictures: "pixel_values"
	// [tiles, 3, height, width]. The pictures are still there for their number and size. Nil: the recipe's own.
	Tensors map[string]Array
}

// Trace is a request with all that was computed on its way.
type Trace struct {
	Prepared *Prepared
	Result   *Result // nil for a model without a decoder
	// Arrays holds the recipe's tensors, each output of each picture stage, the outputs of the encoder but for keys and
	// values, and the Array… names above.
	Arrays map[string]Array
}

// Trace answers a request like Generate and keeps the arrays on its way. It holds all of them in memory.
func (e *Engine) Trace(ctx context.Context, req Request, opts TraceOptions) (*Trace, error) {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	p, err := e.prepare(ctx, req, opts.Tensors)
	if err != nil {
		return nil, err
	}
	made, err := e.features(ctx, p, keepAll)
	if err != nil {
		return nil, err
	}
	t := &Trace{Prepared: p, Arrays: map[string]Array{}}
	maps.Copy(t.Arrays, made.arrays)
	if e.scheduler == nil {
		return t, nil
	}
	sink := &traceSink{}
	if t.Result, err = e.answer(ctx, req, p, made, 0, sink); err != nil {
		return nil, err
	}
	maps.Copy(t.Arrays, sink.arrays)
	if p.positions != nil {
		t.Arrays[ArrayPositions] = positionArray(p.positions)
	}
	hidden := int64(e.manifest.Decoder.HiddenSize)
	t.Arrays[ArrayEmbeds] = Array{Shape: []int64{1, int64(len(sink.embeds)) / hidden, hidden}, Data: sink.embeds}
	t.Arrays[ArrayFirstLogits] = Array{Shape: []int64{int64(len(sink.first))}, Data: sink.first}
	t.Arrays[ArrayLastLogits] = Array{Shape: []int64{int64(len(sink.last))}, Data: sink.last}
	return t, nil
}

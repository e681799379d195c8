package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"sync/atomic"
	"testing"
)

// fakeStepper is a decoder that computes nothing: a row of logits is a function of the rows in the slot's cache, as
// it would be for a real one. It checks every step against the contract of stepper and of the decoder's ports.
type fakeStepper struct {
	slots, capacity, hidden, vocab int

	input  []float32
	cache  [][]float32 // per slot: the rows so far
	rows   [][]float32 // logits of the last step
	widest int         // most rows with logits in one step
	sizes  []int       // tokens of each step
	steps  atomic.Int64

	fail   func(s *step) error // called before the step, when set
	logit  func(cache []float32, id int) float32
	broken error // first violation of the contract
}

func newFakeStepper(slots, capacity, hidden, vocab int) *fakeStepper {
	f := &fakeStepper{slots: slots, capacity: capacity, hidden: hidden, vocab: vocab, cache: make([][]float32, slots), rows: make([][]float32, slots+mostDrafts)}
	for i := range f.cache {
		f.cache[i] = make([]float32, 0, capacity*hidden)
	}
	for i := range f.rows {
		f.rows[i] = make([]float32, vocab)
	}
	f.input = make([]float32, 0, slots*capacity*hidden)
	f.logit = hashedLogit
	return f
}

// hashedLogit spreads logits over −8..8 by everything in the cache.
func hashedLogit(cache []float32, id int) float32 {
	h := fnv.New64a()
	for _, v := range cache {
		b := math.Float32bits(v)
		h.Write([]byte{byte(b), byte(b >> 8), byte(b >> 16), byte(b >> 24)})
	}
	h.Write([]byte{byte(id), byte(id >> 8), 1})
	return float32(h.Sum64()%1601)/100 - 8
}

func (f *fakeStepper) embeds(tokens int) []float32 {
	f.input = f.input[:tokens*f.hidden]
	return f.input
}

func (f *fakeStepper) run(ctx context.Context, s *step) error {
	f.steps.Add(1)
	if f.fail != nil {
		if err := f.fail(s); err != nil {
			return err
		}
	}
	if err := f.check(s); err != nil {
		if f.broken == nil {
			f.broken = err
		}
		return err
	}
	at, row, wanted := 0, 0, 0
	for b := range s.slots {
		slot := s.first + b
		cache := f.cache[slot][:int(s.past[b])*f.hidden]
		for range s.fresh[b] {
			cache = append(cache, f.input[at:at+f.hidden]...)
			at += f.hidden
			if wanted < len(s.wanted) && s.wanted[wanted] == int64(row) {
				for id := range f.vocab {
					f.rows[wanted][id] = f.logit(cache, id)
				}
				wanted++
			}
			row++
		}
		f.cache[slot] = cache // of an idle slot too: what lies behind its past may be overwritten by padding
	}
	f.widest = max(f.widest, len(s.wanted))
	return ctx.Err()
}

func (f *fakeStepper) check(s *step) error {
	if s.first < 0 || s.slots < 1 || s.first+s.slots > f.slots || len(s.past) != s.slots || len(s.fresh) != s.slots {
		return fmt.Errorf("step of slots %d+%d of %d", s.first, s.slots, f.slots)
	}
	tokens, longest := 0, 0
	for b := range s.slots {
		tokens += int(s.fresh[b])
		longest = max(longest, int(s.fresh[b]))
	}
	if tokens == 0 || tokens != s.tokens || longest != s.sequence || len(f.input) != tokens*f.hidden {
		return fmt.Errorf("step of %d tokens, %d the longest: says %d and %d, with %d values", tokens, longest, s.tokens, s.sequence, len(f.input))
	}
	for b := range s.slots {
		if s.fresh[b] > 0 && int(s.past[b])+s.sequence > f.capacity {
			return fmt.Errorf("slot %d: %d cached and a step of %d exceed %d", s.first+b, s.past[b], s.sequence, f.capacity)
		}
		if have := len(f.cache[s.first+b]) / f.hidden; int(s.past[b]) > have {
			return fmt.Errorf("slot %d: the step says %d cached, the cache has %d", s.first+b, s.past[b], have)
		}
	}
	for _, w := range s.wanted {
		if w < 0 || int(w) >= tokens {
			return fmt.Errorf("logits of row %d of %d", w, tokens)
		}
	}
	if s.ropeLength > 0 && s.slots != 1 {
		return errors.New("a step with its own rotary tables has several slots")
	}
	return nil
}

func (f *fakeStepper) copyCache(from, to, first, n int) error {
	if first > len(f.cache[to])/f.hidden || first+n > len(f.cache[from])/f.hidden {
		return fmt.Errorf("copy of tokens %d+%d from slot %d, which has %d, to slot %d, which has %d", first, n, from, len(f.cache[from])/f.hidden, to, len(f.cache[to])/f.hidden)
	}
	f.cache[to] = append(f.cache[to][:first*f.hidden], f.cache[from][first*f.hidden:(first+n)*f.hidden]...)
	return nil
}

func (f *fakeStepper) logits(i int) []float32 { return f.rows[i] }

// embedID is the embedding of the tests: the id, then zeros.
func embedID(dst []float32, id int32) error {
	clear(dst)
	dst[0] = float32(id)
	return nil
}

// plainText turns id 65 into "A" and so on, and holds nothing back.
type plainText struct{}

func (plainText) Push(id int32) string { return pieceOf(id) }
func (plainText) Flush() string        { return "" }

var pieces = func() (p [1024]string) {
	for i := range p {
		p[i] = string(rune('A' + i%26))
	}
	return p
}()

func pieceOf(id int32) string { return pieces[id] }

// newTestSequence returns a sequence over a prompt of ids; image tokens are none.
func newTestSequence(ctx context.Context, vocab int, prompt []int32, maxNew int, s Sampling, eos ...int32) *sequence {
	ids := make([]int32, len(prompt), len(prompt)+maxNew)
	copy(ids, prompt)
	return &sequence{
		ctx: ctx, ids: ids, prompt: len(prompt), maxNew: maxNew, imageToken: -1, eos: eos,
		sampler: newSampler(s, vocab, len(prompt)+maxNew), text: plainText{}, piece: pieceOf,
		answer: make([]byte, 0, 8*maxNew),
	}
}

// alone is what a sequence must give whatever its company: each token drawn from the logits of all ids before it.
func alone(t testing.TB, f *fakeStepper, prompt []int32, features []float32, imageToken int32, maxNew int, s Sampling, eos ...int32) []int32 {
	q, w := newSampler(s, f.vocab, len(prompt)+maxNew), newSamplerScratch(f.vocab)
	var cache []float32
	row := make([]float32, f.hidden)
	for _, id := range prompt {
		q.observe(id)
		if id == imageToken {
			cache = append(cache, features[:f.hidden]...)
			features = features[f.hidden:]
			continue
		}
		embedID(row, id)
		cache = append(cache, row...)
	}
	var out []int32
	logits := make([]float32, f.vocab)
	for len(out) < maxNew {
		for id := range logits {
			logits[id] = f.logit(cache, id)
		}
		id, err := q.next(logits, w)
		if err != nil {
			t.Fatal(err)
		}
		q.observe(id)
		out = append(out, id)
		for _, e := range eos {
			if id == e {
				return out
			}
		}
		embedID(row, id)
		cache = append(cache, row...)
	}
	return out
}

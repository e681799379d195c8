// One run of the decoder: which slots it covers and how many new tokens each of them brings.

package engine

import (
	"context"

	"glimpse/preprocess"
)

// stepper runs steps of a decoder whose keys and values live in an arena of slots. The scheduler's goroutine is its
// only user. The implementation over ONNX Runtime is decoder; tests have one that computes nothing.
type stepper interface {
	// embeds returns the packed [tokens, hidden_size] input of the next step for the caller to fill.
	embeds(tokens int) []float32
	// run runs the step on the rows written to embeds. The caches of its slots grow by their new tokens, in place.
	run(ctx context.Context, s *step) error
	// logits returns the row of vocab_size logits of the i-th of s.wanted. It is valid until the next run.
	logits(i int) []float32
	// copyCache copies n tokens, from the given one on, from the cache of one slot to the same places of another's.
	copyCache(from, to, first, n int) error
}

// step is the layout of one run. Slots first..first+slots−1 take part; slot first+b has past[b] tokens in its cache and
// brings fresh[b] new ones, 0 for a slot that is idle or waits. Packed rows are slot by slot.
type step struct {
	first, slots int
	past, fresh  []int32
	tokens       int     // sum of fresh
	sequence     int     // max of fresh
	wanted       []int64 // packed rows whose logits are asked for
	// ropeLength is 0 where the common rotary tables hold. Otherwise the tables are those of a sequence of this length
	// (dynamic NTK scaling beyond the original context), and the step has one slot.
	ropeLength int
	// positions are the packed tokens', empty where they are places in the sequence.
	positions []preprocess.Position
	// spans are the packed tokens', empty where the decoder does not ask for them.
	spans []span
	// deep says which packed tokens get rows added behind the decoder's first layers.
	deep []deepRow
}

// deepRow is a packed token and the row of each level that belongs to it.
type deepRow struct {
	token  int
	levels [][]float32 // [rows, hidden_size] each
	row    int
}

func newStep(slots int) *step {
	return &step{past: make([]int32, 0, slots), fresh: make([]int32, 0, slots), wanted: make([]int64, 0, slots+mostDrafts)}
}

// reset empties the step and puts its first slot at first.
func (s *step) reset(first int) {
	clear(s.deep) // the rows are their requests'
	*s = step{first: first, past: s.past[:0], fresh: s.fresh[:0], wanted: s.wanted[:0], positions: s.positions[:0], spans: s.spans[:0], deep: s.deep[:0]}
}

// add appends the next slot. The logits of the last so many of its new tokens are wanted.
func (s *step) add(past, fresh, wanted int) {
	s.slots++
	s.past = append(s.past, int32(past))
	s.fresh = append(s.fresh, int32(fresh))
	s.tokens += fresh
	s.sequence = max(s.sequence, fresh)
	for row := s.tokens - wanted; row < s.tokens; row++ {
		s.wanted = append(s.wanted, int64(row))
	}
}

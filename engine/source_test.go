package engine

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeEncoder is a sourceEncoder that remembers what it was given, by slot.
type fakeEncoder struct {
	hidden int
	input  []float32
	runs   [][]float32
	fail   func(input []float32) error
	freed  []int
}

func (f *fakeEncoder) release(slot int) { f.freed = append(f.freed, slot) }

func (f *fakeEncoder) embeds(tokens int) []float32 {
	f.input = make([]float32, tokens*f.hidden)
	return f.input
}

func (f *fakeEncoder) run(_ context.Context, _ int, _ *traceSink) error {
	f.runs = append(f.runs, f.input)
	if f.fail != nil {
		return f.fail(f.input)
	}
	return nil
}

// A source is read once, with the pictures' rows in place, before the start token; one that fails ends its request alone.
func TestSourcesAreEncodedOnce(t *testing.T) {
	const vocab, hidden = 16, 2
	broken := errors.New("broken")
	stepper := newFakeStepper(2, 32, hidden, vocab)
	enc := &fakeEncoder{hidden: hidden, fail: func(in []float32) error {
		if in[0] == 13 {
			return broken
		}
		return nil
	}}
	d := newScheduler(stepper, schedulerConfig{slotCount: 2, chunk: 4, hidden: hidden, vocab: vocab, embed: embedID, encoder: enc})
	defer d.close()
	start := []int32{0}
	good := newTestSequence(t.Context(), vocab, start, 5, Sampling{})
	good.source, good.imageToken, good.features = []int32{99, 4, 99}, 99, []float32{0.5, 0.25, 0.75, 0.125}
	good.trace = &traceSink{}
	bad := newTestSequence(t.Context(), vocab, start, 5, Sampling{})
	bad.source = []int32{13, 4}
	if err := d.run(bad); !errors.Is(err, broken) {
		t.Errorf("a failing encoder: %v", err)
	}
	if err := d.run(good); err != nil {
		t.Fatal(err)
	}
	rows := []float32{0.5, 0.25, 4, 0, 0.75, 0.125}
	if diff := cmp.Diff([][]float32{{13, 0, 4, 0}, rows}, enc.runs); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(good.trace.embeds, rows) {
		t.Errorf("the trace has %v: the source, and not the start token", good.trace.embeds)
	}
	if diff := cmp.Diff(alone(t, stepper, start, nil, -1, 5, Sampling{}), good.generated()); diff != "" || stepper.broken != nil {
		t.Errorf("%v %s", stepper.broken, diff)
	}
	if !slices.Equal(enc.freed, []int{0, 0}) {
		t.Errorf("released slots %v", enc.freed)
	}
	// Too few feature rows are an error of the request, not a crash.
	short := newTestSequence(t.Context(), vocab, start, 5, Sampling{})
	short.source, short.imageToken = []int32{99}, 99
	if err := d.run(short); err == nil {
		t.Error("an image token without a row was encoded")
	}
}

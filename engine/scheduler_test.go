package engine

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func testScheduler(f *fakeStepper, chunk int) *scheduler {
	return newScheduler(f, schedulerConfig{slotCount: f.slots, chunk: chunk, hidden: f.hidden, vocab: f.vocab, embed: embedID})
}

func randomPrompt(r *rand.Rand, vocab, longest int) []int32 {
	prompt := make([]int32, 1+r.IntN(longest))
	for i := range prompt {
		prompt[i] = int32(r.IntN(vocab))
	}
	return prompt
}

// Many requests at once, of all lengths and settings, some of them cancelled on their way: each gets exactly the tokens
// that it would get alone, and nothing is left behind.
func TestCompanyDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const vocab, hidden, longest, imageToken = 40, 3, 30, 39
		slots := rapid.IntRange(1, 5).Draw(t, "slots")
		chunk := rapid.IntRange(1, 12).Draw(t, "chunk")
		requests := rapid.IntRange(1, 12).Draw(t, "requests")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		f := newFakeStepper(slots, 2*longest+chunk, hidden, vocab)
		d := testScheduler(f, chunk)
		defer d.close()
		var wg sync.WaitGroup
		for i := range requests {
			prompt, maxNew := randomPrompt(r, vocab, longest), 1+r.IntN(longest)
			settings := []Sampling{{}, {Temperature: 1.5, Seed: seed(uint64(i))}, {RepetitionPenalty: 1.3}}[r.IntN(3)]
			eos := int32(r.IntN(vocab))
			var features []float32
			for _, id := range prompt {
				if id == imageToken {
					for range hidden {
						features = append(features, r.Float32())
					}
				}
			}
			cancelAt := math.MaxInt
			if r.IntN(3) == 0 {
				cancelAt = r.IntN(maxNew)
			}
			ctx, cancel := context.WithCancel(context.Background())
			q := newTestSequence(ctx, vocab, prompt, maxNew, settings, eos)
			q.features, q.imageToken = features, imageToken
			var streamed []int32
			q.token = func(tok Token) {
				if streamed = append(streamed, tok.ID); len(streamed) > cancelAt {
					cancel()
				}
			}
			wg.Go(func() {
				defer cancel()
				err := d.run(q)
				want := alone(nil, f, prompt, features, imageToken, maxNew, settings, eos)
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("request %d: %v", i, err)
					return
				}
				if err != nil {
					want = want[:min(len(want), len(streamed))]
				}
				if diff := cmp.Diff(want, streamed); diff != "" {
					t.Errorf("request %d: %s", i, diff)
				}
				if diff := cmp.Diff(want, q.generated()); diff != "" {
					t.Errorf("request %d: %s", i, diff)
				}
			})
		}
		wg.Wait()
		d.close()
		if f.broken != nil {
			t.Error(f.broken)
		}
		if d.active != 0 || len(d.waiting) != 0 {
			t.Errorf("%d slots in use and %d waiting at the end", d.active, len(d.waiting))
		}
	})
}

// gate blocks the decoder until it is opened, so that a test can line requests up.
func gated(f *fakeStepper) (open func()) {
	gate := make(chan struct{})
	f.fail = func(*step) error { <-gate; return nil }
	return sync.OnceFunc(func() { close(gate) })
}

// Requests that decode together share steps: the number of steps is near the longest one's and not their sum.
func TestRowsShareSteps(t *testing.T) {
	f := newFakeStepper(4, 100, 2, 30)
	d := testScheduler(f, 64)
	defer d.close()
	open := gated(f)
	var wg sync.WaitGroup
	for range 4 {
		q := newTestSequence(context.Background(), 30, []int32{1, 2, 3}, 40, Sampling{})
		wg.Go(func() {
			if err := d.run(q); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(10 * time.Millisecond)
	open()
	wg.Wait()
	if n := f.steps.Load(); n > 60 || f.widest != 4 {
		t.Errorf("%d steps of at most %d rows for four answers of 40 tokens", n, f.widest)
	}
}

// While a long prompt is read in chunks, a running stream gets a token with every chunk, in the same step.
func TestLongPromptsDoNotStallStreams(t *testing.T) {
	f := newFakeStepper(2, 400, 2, 30)
	most := 0
	f.fail = func(s *step) error {
		most = max(most, s.tokens)
		return nil
	}
	d := testScheduler(f, 10)
	defer d.close()
	long := newTestSequence(context.Background(), 30, make([]int32, 200), 1, Sampling{})
	var wg sync.WaitGroup
	var at []int64 // the step of each token of the stream
	stream := newTestSequence(context.Background(), 30, []int32{1}, 60, Sampling{})
	stream.token = func(Token) {
		if at = append(at, f.steps.Load()); len(at) == 5 {
			wg.Go(func() {
				if err := d.run(long); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Go(func() {
		if err := d.run(stream); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	for i := 1; i < len(at); i++ {
		if at[i]-at[i-1] > 1 {
			t.Errorf("%d steps between tokens %d and %d of the stream", at[i]-at[i-1], i-1, i)
		}
	}
	if most < 2 || most > 11 {
		t.Errorf("a step of %d tokens: the prompt was not read in chunks of 10 beside the stream's token", most)
	}
}

func TestLowestSlotFirst(t *testing.T) {
	f := newFakeStepper(3, 50, 2, 30)
	d := testScheduler(f, 8)
	defer d.close()
	for range 3 { // one after another: always slot 0
		q := newTestSequence(context.Background(), 30, []int32{1}, 2, Sampling{})
		if err := d.run(q); err != nil || q.slot != 0 {
			t.Errorf("slot %d, %v", q.slot, err)
		}
	}
}

func TestCancellation(t *testing.T) {
	f := newFakeStepper(1, 1000, 2, 30)
	d := testScheduler(f, 8)
	defer d.close()
	why := errors.New("the client went away")
	ctx, cancel := context.WithCancelCause(context.Background())
	running := newTestSequence(ctx, 30, []int32{1}, 900, Sampling{})
	waiting := newTestSequence(ctx, 30, []int32{1}, 900, Sampling{})
	n := 0
	started := make(chan struct{})
	running.token = func(Token) {
		if n++; n == 5 {
			close(started)
			time.Sleep(10 * time.Millisecond) // lets the other one line up
			cancel(why)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.run(running); !errors.Is(err, why) {
			t.Errorf("the running request: %v", err)
		}
	})
	<-started
	wg.Go(func() {
		if err := d.run(waiting); !errors.Is(err, why) {
			t.Errorf("the waiting request: %v", err)
		}
	})
	wg.Wait()
	if n != 5 {
		t.Errorf("%d tokens after a cancellation at 5", n)
	}
	after := newTestSequence(context.Background(), 30, []int32{1}, 3, Sampling{})
	if err := d.run(after); err != nil || len(after.generated()) != 3 {
		t.Errorf("the next request: %v, %v", after.generated(), err)
	}
	if err := d.run(newTestSequence(ctx, 30, []int32{1}, 1, Sampling{})); !errors.Is(err, why) {
		t.Errorf("a request cancelled from the start: %v", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	f := newFakeStepper(1, 10_000, 2, 30)
	d := testScheduler(f, 8)
	started := make(chan struct{})
	first := newTestSequence(context.Background(), 30, []int32{1}, 9_000, Sampling{})
	once := sync.OnceFunc(func() { close(started) })
	first.token = func(Token) { once(); time.Sleep(time.Millisecond) }
	var wg sync.WaitGroup
	for _, q := range []*sequence{first, newTestSequence(context.Background(), 30, []int32{2}, 5, Sampling{})} {
		wg.Go(func() {
			if err := d.run(q); !errors.Is(err, ErrClosed) {
				t.Errorf("a request of a closed engine: %v", err)
			}
		})
		<-started
	}
	time.Sleep(5 * time.Millisecond)
	d.close()
	wg.Wait()
	if err := d.run(first); !errors.Is(err, ErrClosed) {
		t.Errorf("a request after the end: %v", err)
	}
	d.close() // again
}

// An error of the decoder ends the requests of that step; the others and the next go on.
func TestDecoderErrors(t *testing.T) {
	f := newFakeStepper(2, 100, 2, 30)
	boom := errors.New("boom")
	f.fail = func(s *step) error {
		if s.tokens == 7 {
			return boom
		}
		return nil
	}
	d := testScheduler(f, 8)
	defer d.close()
	if err := d.run(newTestSequence(context.Background(), 30, make([]int32, 7), 3, Sampling{})); !errors.Is(err, boom) {
		t.Errorf("the failing request: %v", err)
	}
	if err := d.run(newTestSequence(context.Background(), 30, make([]int32, 6), 3, Sampling{})); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

func TestNaNLogitsAreAnError(t *testing.T) {
	f := newFakeStepper(1, 100, 2, 30)
	f.logit = func(cache []float32, id int) float32 {
		if len(cache) >= 2*6 && id == 3 {
			return float32(math.NaN())
		}
		return hashedLogit(cache, id)
	}
	d := testScheduler(f, 8)
	defer d.close()
	q := newTestSequence(context.Background(), 30, []int32{1, 2, 3}, 20, Sampling{})
	if err := d.run(q); !errors.Is(err, ErrBadLogits) || len(q.generated()) != 3 {
		t.Errorf("%v after %d tokens", err, len(q.generated()))
	}
}

// Beyond the original context of a model with dynamic NTK scaling a sequence steps alone, with the tables of its length;
// a prompt uses those of its whole length in all its chunks.
func TestDynamicRopeStepsAlone(t *testing.T) {
	f := newFakeStepper(2, 100, 2, 30)
	var mu sync.Mutex
	lengths := map[int]int{}
	f.fail = func(s *step) error {
		mu.Lock()
		defer mu.Unlock()
		lengths[s.ropeLength]++
		return nil
	}
	d := newScheduler(f, schedulerConfig{slotCount: 2, chunk: 8, hidden: 2, vocab: 30, embed: embedID, ropeLimit: 16})
	defer d.close()
	for _, c := range []struct {
		prompt, maxNew int
		want           map[int]int
	}{
		{20, 3, map[int]int{20: 3, 21: 1, 22: 1}}, // three chunks, then a token at a time
		{14, 5, map[int]int{0: 2 + 2, 17: 1, 18: 1}},
	} {
		clear(lengths)
		if err := d.run(newTestSequence(context.Background(), 30, make([]int32, c.prompt), c.maxNew, Sampling{})); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, lengths); diff != "" {
			t.Errorf("prompt of %d: %s", c.prompt, diff)
		}
	}
	// In company: same tokens as without.
	var wg sync.WaitGroup
	for i := range 4 {
		prompt := randomPrompt(rand.New(rand.NewPCG(uint64(i), 0)), 30, 25)
		q := newTestSequence(context.Background(), 30, prompt, 20, Sampling{})
		wg.Go(func() {
			if err := d.run(q); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(alone(t, f, prompt, nil, -1, 20, Sampling{}), q.generated()); diff != "" {
				t.Error(diff)
			}
		})
	}
	wg.Wait()
	if f.broken != nil {
		t.Error(f.broken)
	}
}

func TestFinishReasons(t *testing.T) {
	f := newFakeStepper(1, 100, 2, 30)
	f.logit = func(cache []float32, id int) float32 { // counts upwards: after n rows comes token n
		if len(cache)/2 == id {
			return 1
		}
		return 0
	}
	d := testScheduler(f, 8)
	defer d.close()
	for _, c := range []struct {
		name    string
		maxNew  int
		eos     []int32
		stops   []string
		finish  string
		answer  string
		lastID  int32
		letters int
	}{
		{"length", 4, nil, nil, FinishLength, "BCDE", 4, 4},
		{"EOS", 9, []int32{20, 3}, nil, FinishStop, "BC", 3, 3},
		{"EOS as the last token allowed", 3, []int32{3}, nil, FinishStop, "BC", 3, 3},
		{"stop string over three tokens", 9, nil, []string{"CDE"}, FinishStop, "B", 4, 4},
		{"the start of a stop string at the end", 3, nil, []string{"DE"}, FinishLength, "BCD", 3, 3},
		{"the start of a stop string before EOS", 9, []int32{4}, []string{"DX"}, FinishStop, "BCD", 4, 4},
	} {
		q := newTestSequence(context.Background(), 30, []int32{0}, c.maxNew, Sampling{}, c.eos...)
		q.stopper.stops = c.stops
		var streamed string
		var last Token
		q.token = func(tok Token) { streamed += tok.Text; last = tok }
		if err := d.run(q); err != nil {
			t.Fatal(err)
		}
		if q.finish != c.finish || string(q.answer) != c.answer || streamed != c.answer || len(q.generated()) != c.letters || last.ID != c.lastID {
			t.Errorf("%s: %s after %q (streamed %q), ids %v", c.name, q.finish, q.answer, streamed, q.generated())
		}
		if last.Stop != (c.finish == FinishStop) {
			t.Errorf("%s: the last token says stop %v", c.name, last.Stop)
		}
	}
}

// BenchmarkDecodeStep is a step of four rows in steady state, without the decoder's arithmetic: it must not allocate.
func BenchmarkDecodeStep(b *testing.B) {
	const vocab = 1000
	f := newFakeStepper(4, 1<<12, 64, vocab)
	f.logit = func(cache []float32, id int) float32 { return float32((len(cache)*7919 + id*104729) % 997) }
	d := &scheduler{
		schedulerConfig: schedulerConfig{slotCount: 4, chunk: 64, hidden: 64, vocab: vocab, embed: embedID},
		stepper:         f, slots: make([]*sequence, 4), step: newStep(4), take: make([]int, 4), scratch: newSamplerScratch(vocab),
		ctx: context.Background(),
	}
	fill := func() {
		for i := range d.slots {
			settings := []Sampling{{}, {Temperature: 0.8, TopP: 0.9, TopK: 50, RepetitionPenalty: 1.1}}[i%2]
			q := newTestSequence(context.Background(), vocab, []int32{1}, 1<<11, settings)
			q.done = make(chan struct{})
			q.token = func(Token) {}
			q.slot, d.slots[i] = i, q
		}
		d.active = 4
		d.turn()
	}
	fill()
	b.ReportAllocs()
	for b.Loop() {
		if d.slots[0] == nil || len(d.slots[0].generated()) > 1<<11-8 {
			b.StopTimer()
			fill()
			b.StartTimer()
		}
		d.turn()
	}
}

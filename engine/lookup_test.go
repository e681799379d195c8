package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// repetitive is a decoder that says again what it said: logits follow from the last two tokens, and now and then from all.
func repetitive(cache []float32, id int) float32 {
	if len(cache)%(7*3) == 0 {
		return hashedLogit(cache, id)
	}
	return hashedLogit(cache[max(0, len(cache)-2*3):], id)
}

// Whatever is guessed, right or wrong, by one or several sequences, sampled, penalized, constrained, stopped, cancelled: the
// answers are those of an engine that guesses nothing.
func TestSpeculationDoesNotMatter(t *testing.T) {
	var accepted, drafted uint64
	rapid.Check(t, func(t *rapid.T) {
		const vocab, hidden, longest = 12, 3, 40
		slots := rapid.IntRange(1, 4).Draw(t, "slots")
		chunk := rapid.IntRange(1, 20).Draw(t, "chunk")
		cfg := schedulerConfig{
			slotCount: slots, chunk: chunk, hidden: hidden, vocab: vocab, embed: embedID,
			speculation: rapid.SampledFrom([]int{SpeculationAuto, 1, 3, mostDrafts}).Draw(t, "speculation"),
			wideRows:    rapid.SampledFrom([]int{0, 0, 2, 5}).Draw(t, "wide rows"),
			ropeLimit:   rapid.SampledFrom([]int{0, 0, 30}).Draw(t, "rope limit"),
			prefixCache: rapid.Bool().Draw(t, "prefix cache"),
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		f := newFakeStepper(slots, 3*longest+chunk, hidden, vocab)
		f.logit = repetitive
		f.fail = func(s *step) error {
			active := 0
			for _, n := range s.fresh {
				active += int(min(n, 1))
			}
			if cfg.wideRows > 0 && s.tokens == len(s.wanted) && s.tokens >= cfg.wideRows && active < cfg.wideRows {
				return errors.New("guesses made the step one of the other graph")
			}
			return nil
		}
		d := newScheduler(f, cfg)
		defer d.close()
		var wg sync.WaitGroup
		for i := range rapid.IntRange(1, 8).Draw(t, "requests") {
			prompt, maxNew := randomPrompt(r, vocab, longest), 1+r.IntN(2*longest)
			settings := []Sampling{{}, {}, {Temperature: 0.3, Seed: seed(uint64(i))}, {RepetitionPenalty: 1.1}, {FrequencyPenalty: 0.1, Temperature: 0.2, TopP: 0.9, Seed: seed(9)}}[r.IntN(5)]
			if settings.FrequencyPenalty != 0 {
				settings.FrequencyPenalty = 0 // alone counts no answers
			}
			eos := int32(r.IntN(3 * vocab))
			ctx, cancel := context.WithCancel(context.Background())
			cancelAt := 1 << 20
			if r.IntN(5) == 0 {
				cancelAt = r.IntN(maxNew)
			}
			q := newTestSequence(ctx, vocab, prompt, maxNew, settings, eos)
			var streamed []int32
			q.token = func(tok Token) {
				if streamed = append(streamed, tok.ID); len(streamed) > cancelAt {
					cancel()
				}
			}
			wg.Go(func() {
				defer cancel()
				err := d.run(q)
				want := alone(nil, f, prompt, nil, -1, maxNew, settings, eos)
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("request %d: %v", i, err)
					return
				}
				if err != nil {
					want = want[:min(len(want), len(streamed))]
				}
				if diff := cmp.Diff(want, q.generated()); diff != "" {
					t.Errorf("request %d, %d of %d guesses right: %s", i, q.accepted, q.drafted, diff)
				}
				if diff := cmp.Diff(q.generated(), streamed); diff != "" {
					t.Errorf("request %d was streamed otherwise: %s", i, diff)
				}
			})
		}
		wg.Wait()
		d.close()
		if f.broken != nil {
			t.Error(f.broken)
		}
		s := d.lookup.snapshot()
		accepted, drafted = accepted+s.Accepted, drafted+s.Drafted
	})
	if accepted == 0 || drafted == accepted {
		t.Errorf("%d of %d guesses were right in all of this: one of the ways was not tested", accepted, drafted)
	}
}

// parity is a constraint: even and odd ids by turns, at most 30 of them.
type parity struct {
	mask []uint32
	n    int
}

func (p *parity) Mask() ([]uint32, error) {
	p.mask[0] = 0x55555555 << (p.n % 2)
	return p.mask, nil
}

func (p *parity) Commit(id int32) (bool, error) {
	if int(id)%2 != p.n%2 {
		return false, errors.New("not allowed")
	}
	p.n++
	return p.n == 30, nil
}

// The settings that look at the answer so far see it token by token.
func TestSpeculationWithConstraintsAndPenalties(t *testing.T) {
	for name, settings := range map[string]Sampling{
		"greedy": {}, "counted": {FrequencyPenalty: 0.4, PresencePenalty: 0.2}, "sampled": {Temperature: 0.4, FrequencyPenalty: 0.2, Seed: seed(5)},
	} {
		for _, constrained := range []bool{false, true} {
			var want []int32
			for _, mode := range []int{0, mostDrafts} {
				f := newFakeStepper(1, 200, 3, 12)
				f.logit = repetitive
				d := newScheduler(f, schedulerConfig{slotCount: 1, chunk: 32, hidden: 3, vocab: 12, embed: embedID, speculation: mode})
				q := newTestSequence(context.Background(), 12, []int32{1, 2, 3, 4, 5, 1, 2, 3}, 60, settings)
				if constrained {
					q.constraint = &parity{mask: make([]uint32, 1)}
				}
				if err := d.run(q); err != nil {
					t.Fatal(err)
				}
				d.close()
				if mode == 0 {
					want = slices.Clone(q.generated())
					continue
				}
				if diff := cmp.Diff(want, q.generated()); diff != "" || q.drafted == 0 {
					t.Errorf("%s, constrained %v, %d guesses: %s", name, constrained, q.drafted, diff)
				}
			}
		}
	}
}

func TestGuess(t *testing.T) {
	for _, tc := range []struct {
		ids  []int32
		most int
		want []int32
	}{
		{[]int32{1, 2, 3, 4, 9, 1, 2}, 3, []int32{3, 4, 9}},
		{[]int32{1, 2, 3, 4, 9, 8, 2}, 3, nil},                                      // one token alone
		{[]int32{1, 2, 3, 7, 1, 2, 4, 7, 1, 2}, 1, []int32{4}},                      // the last time, where several are as long
		{[]int32{5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2}, 2, []int32{3, 6}},                // the longer one before the later one
		{[]int32{7, 8, 7, 8}, 5, []int32{7, 8, 7, 8, 7}},                            // what repeats itself goes on
		{[]int32{1, 2, 3, 39, 4, 1, 2}, 4, []int32{3}},                              // a picture is not guessed
		{[]int32{1, 2, 3, 1, 2}, 0, nil}, {[]int32{1}, 4, nil}, {[]int32{}, 4, nil}, // nothing to find
	} {
		q := &sequence{ids: tc.ids, imageToken: 39}
		if n := q.guess(tc.most); n != len(tc.want) || !slices.Equal(q.draft, tc.want) {
			t.Errorf("%v: guessed %v, want %v", tc.ids, q.draft, tc.want)
		}
	}
}

// Guesses are made where they are worth their time, by what steps took and what was right before.
func TestChoose(t *testing.T) {
	measured := func(costs map[int]float64) *lookup {
		l := &lookup{mode: SpeculationAuto}
		for tokens, ms := range costs {
			for range 10 {
				l.note(tokens, time.Duration(ms*float64(time.Millisecond)))
			}
		}
		return l
	}
	flat := map[int]float64{1: 10, 2: 10.1, 3: 10.2, 5: 10.5, 9: 11}
	steep := map[int]float64{1: 10, 2: 18, 3: 27, 5: 45, 9: 80}
	for _, tc := range []struct {
		name    string
		costs   map[int]float64
		most    int
		hitRate float64
		want    int
	}{
		{"free rows, good guesses", flat, 8, 0.9, 8},
		{"free rows, fewer guesses there", flat, 3, 0.9, 2},
		{"free rows, poor guesses", flat, 8, 0.1, 1},
		{"free rows, wrong guesses", flat, 8, 0.01, 0},
		{"rows at full price", steep, 8, 0.7, 0},
		{"rows at full price, sure guesses", steep, 8, 1, 8},
		{"nothing measured", nil, 8, 1, 0},
		{"unknown sizes are tried", map[int]float64{1: 10}, 8, 0.9, 8},
	} {
		if n, _ := measured(tc.costs).choose(tc.most, 1, 1, tc.hitRate); n != tc.want {
			t.Errorf("%s: %d guesses, want %d", tc.name, n, tc.want)
		}
	}
	l := measured(steep)
	for range costLifetime { // a reading of a busy machine does not hold for ever
		l.note(1, 10*time.Millisecond)
	}
	if n, _ := l.choose(8, 1, 1, 0.9); n == 0 {
		t.Error("old readings still count")
	}
}

// In steady state guessing allocates nothing.
func TestGuessingAllocatesNothing(t *testing.T) {
	f := newFakeStepper(2, 1<<12, 3, 12)
	f.logit = func(cache []float32, id int) float32 { return float32((len(cache)/3*5 + id*7) % 12) }
	d := &scheduler{
		schedulerConfig: schedulerConfig{slotCount: 2, chunk: 64, hidden: 3, vocab: 12, embed: embedID},
		stepper:         f, slots: make([]*sequence, 2), step: newStep(2), take: make([]int, 2), scratch: newSamplerScratch(12), pace: newPace(64),
		ctx: context.Background(),
	}
	d.lookup.mode = mostDrafts
	for i := range d.slots {
		q := newTestSequence(context.Background(), 12, []int32{1}, 1<<11, Sampling{})
		q.done, q.token, q.admitted = make(chan struct{}), func(Token) {}, uint64(i+1)
		q.slot, d.slots[i] = i, q
	}
	d.active = 2
	for range 40 {
		d.turn()
	}
	if n := testing.AllocsPerRun(50, d.turn); n != 0 {
		t.Errorf("%v allocations a step", n)
	}
	if d.lookup.accepted.Load() == 0 {
		t.Errorf("nothing was guessed: %v", d.slots[0].ids)
	}
}

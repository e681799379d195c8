package engine

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// StepAllocs returns the allocations of one decode step of an idle engine, all slots together, the way the scheduler
// runs it.
func StepAllocs(e *Engine) float64 {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := newStep(e.scheduler.slotCount)
	var err error
	n := testing.AllocsPerRun(50, func() {
		s.reset(0)
		for range e.scheduler.slotCount {
			s.add(7, 1, 1)
		}
		clear(e.decoder.embeds(s.tokens))
		if runErr := e.decoder.run(ctx, s); runErr != nil {
			err = runErr
		}
		e.decoder.logits(0)
	})
	if err != nil {
		panic(err)
	}
	return n
}

// MixedSteps runs three prompts on an idle engine of three slots through the scheduler's own step builder: first alone,
// then together, a prompt chunk of one slot, one token of another and nothing of the third in the same step. It returns
// the logits after each prompt both ways.
func MixedSteps(e *Engine, prompts [3][]int32) (alone, mixed [3][]float32) {
	d := &scheduler{
		schedulerConfig: e.scheduler.schedulerConfig, stepper: e.decoder, ctx: context.Background(),
		slots: make([]*sequence, 3), step: newStep(3), take: make([]int, 3), scratch: e.scheduler.scratch,
	}
	start := func(i int) *sequence {
		ids := make([]int32, len(prompts[i]), len(prompts[i])+1)
		copy(ids, prompts[i])
		q := &sequence{ctx: d.ctx, ids: ids, prompt: len(ids), maxNew: 1, imageToken: -1, slot: i, text: silent{},
			sampler: newSampler(Sampling{}, d.vocab, cap(ids)), trace: &traceSink{}, done: make(chan struct{})}
		d.slots[i] = q
		d.active++
		return q
	}
	for i := range prompts {
		q := start(i)
		d.only(i, len(prompts[i]))
		alone[i] = q.trace.first
	}
	// Slot 1 brings all but its last token, slot 0 starts; then slot 2 joins with a long chunk while slot 1 ends; slot 0
	// rests in between and ends last.
	qs := [3]*sequence{start(0), start(1), start(2)}
	n := [3]int{len(prompts[0]), len(prompts[1]), len(prompts[2])}
	for _, take := range [][3]int{{2, n[1] - 1, 0}, {0, 1, n[2] - 2}, {n[0] - 2, 0, 1}, {0, 0, 1}} {
		copy(d.take, take[:])
		d.advance(0, 3)
	}
	for i, q := range qs {
		if q.err != nil {
			panic(q.err)
		}
		mixed[i] = q.trace.first
	}
	return alone, mixed
}

type silent struct{}

func (silent) Push(int32) string { return "" }
func (silent) Flush() string     { return "" }

// StageRuns counts the runs of the picture graphs since the engine was opened.
func StageRuns(e *Engine) int64 { return e.stages.runs.Load() }

// StepCosts are the milliseconds that steps of so many tokens were found to take.
func StepCosts(e *Engine) string {
	var out string
	for n, c := range e.scheduler.lookup.cost {
		if c.read > 0 {
			out += fmt.Sprintf("%d: %.1f ms  ", n, 1e3*c.seconds)
		}
	}
	return out
}

// StepTime runs a step of one slot of an idle engine, of so many tokens behind others, all of whose logits are wanted.
func StepTime(e *Engine, past, tokens int) (time.Duration, error) {
	s := newStep(1)
	s.add(past, tokens, tokens)
	clear(e.decoder.embeds(tokens))
	start := time.Now()
	err := e.decoder.run(context.Background(), s)
	return time.Since(start), err
}

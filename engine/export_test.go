package engine

import (
	"context"
	"testing"
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
			s.add(7, 1, true)
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

package engine

import (
	"testing"
	"time"
)

// On a machine where a step costs base plus so much a token, chunks settle where a shared step takes nearly stretch times
// what a step of answers alone takes, and follow when the machine changes.
func TestPaceKeepsStreamsFlowing(t *testing.T) {
	p := newPace(256)
	if p.budget(0) != 256 {
		t.Errorf("a prompt alone gets %d tokens", p.budget(0))
	}
	for _, machine := range []struct{ row, wide, token time.Duration }{
		{30 * time.Millisecond, 40 * time.Millisecond, 300 * time.Microsecond},
		{30 * time.Millisecond, 32 * time.Millisecond, 100 * time.Microsecond},
		{30 * time.Millisecond, 45 * time.Millisecond, 900 * time.Microsecond},
	} {
		var took time.Duration
		for range 30 {
			p.note(2, 0, machine.row)
			n := p.budget(2)
			took = machine.wide + time.Duration(n)*machine.token
			p.note(2, n, took)
		}
		if limit := 2 * machine.row; took > limit || took < limit*3/4 && p.budget(2) < 256 {
			t.Errorf("%+v: steps with %d tokens of a prompt take %v", machine, p.budget(2), took)
		}
	}
	// However slow a shared step is, the prompt goes on.
	for range 30 {
		p.note(2, p.budget(2), time.Second)
	}
	if p.budget(2) != leastChunk {
		t.Errorf("%d tokens where steps are far too slow", p.budget(2))
	}
}

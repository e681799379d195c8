// How full the decoder is, for metrics.

package engine

import "sync/atomic"

// SlotStats say how full the decoder is at the moment.
type SlotStats struct {
	Slots, Active int64 // requests that decode together at most, and now
	Waiting       int64 // requests that wait for a slot
	// Tokens are the tokens of active requests in the KV cache, Kept those that free slots hold for prompts to come, and Capacity
	// is what all slots hold together.
	Tokens, Kept, Capacity int64
}

// slotGauges are SlotStats that the scheduler writes after each of its turns while others read.
type slotGauges struct{ active, waiting, tokens, kept atomic.Int64 }

// note looks at the slots.
func (g *slotGauges) note(d *scheduler) {
	tokens, kept := 0, 0
	for i, q := range d.slots {
		if q != nil {
			tokens += q.cached
		} else if d.kept != nil {
			kept += len(d.kept[i].ids)
		}
	}
	g.active.Store(int64(d.active))
	g.waiting.Store(int64(len(d.waiting)))
	g.tokens.Store(int64(tokens))
	g.kept.Store(int64(kept))
}

func (e *Engine) slotStats() SlotStats {
	g := &e.scheduler.gauges
	slots := int64(e.scheduler.slotCount)
	return SlotStats{Slots: slots, Active: g.active.Load(), Waiting: g.waiting.Load(), Tokens: g.tokens.Load(), Kept: g.kept.Load(), Capacity: slots * int64(e.limit)}
}

// What an engine counts, for metrics.

package engine

// Stats are counters since the model was opened, but for what is said to be of now. All fields travel between processes.
type Stats struct {
	Vision VisionStats
	Prefix PrefixStats
	Lookup LookupStats
	Slots  SlotStats
}

// Stats returns the counters. It takes no time to speak of and may be called at any moment, during requests and after Close.
func (e *Engine) Stats() Stats {
	s := Stats{Vision: e.vision.snapshot()}
	if e.scheduler != nil {
		s.Slots = e.slotStats()
		s.Prefix, s.Lookup = e.scheduler.prefix.snapshot(), e.scheduler.lookup.snapshot()
	}
	return s
}

package engine_test

import (
	"testing"
	"time"

	"glimpse/engine"
)

// The gauges follow what is going on: one request active and its tokens in the cache while it is answered, none afterwards.
func TestSlotStats(t *testing.T) {
	e := openTiny(t, engine.Options{Slots: 3})
	req := requests(t)[0]
	req.MaxTokens = 8
	var during engine.SlotStats
	seen := 0
	req.Token = func(engine.Token) {
		if seen++; seen == 5 {
			during = e.Stats().Slots
		}
	}
	r := generate(t, e, t.Context(), req)
	if during.Slots != 3 || during.Active != 1 || during.Waiting != 0 || during.Tokens < int64(len(r.PromptTokenIDs)) || during.Tokens > during.Capacity {
		t.Errorf("during a request with a prompt of %d tokens: %+v", len(r.PromptTokenIDs), during)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if s := e.Stats().Slots; s.Active == 0 && s.Tokens == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("afterwards: %+v", s)
		}
	}
}

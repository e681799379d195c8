package server

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestRetryAfterEstimate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2)
		for range 40 {
			leave, err := g.enter("", 1)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			leave()
		}
		leave, err := g.enter("", 2)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.enter("", 1); asError(err).RetryAfter != 5 {
			t.Errorf("two answers of 10 s each: come back after %d s, want 5", asError(err).RetryAfter)
		}
		leave()
	})
}

func TestFairShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(16)
		var greedy []func()
		take := func(key string) bool {
			leave, err := g.enter(key, 1)
			if err == nil && key == "greedy" {
				greedy = append(greedy, leave)
			}
			return err == nil
		}
		for i := range 16 {
			if !take("greedy") {
				t.Fatalf("alone, it gets %d of 16 places", i)
			}
		}
		if take("modest") {
			t.Fatal("17 of 16 places")
		}
		// Whenever a place comes free, both ask for it, the greedy one first.
		for range 8 {
			greedy[0]()
			greedy = greedy[1:]
			if take("greedy") {
				t.Errorf("it has %d of 16 places and gets one more before the other has any", g.held["greedy"])
			}
			if !take("modest") {
				t.Errorf("with %d of 16 places it gets none", g.held["modest"])
			}
		}
		if g.held["greedy"] != 8 || g.held["modest"] != 8 {
			t.Errorf("held: %v", g.held)
		}
		// Once the others want nothing any more, everything is there again.
		for range 8 {
			g.leave("modest", 1, time.Second)
		}
		time.Sleep(stillWants)
		for range 8 {
			if !take("greedy") {
				t.Fatalf("alone again, it stays at %d places", g.held["greedy"])
			}
		}
		for _, leave := range greedy {
			leave()
		}
		if g.current != 0 || len(g.held) != 0 {
			t.Errorf("%d places are still taken: %v", g.current, g.held)
		}
	})
}

// With places to spare nobody is held to a share.
func TestShareOnlyMattersWhenPlacesAreShort(t *testing.T) {
	g := newGate(16)
	if _, err := g.enter("modest", 1); err != nil {
		t.Fatal(err)
	}
	for i := range 11 {
		if _, err := g.enter("greedy", 1); err != nil {
			t.Fatalf("refused at %d of 16", i+1)
		}
	}
	if _, err := g.enter("greedy", 1); err == nil {
		t.Error("the last quarter is not kept for the other")
	}
	for i := range 4 {
		if _, err := g.enter("modest", 1); err != nil {
			t.Errorf("below its share, and refused at %d", i)
		}
	}
}

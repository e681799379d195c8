// Admission: a bounded number of answers in flight per model. The engine decides which of them run together.

package server

import (
	"math"
	"net/http"
	"sync"
	"time"
)

// gate counts the answers in flight and remembers how long answers took.
type gate struct {
	mu      sync.Mutex
	most    int
	current int
	average time.Duration // of the answers lately, 0 before the first
}

func newGate(most int) *gate { return &gate{most: most} }

// enter takes n places, or says when to come back. leave must be called once for each enter that succeeded.
func (g *gate) enter(n int) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.current+n > g.most {
		return nil, &Error{Status: http.StatusTooManyRequests, Type: typeRateLimit, Code: codeQueueFull, Message: "the model has as many requests in flight as it may have: try again later", RetryAfter: g.wait()}
	}
	g.current += n
	start := time.Now()
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.current -= n
		took := time.Since(start)
		if g.average == 0 {
			g.average = took
		}
		g.average += (took - g.average) / 8
	}, nil
}

// wait estimates the seconds until a place is free: with `most` answers in flight one ends every average ÷ most. The gate
// is locked.
func (g *gate) wait() int {
	seconds := math.Ceil(g.average.Seconds() / float64(g.most))
	return int(min(max(seconds, 1), 60))
}

func (g *gate) inFlight() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.current
}

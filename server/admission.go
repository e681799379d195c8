// Admission: a bounded number of answers in flight per model, shared fairly between API keys. The engine decides which of
// them run together.

package server

import (
	"math"
	"net/http"
	"sync"
	"time"
)

// gate counts the answers in flight and remembers how long answers took.
//
// A key alone may take every place. When several want some, a key that holds its equal share already is refused once
// three quarters of the places are taken: the last quarter is for those below their share.
type gate struct {
	mu      sync.Mutex
	most    int
	current int
	average time.Duration // of the answers lately, 0 before the first
	held    map[string]int
	refused map[string]time.Time // when a key was last refused: it still wants places, though it holds none
}

// stillWants is how long a refused key counts as one that wants places.
const stillWants = 10 * time.Second

func newGate(most int) *gate {
	return &gate{most: most, held: map[string]int{}, refused: map[string]time.Time{}}
}

// enter takes n places for a key, or says when to come back. leave must be called once for each enter that succeeded.
func (g *gate) enter(key string, n int) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.current+n > g.most {
		g.refused[key] = time.Now()
		return nil, g.full("the model has as many requests in flight as it may have: try again later")
	}
	if share := g.share(key); g.held[key]+n > share && g.current+n > g.most-g.most/4 {
		g.refused[key] = time.Now()
		return nil, g.full("other API keys want the model too, and this one has its share of requests in flight: try again later")
	}
	delete(g.refused, key)
	g.current += n
	g.held[key] += n
	start := time.Now()
	return func() { g.leave(key, n, time.Since(start)) }, nil
}

func (g *gate) leave(key string, n int, took time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.current -= n
	if g.held[key] -= n; g.held[key] == 0 {
		delete(g.held, key)
	}
	if g.average == 0 {
		g.average = took
	}
	g.average += (took - g.average) / 8
}

// share is the number of places that each key gets when all that want some get equally many. The gate is locked.
func (g *gate) share(key string) int {
	wanting := map[string]bool{key: true}
	for other := range g.held {
		wanting[other] = true
	}
	for other, at := range g.refused {
		if time.Since(at) < stillWants {
			wanting[other] = true
		} else {
			delete(g.refused, other)
		}
	}
	if len(wanting) == 1 {
		return g.most
	}
	return max(g.most/len(wanting), 1)
}

func (g *gate) full(message string) *Error {
	return &Error{Status: http.StatusTooManyRequests, Type: typeRateLimit, Code: codeQueueFull, Message: message, RetryAfter: g.wait()}
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

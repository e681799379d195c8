package engine_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"glimpse/engine"
)

// BenchmarkStreamBesideAPicture has an answer streaming when somebody else asks about a new picture: how long its tokens take
// alone, while the picture goes through the tower, and while the prompt is read.
func BenchmarkStreamBesideAPicture(b *testing.B) {
	e := openFolder(b, benchModel(b), engine.Options{Threads: 2, Slots: 2})
	generate(b, e, b.Context(), withTokens(ask("Warm up.", drawn(b, 99)), 2))
	var alone, beside []float64
	var first time.Duration
	for n := range 2 {
		var mu sync.Mutex
		var at []time.Time
		asked, answered := time.Time{}, time.Time{}
		var wg sync.WaitGroup
		stream := withTokens(ask("Tell a long story."), 100)
		stream.LogitBias = map[int32]float64{2: -100} // it must not end
		stream.Token = func(engine.Token) {
			mu.Lock()
			defer mu.Unlock()
			if at = append(at, time.Now()); len(at) == 20 {
				asked = time.Now()
				wg.Go(func() {
					r := generate(b, e, b.Context(), withTokens(ask("What is this?", drawn(b, n)), 1))
					mu.Lock()
					defer mu.Unlock()
					answered = time.Now()
					b.Logf("the picture: vision %v, prompt %v of %d tokens", r.Timings.Vision, r.Timings.Prefill, r.Usage.PromptTokens)
				})
			}
		}
		generate(b, e, b.Context(), stream)
		wg.Wait()
		first += answered.Sub(asked)
		for i := 5; i < len(at); i++ {
			ms := float64(at[i].Sub(at[i-1])) / 1e6
			switch {
			case at[i].Before(asked) || i == 19:
				alone = append(alone, ms)
			case at[i].Before(answered):
				beside = append(beside, ms)
			}
		}
	}
	slices.Sort(beside)
	b.ReportMetric(median(alone), "alone-ms")
	b.ReportMetric(median(beside), "beside-ms")
	b.ReportMetric(beside[len(beside)*9/10], "beside-p90-ms")
	b.ReportMetric(median(beside)/median(alone), "times")
	b.ReportMetric(float64(first.Milliseconds())/2, "first-ms")
	b.ReportMetric(0, "ns/op")
}

func withTokens(req engine.Request, n int) engine.Request {
	req.MaxTokens = n
	return req
}

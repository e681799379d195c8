package engine_test

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"os"
	"slices"
	"testing"
	"time"

	"glimpse/engine"
)

// benchModel is the folder that GLIMPSE_BENCH_MODEL names: a model of a size that is worth timing.
func benchModel(b *testing.B) string {
	folder := os.Getenv("GLIMPSE_BENCH_MODEL")
	if folder == "" {
		b.Skip("GLIMPSE_BENCH_MODEL names no model folder")
	}
	return folder
}

// drawn is a picture that no other number draws.
func drawn(b *testing.B, number int) *engine.Picture {
	img := image.NewNRGBA(image.Rect(0, 0, 640, 480))
	for y := range 480 {
		for x := range 640 {
			img.Set(x, y, color.NRGBA{uint8(x * (number + 3)), uint8(y * 7), uint8((x ^ y) + number), 255})
		}
	}
	var buf bytes.Buffer
	if err := png.Encode(&buf, img); err != nil {
		b.Fatal(err)
	}
	return &engine.Picture{Data: buf.Bytes()}
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkSecondQuestion asks two questions about each of several pictures: how long the first token takes, and how many
// times sooner the second question's comes. Both are new questions; the second is asked at once.
func BenchmarkSecondQuestion(b *testing.B) {
	e := openFolder(b, benchModel(b), engine.Options{Threads: 2, PrefixCache: true, VisionCache: 256 << 20})
	first := func(req engine.Request) (ms float64, r *engine.Result) {
		start := time.Now()
		req.MaxTokens = 1
		r = generate(b, e, b.Context(), req)
		return float64(time.Since(start)) / 1e6, r
	}
	first(ask("Warm up.", drawn(b, 99))) // ONNX Runtime allocates on the first run
	var before, after, ratio []float64
	for n := range 3 {
		pic := drawn(b, n)
		x, _ := first(ask("What colour is the thing in the middle of this picture?", pic))
		y, r := first(ask("How many things are there, and where are they?", pic))
		before, after, ratio = append(before, x), append(after, y), append(ratio, x/y)
		b.Logf("picture %d: %.0f ms, then %.0f ms with %d of %d tokens cached: %.1f times sooner", n, x, y, r.Usage.CachedTokens, r.Usage.PromptTokens, x/y)
	}
	b.ReportMetric(median(before), "first-ms")
	b.ReportMetric(median(after), "second-ms")
	b.ReportMetric(median(ratio), "times")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSpeculation times answers with and without guesses, one after the other: of a greedy decoder with random weights,
// which soon repeats itself, and of one that draws at random, where there is nothing to guess and time to lose.
func BenchmarkSpeculation(b *testing.B) {
	folder := benchModel(b)
	off := openFolder(b, folder, engine.Options{Threads: 2, Slots: 2, Capacity: 512})
	auto := openFolder(b, folder, engine.Options{Threads: 2, Slots: 2, Capacity: 512, Speculation: engine.SpeculationAuto})
	n := uint64(7)
	for _, c := range []struct {
		name     string
		sampling engine.Sampling
	}{{"repeats", engine.Sampling{}}, {"random", engine.Sampling{Temperature: 1, Seed: &n}}} {
		b.Run(c.name, func(b *testing.B) {
			req := ask("Tell me a long story about a cat on a mat, and about a mat under a cat, and about a cat on a mat.")
			req.MaxTokens, req.Sampling = 48, c.sampling
			req.LogitBias = map[int32]float64{2: -100} // no end of sequence
			var ratios, speeds []float64
			for i := range 3 {
				x, y := generate(b, off, b.Context(), req), generate(b, auto, b.Context(), req)
				if i == 0 {
					continue // nothing is measured yet, and ONNX Runtime allocates
				}
				ratios, speeds = append(ratios, y.Timings.TokensPerSecond/x.Timings.TokensPerSecond), append(speeds, x.Timings.TokensPerSecond)
				same := 0
				for same < min(len(x.TokenIDs), len(y.TokenIDs)) && x.TokenIDs[same] == y.TokenIDs[same] {
					same++
				}
				b.Logf("%.1f tokens/s without, %.1f with %d of %d guesses right; the same for %d tokens", x.Timings.TokensPerSecond, y.Timings.TokensPerSecond, y.Timings.Accepted, y.Timings.Drafted, same)
			}
			b.ReportMetric(median(ratios), "times")
			b.ReportMetric(median(speeds), "tokens/s")
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Logf("%s", engine.StepCosts(auto))
}

// BenchmarkStepCosts times steps of a token and some guesses against steps of a token, one after the other; the fastest of
// each counts, since whatever else the machine does only adds time.
func BenchmarkStepCosts(b *testing.B) {
	e := openFolder(b, benchModel(b), engine.Options{Threads: 2, Slots: 1, Capacity: 1024})
	sizes := []int{1, 2, 3, 5, 9}
	fastest := make([]time.Duration, len(sizes))
	for round := range 12 {
		for i, n := range sizes {
			took, err := engine.StepTime(e, 600, n)
			if err != nil {
				b.Fatal(err)
			}
			if round > 0 && (fastest[i] == 0 || took < fastest[i]) {
				fastest[i] = took
			}
		}
	}
	for i, n := range sizes {
		b.Logf("%d tokens: %.1f ms, %.2f of one", n, float64(fastest[i])/1e6, float64(fastest[i])/float64(fastest[0]))
	}
}

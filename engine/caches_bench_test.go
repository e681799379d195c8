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

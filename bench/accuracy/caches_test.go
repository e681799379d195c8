package accuracy

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"glimpse/batch"
	"glimpse/engine"
	"glimpse/graphs"
)

// BenchmarkCaches asks for the caption of each scene and an answer about it twice over: of an engine that remembers and guesses nothing, and of
// one that does both, as serve does. It reports how many answers are the same tokens, how many times sooner the second
// answer about a picture is there, and how many guesses were right.
func BenchmarkCaches(b *testing.B) {
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer rt.Close()
	prompt, scenes := readScenes(b, filepath.Join(model, "eval.zip"))
	for _, precision := range []string{"fp32", "int8", "int4"} {
		b.Run(precision, func(b *testing.B) {
			plain := open(b, rt, precision, engine.Options{})
			defer plain.Close()
			cached := open(b, rt, precision, engine.Options{VisionCache: 256 << 20, PrefixCache: true, Speculation: engine.SpeculationAuto})
			defer cached.Close()
			for b.Loop() {
				same, total := 0, 0
				var with, without time.Duration
				for _, s := range scenes {
					for i, text := range []string{prompt, s.question} {
						req := batch.Request(plain.Manifest(), []engine.Picture{{Data: s.data}}, text)
						start := time.Now()
						x, err := plain.Generate(b.Context(), req)
						if err != nil {
							b.Fatal(err)
						}
						between := time.Now()
						y, err := cached.Generate(b.Context(), req)
						if err != nil {
							b.Fatal(err)
						}
						if i == 1 {
							without, with = without+between.Sub(start), with+time.Since(between)
						}
						if total++; slices.Equal(x.TokenIDs, y.TokenIDs) {
							same++
						}
					}
				}
				stats := cached.Stats()
				b.ReportMetric(100*float64(same)/float64(total), "same-answers-%")
				b.ReportMetric(without.Seconds()/with.Seconds(), "second-times-sooner")
				b.ReportMetric(100*float64(stats.Prefix.CachedTokens)/float64(stats.Prefix.PromptTokens), "cached-tokens-%")
				b.ReportMetric(float64(stats.Lookup.Drafted), "guessed-tokens")
				b.ReportMetric(float64(stats.Lookup.Accepted), "right-guesses")
			}
		})
	}
}

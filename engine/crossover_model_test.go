package engine_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert"
	"glimpse/engine"
)

// A model of two decoder graphs reads prompts with either, over one cache: what the prefill graph put there the other goes on
// from.
func TestTwoDecoderGraphs(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "model")
	_, err := convert.Convert(t.Context(), convert.Options{Checkpoint: filepath.Join(goldens, "llava15-tiny", "checkpoint"), Out: folder, Precision: "int4"})
	if err != nil {
		t.Fatal(err)
	}
	req := ask("What is on this picture?", media(t, "cat.png"))
	req.Logprobs, req.MaxTokens = 1, 4
	answer := func(e *engine.Engine) (ids []int32, first float32) {
		req := req
		req.Token = func(tok engine.Token) {
			if len(ids) == 0 {
				first = tok.Logprob
			}
			ids = append(ids, tok.ID)
		}
		generate(t, e, t.Context(), req)
		return ids, first
	}
	open := func(opts engine.Options) *engine.Engine {
		opts.Runtime, opts.Threads = openRuntime(t), 1
		e, err := engine.Open(t.Context(), folder, opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	never, always := engine.Options{WideRows: 1 << 20}, engine.Options{WideRows: 1}
	lowIDs, low := answer(open(engine.Options{LowMemory: true}))
	narrowIDs, narrow := answer(open(never))
	if low != narrow || !cmp.Equal(lowIDs, narrowIDs) {
		t.Errorf("without the prefill graph: %v %v, never used: %v %v", lowIDs, low, narrowIDs, narrow)
	}
	_, exact := answer(openTiny(t, engine.Options{}))
	wideIDs, wide := answer(open(always))
	if abs(wide-exact) > 0.25 || wide == narrow {
		t.Errorf("the first token's log-probability: %v at fp32, %v by the prefill graph, %v by the decoder's", exact, wide, narrow)
	}
	mixedIDs, mixed := answer(open(engine.Options{WideRows: 8})) // the prompt wide, the answer narrow
	if mixed != wide || mixedIDs[0] != wideIDs[0] {
		t.Errorf("a prompt by the prefill graph alone: %v, with answers by the other: %v", wide, mixed)
	}
}

func abs(v float32) float32 { return max(v, -v) }

// The measurement is made once for a model and a machine; what is no measurement is replaced.
func TestCrossoverIsKept(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "model")
	_, err := convert.Convert(t.Context(), convert.Options{Checkpoint: filepath.Join(goldens, "llava15-tiny", "checkpoint"), Out: folder, Precision: "int4"})
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(dir, "cache")
	open := func() (log string) {
		var out bytes.Buffer
		e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: openRuntime(t), Threads: 1, CacheDir: cache, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		return out.String()
	}
	const measured = "measured from how many tokens"
	if log := open(); !strings.Contains(log, measured) {
		t.Errorf("the first time nothing was measured: %s", log)
	}
	if log := open(); strings.Contains(log, measured) {
		t.Errorf("measured again: %s", log)
	}
	files, err := filepath.Glob(filepath.Join(cache, "crossover", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("kept: %v, %v", files, err)
	}
	for _, broken := range []string{"", "{", `{"wide_rows": 0}`} {
		if err := os.WriteFile(files[0], []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		if log := open(); !strings.Contains(log, measured) {
			t.Errorf("%q was taken for a measurement: %s", broken, log)
		}
	}
}

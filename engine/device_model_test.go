package engine_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/graphs"
	"glimpse/graphs/graphstest"
)

// convertForCUDA converts a golden set to float16 for CUDA.
func convertForCUDA(t testing.TB, set string) string {
	t.Helper()
	folder, checkpoint := filepath.Join(t.TempDir(), set), filepath.Join(goldens, set, "checkpoint")
	if pieces := filepath.Join(goldens, set, "pieces.toml"); exists(pieces) {
		checkpoint = pieces
	}
	if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder, Precision: "fp16", Target: "cuda"}); err != nil {
		t.Fatal(err)
	}
	return folder
}

// openOnDevice opens a folder whose caches lie in the given memory.
func openOnDevice(t testing.TB, folder string, memory graphs.DeviceMemory, opts engine.Options) (*engine.Engine, error) {
	t.Helper()
	rt, err := graphs.Open(graphs.Options{DeviceMemory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	opts.Runtime, opts.Threads = rt, 1
	return engine.Open(t.Context(), folder, opts)
}

// The engine touches no cache itself: with one that lies where nothing but runs and copies may, the answers are the same, to the
// last bit of what decides them. Prompts are reused and copied between slots; the encoder's keys move from arena to arena.
func TestCachesOnADevice(t *testing.T) {
	for _, set := range []string{"llava15-tiny", "qwen25vl-tiny", "qwen3vl-tiny", "gemma3-tiny", "qwenvl-tiny", "smolvlm-tiny", "blip2-opt-tiny", "blip2-t5-tiny"} {
		t.Run(set, func(t *testing.T) {
			folder := convertForCUDA(t, set)
			memory := graphstest.NewShielded(1 << 30)
			opts := engine.Options{Slots: 3, PrefillChunk: 23, PrefixCache: true, VisionCache: 64 << 20, Capacity: 2048}
			device, err := openOnDevice(t, folder, memory, opts)
			if err != nil {
				t.Fatal(err)
			}
			ordinary := openFolder(t, folder, opts)
			loaded := memory.Used()
			if loaded == 0 {
				t.Error("nothing lies on the device")
			}
			var reqs []engine.Request
			if strings.HasPrefix(set, "blip2") {
				reqs = questions(t)
			} else {
				reqs = conversations(t, set)
			}
			var want []*engine.Result
			for i := 0; i < len(reqs); i++ {
				want = append(want, generate(t, ordinary, t.Context(), reqs[i]))
				got := generate(t, device, t.Context(), reqs[i])
				if !slices.Equal(got.TokenIDs, want[i].TokenIDs) || got.Usage.CachedTokens != want[i].Usage.CachedTokens {
					t.Errorf("request %d: %v with %d tokens reused, in ordinary memory %v with %d", i, got.TokenIDs, got.Usage.CachedTokens, want[i].TokenIDs, want[i].Usage.CachedTokens)
				}
				if !strings.HasPrefix(set, "blip2") && len(reqs) < 8 && i < 2 {
					reqs = append(reqs, followUp(reqs[i], want[i].Text, "Are you sure? Say it again, please."))
				}
			}
			// The questions to the other three do not begin alike, or are too short, or an encoder reads them, whose keys move.
			alike := slices.Contains([]string{"llava15-tiny", "qwen25vl-tiny", "qwen3vl-tiny", "gemma3-tiny", "smolvlm-tiny"}, set)
			if copied := device.Stats().Prefix.CopiedTokens; alike && copied == 0 {
				t.Error("no tokens were copied from slot to slot")
			}
			if memory.Copied() == 0 && set != "blip2-opt-tiny" {
				t.Error("nothing was copied within the memory")
			}
			var wg sync.WaitGroup
			for _, req := range slices.Concat(reqs, reqs) { // nobody touches anything in company either
				wg.Go(func() { generate(t, device, t.Context(), req) })
			}
			wg.Wait()
			if memory.Entered() == 0 {
				t.Error("no run entered the memory")
			}
			for range 2 {
				if err := device.Close(); err != nil {
					t.Error(err)
				}
			}
			if left := memory.Used(); left != 0 {
				t.Errorf("%d of %d bytes were not given back", left, loaded)
			}
		})
	}
}

// A device without room for the cache is an error that says how many tokens would fit, and nothing stays behind.
func TestCachesThatDoNotFitADevice(t *testing.T) {
	folder := convertForCUDA(t, "llava15-tiny")
	memory := graphstest.NewShielded(1 << 20)
	for _, opts := range []engine.Options{{Slots: 8, Capacity: 2048}, {Slots: 64}} {
		if _, err := openOnDevice(t, folder, memory, opts); err == nil || !strings.Contains(err.Error(), "tokens a slot would fit") {
			t.Errorf("%+v: %v", opts, err)
		}
		if memory.Used() != 0 {
			t.Errorf("%d bytes stay allocated", memory.Used())
		}
	}
	// What was chosen without being asked for shrinks instead.
	e, err := openOnDevice(t, folder, memory, engine.Options{Slots: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.Context() < 256 || e.Context() >= 4096 {
		t.Errorf("a context of %d tokens", e.Context())
	}
	generate(t, e, t.Context(), ask("What is this?", media(t, "cat.png")))
}

// Models for the CPU keep their caches in ordinary memory whatever the device has: their attention is not computed there.
func TestModelsForTheCPUStayThere(t *testing.T) {
	memory := graphstest.NewShielded(1 << 30)
	e, err := openOnDevice(t, tinyModel(t), memory, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	generate(t, e, t.Context(), ask("What is this?"))
	if memory.Entered() != 0 || memory.Used() != 0 {
		t.Errorf("%d bytes on the device", memory.Used())
	}
}

// A request that is cancelled while its prompt is read leaves the device's memory as usable as it was.
func TestCancelledOnADevice(t *testing.T) {
	memory := graphstest.NewShielded(1 << 30)
	e, err := openOnDevice(t, convertForCUDA(t, "llava15-tiny"), memory, engine.Options{PrefillChunk: 4, PrefixCache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	req := ask("What is this?", media(t, "cat.png"))
	want := generate(t, e, t.Context(), req)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Generate(ctx, ask("And what is that over there?", media(t, "coffee.png"))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := generate(t, e, t.Context(), req); !slices.Equal(got.TokenIDs, want.TokenIDs) {
		t.Errorf("%v, before %v", got.TokenIDs, want.TokenIDs)
	}
}

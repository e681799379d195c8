package engine_test

import (
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"glimpse/convert"
	"glimpse/engine"
)

// Rotary rows and deepstack rows of several requests share steps; each answer is what the request gets alone.
func TestPatchModelsInCompany(t *testing.T) {
	for _, set := range []string{"qwen25vl-tiny", "qwen3vl-tiny", "qwenvl-tiny"} {
		t.Run(set, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), set)
			if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: filepath.Join(goldens, set, "checkpoint"), Out: folder, Precision: "fp32"}); err != nil {
				t.Fatal(err)
			}
			e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: openRuntime(t), Threads: 1, Slots: 3, PrefillChunk: 23})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			part := func(name string) engine.Part { return engine.Part{Type: engine.PartImage, Picture: media(t, name)} }
			text := func(s string) engine.Part { return engine.Part{Type: engine.PartText, Text: s} }
			var requests []engine.Request
			for _, content := range [][]engine.Part{
				{part("cat.png"), text("What is it?")}, {text("Hello")}, {part("tiny_40x30.png"), part("rocket_wide.png"), text("Compare.")},
				{part("astronaut_portrait.png"), text("Who?")}, {text("A longer text without any picture in it, to be read in chunks.")},
			} {
				requests = append(requests, engine.Request{Messages: []engine.Message{{Role: "user", Content: content}}, MaxTokens: 12})
			}
			alone := make([][]int32, len(requests))
			for i, r := range requests {
				alone[i] = generate(t, e, t.Context(), r).TokenIDs
			}
			together := make([]*engine.Result, len(requests))
			errs := make([]error, len(requests))
			var wait sync.WaitGroup
			for i, r := range requests {
				wait.Go(func() { together[i], errs[i] = e.Generate(t.Context(), r) })
			}
			wait.Wait()
			for i := range requests {
				if errs[i] != nil {
					t.Errorf("request %d: %v", i, errs[i])
				} else if !slices.Equal(together[i].TokenIDs, alone[i]) {
					t.Errorf("request %d: %v in company, %v alone", i, together[i].TokenIDs, alone[i])
				}
			}
		})
	}
}

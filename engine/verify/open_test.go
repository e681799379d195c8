package verify_test

import (
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/engine/verify"
	"glimpse/graphs"
)

// Pictures whose tokens see each other in both directions, in layers with and without a sliding window.
func TestPicturesAttendedBothWays(t *testing.T) {
	const set = "gemma3-tiny"
	report, err := verify.Run(t.Context(), openSet(t, set), filepath.Join(goldens, set), verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK || len(report.Cases) != 5 {
		t.Errorf("ok %v with %d cases, want 5", report.OK, len(report.Cases))
	}
	answer := []string{"prompt_text", "input_ids", "num_image_tokens", "inputs_embeds", "logits_first", "logits_last", "generated_ids", "text", "finish"}
	for _, c := range report.Cases {
		var names []string
		for _, r := range c.Rows {
			names = append(names, r.Array)
			if !r.OK {
				t.Errorf("%s %s: %g of %g %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.Note)
			}
		}
		want := answer
		if c.ID != "text_only" {
			want = slices.Concat(want, []string{"pixel_values", "vision_features", "projected"})
		}
		for _, w := range want {
			if !slices.Contains(names, w) {
				t.Errorf("case %s has no row %s: %v", c.ID, w, names)
			}
		}
	}
}

// In chunks hardly longer than a picture and with other requests in the same steps, the answers stay the same.
func TestPicturesAttendedBothWaysInChunksAndCompany(t *testing.T) {
	const set = "gemma3-tiny"
	folder := filepath.Join(t.TempDir(), set)
	_, err := convert.Convert(t.Context(), convert.Options{Checkpoint: filepath.Join(goldens, set, "checkpoint"), Out: folder, Precision: "fp32"})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1, PrefillChunk: 2, Slots: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			report, err := verify.Run(t.Context(), e, filepath.Join(goldens, set), verify.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			for _, c := range report.Cases {
				for _, r := range c.Rows {
					if !r.OK {
						t.Errorf("%s %s: %g of %g %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.Note)
					}
				}
			}
		})
	}
	all.Wait()
}

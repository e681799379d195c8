package verify_test

import (
	"path/filepath"
	"slices"
	"testing"

	"glimpse/engine/verify"
)

// Models that take pictures at their own size. Videos of theirs are not run yet, and their cases say so by name.
func TestPatchModels(t *testing.T) {
	text := []string{"prompt_text", "input_ids", "num_image_tokens", "inputs_embeds", "position_ids", "logits_first", "logits_last", "generated_ids", "text", "finish"}
	picture := []string{"pixel_values", "vision_features", "projected"}
	for _, set := range []struct {
		name string
		rows []string
	}{
		{"qwen25vl-tiny", picture},
		{"qwen3vl-tiny", append([]string{"deepstack_0", "deepstack_1"}, picture...)},
	} {
		t.Run(set.name, func(t *testing.T) {
			cases := []string{"landscape", "portrait", "wide", "two_images", "text_only", "jpeg"}
			e := openSet(t, set.name)
			report, err := verify.Run(t.Context(), e, filepath.Join(goldens, set.name), verify.Options{Cases: cases})
			if err != nil {
				t.Fatal(err)
			}
			if !report.OK || len(report.Cases) != len(cases) {
				t.Errorf("ok %v with %d cases, want %d", report.OK, len(report.Cases), len(cases))
			}
			for _, c := range report.Cases {
				var names []string
				for _, r := range c.Rows {
					names = append(names, r.Array)
					if !r.OK {
						t.Errorf("%s %s: %g of %g %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.Note)
					}
				}
				want := text
				if c.ID != "text_only" {
					want = slices.Concat(text, set.rows)
				}
				for _, w := range want {
					if !slices.Contains(names, w) {
						t.Errorf("case %s has no row %s: %v", c.ID, w, names)
					}
				}
			}
			report, err = verify.Run(t.Context(), e, filepath.Join(goldens, set.name), verify.Options{Cases: []string{"video"}})
			if err != nil || report.OK || len(report.Cases[0].Rows) == 0 || report.Cases[0].Rows[0].Note == "" {
				t.Errorf("a video that is not run gives %+v, %v", report, err)
			}
		})
	}
}

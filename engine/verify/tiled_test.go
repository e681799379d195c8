package verify_test

import (
	"path/filepath"
	"slices"
	"testing"

	"glimpse/engine/verify"
)

// Models that cut pictures into tiles and take videos as frames. Each set's rows are named, so that none goes missing.
func TestTilingModels(t *testing.T) {
	text := []string{"prompt_text", "input_ids", "num_image_tokens", "inputs_embeds", "logits_first", "logits_last", "generated_ids", "text", "finish"}
	picture := []string{"pixel_values", "vision_features", "projected"}
	for _, set := range []struct {
		name  string
		cases int
		rows  []string            // of cases with pictures, beside those of text
		other map[string][]string // of single cases, in place of rows
	}{
		{"internvl3-tiny", 10, append([]string{"pixel_shuffled"}, picture...), nil},
		{"llavanext-tiny", 8, append([]string{"mlp", "image_sizes"}, picture...), nil},
		{"llavaonevision-tiny", 7, append([]string{"mlp"}, picture...), map[string][]string{
			"video": {"mlp", "pixel_values_videos", "vision_features", "projected"}}},
		{"smolvlm-tiny", 6, picture, nil},
	} {
		t.Run(set.name, func(t *testing.T) {
			report, err := verify.Run(t.Context(), openSet(t, set.name), filepath.Join(goldens, set.name), verify.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if !report.OK || len(report.Cases) != set.cases {
				t.Errorf("ok %v with %d cases, want %d", report.OK, len(report.Cases), set.cases)
			}
			for _, c := range report.Cases {
				var names []string
				for _, r := range c.Rows {
					names = append(names, r.Array)
					if !r.OK {
						t.Errorf("%s %s: %g of %g %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.Note)
					}
				}
				want := slices.Clone(text)
				switch special, ok := set.other[c.ID]; {
				case c.ID == "text_only":
				case ok:
					want = append(want, special...)
				default:
					want = append(want, set.rows...)
				}
				for _, w := range want {
					if !slices.Contains(names, w) {
						t.Errorf("case %s has no row %s: %v", c.ID, w, names)
					}
				}
			}
		})
	}
}

package verify_test

import (
	"path/filepath"
	"slices"
	"testing"

	"glimpse/engine/verify"
)

// Models in their authors' layouts, whose golden sets come from the authors' code.
func TestAuthorsLayouts(t *testing.T) {
	picture := []string{"num_image_tokens", "vision_features", "projected"}
	answer := []string{"prompt_text", "input_ids", "logits_first", "logits_last", "generated_ids", "text"}
	for _, set := range []struct {
		name  string
		cases int
		rows  []string            // of every case with a picture
		more  map[string][]string // of one case
	}{
		{"internvlchat10-tiny", 4, slices.Concat(picture, answer), map[string][]string{
			"wide": {"pixel_values", "inputs_embeds"}, "two": {"pixel_values_rows"}, "portrait_turns": {"pixel_values_rows"}}},
		{"internvl14b-tiny", 17, nil, map[string][]string{
			"match": {"padded_input_ids", "pixel_values", "vision_features", "qllama_query_output", "pool1_backbone", "pool2_qllama", "image_embeds_c",
				"image_embeds_g", "text_embeds", "logits_per_image_c", "logits_per_image_g"},
			"caption_cat": slices.Concat(answer, []string{"num_image_tokens", "pixel_values", "vision_features", "inputs_embeds"}),
			"tok5":        {"ids", "decoded"}, "squash_rocket_wide": {"pixel_values"}}},
		{"internvlchat11-tiny", 5, slices.Concat(picture, answer, []string{"pixel_values", "inputs_embeds"}), map[string][]string{
			"text": slices.Concat(answer, []string{"inputs_embeds"})}},
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
				want := set.more[c.ID]
				if c.ID != "text" {
					want = slices.Concat(want, set.rows)
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

package verify_test

import (
	"path/filepath"
	"slices"
	"testing"

	"glimpse/engine/verify"
)

// Models that take pictures and videos at their own size.
func TestPatchModels(t *testing.T) {
	text := []string{"prompt_text", "input_ids", "num_image_tokens", "inputs_embeds", "position_ids", "logits_first", "logits_last", "generated_ids", "text", "finish"}
	picture := []string{"pixel_values", "vision_features", "projected"}
	for _, set := range []struct {
		name string
		rows []string
	}{
		{"qwen2vl-tiny", picture},
		{"qwen25vl-tiny", picture},
		{"qwen3vl-tiny", append([]string{"deepstack_0", "deepstack_1"}, picture...)},
	} {
		t.Run(set.name, func(t *testing.T) {
			cases := []string{"landscape", "portrait", "wide", "two_images", "video", "text_only", "mixed", "jpeg"}
			if set.name == "qwen2vl-tiny" {
				cases = []string{"landscape", "portrait", "two_images", "text_only"}
			}
			e := openSet(t, set.name)
			report, err := verify.Run(t.Context(), e, filepath.Join(goldens, set.name), verify.Options{})
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
				if set.name == "qwen2vl-tiny" && c.ID == "text_only" {
					want = slices.DeleteFunc(slices.Clone(text), func(name string) bool { return name == "position_ids" })
				}
				if c.ID != "text_only" {
					want = slices.Concat(text, set.rows)
				}
				if name, ok := map[string]string{"video": "pixel_values_videos", "mixed": "pixel_values, pixel_values_videos"}[c.ID]; ok {
					want = append(slices.DeleteFunc(want, func(row string) bool { return row == "pixel_values" }), name)
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

// The authors' release: pictures with names in the prompt, boxes, and texts that run no graph.
func TestNamedPictures(t *testing.T) {
	report, err := verify.Run(t.Context(), openSet(t, "qwenvl-tiny"), filepath.Join(goldens, "qwenvl-tiny"), verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	for _, c := range report.Cases {
		for _, r := range c.Rows {
			rows[r.Array]++
			if !r.OK {
				t.Errorf("%s %s: %g of %g %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.Note)
			}
		}
	}
	if !report.OK || len(report.Cases) != 30 {
		t.Errorf("ok %v with %d cases, want 30", report.OK, len(report.Cases))
	}
	for name, n := range map[string]int{"prompt_text": 6, "input_ids": 6, "num_image_tokens": 6, "pixel_values": 5, "vision_features": 1, "projected": 4,
		"inputs_embeds": 1, "logits_first": 6, "logits_last": 6, "generated_ids": 6, "text_raw": 6, "ids_allowed_all": 12, "ids_allowed_image_st_only": 11,
		"boxes": 8, "error": 2, "image": 2} {
		if rows[name] != n {
			t.Errorf("%d rows %s, want %d", rows[name], name, n)
		}
	}
}

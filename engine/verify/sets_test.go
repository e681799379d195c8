package verify_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/engine/verify"
	"glimpse/graphs"
)

// Models whose pictures go before the text: decoder-only, encoder-decoder, with an instruction, and scoring heads. Each
// set's rows are named, so that none goes missing.
func TestPrependingModels(t *testing.T) {
	picture := []string{"num_image_tokens", "pixel_values", "vision_features", "qformer", "projected"}
	answer := []string{"input_ids", "inputs_embeds", "logits_first", "logits_last", "generated_ids", "text", "finish"}
	for _, set := range []struct {
		name  string
		cases int
		rows  []string
	}{
		{"blip2-opt-tiny", 8, slices.Concat(picture, answer)},
		{"blip2-t5-tiny", 8, slices.Concat(picture, answer, []string{"encoder_last_hidden_state", "decoder_start_token_id"})},
		{"instructblip-tiny", 5, slices.Concat(picture, answer, []string{"qformer_input_ids", "prompt_text"})},
		{"blip2-itm-tiny", 2, []string{"text_input_ids", "num_image_tokens", "padded_input_ids", "padded_attention_mask", "pixel_values",
			"vision_features", "qformer_image", "image_embeds", "text_embeds", "text_last_hidden", "itc", "itm_logits", "itm_prob",
			"itc in cases.json", "itm_prob in cases.json"}},
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
				for _, w := range set.rows {
					if !slices.Contains(names, w) {
						t.Errorf("case %s has no row %s: %v", c.ID, w, names)
					}
				}
			}
		})
	}
}

// Scores of another model's set, and a model without heads, are rows that are not ok.
func TestScoreCasesNeedHeads(t *testing.T) {
	report, err := verify.Run(t.Context(), openSet(t, "blip2-opt-tiny"), filepath.Join(goldens, "blip2-itm-tiny"), verify.Options{})
	if err != nil || report.OK || report.Cases[0].Rows[0].Array != "texts" {
		t.Errorf("%+v, %v", report, err)
	}
	report, err = verify.Run(t.Context(), openSet(t, "blip2-itm-tiny"), filepath.Join(goldens, "blip2-opt-tiny"), verify.Options{})
	if err != nil || report.OK {
		t.Errorf("%+v, %v", report, err)
	}
}

func openSet(t *testing.T, name string) *engine.Engine {
	t.Helper()
	checkpoint := filepath.Join(goldens, name, "pieces.toml") // of a release in pieces
	if _, err := os.Stat(checkpoint); err != nil {
		checkpoint = filepath.Join(goldens, name, "checkpoint")
	}
	return openCheckpoint(t, checkpoint, name)
}

func openCheckpoint(t *testing.T, checkpoint, name string) *engine.Engine {
	t.Helper()
	folder := filepath.Join(t.TempDir(), name)
	_, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder, Precision: "fp32"})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

package families_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
)

var update = flag.Bool("update", false, "write the graph snapshots again")

// planTiny plans a golden checkpoint from its configuration and tensor list.
func planTiny(t *testing.T, set string, precision blocks.Precision) *families.Plan {
	t.Helper()
	return planFor(t, set, precision, blocks.CPU)
}

// planFor is planTiny for a target.
func planFor(t *testing.T, set string, precision blocks.Precision, target blocks.Target) *families.Plan {
	t.Helper()
	if _, err := os.Stat(filepath.Join("../../testdata/goldens", set, "pieces.toml")); err == nil {
		return planPieces(t, set, precision)
	}
	folder := filepath.Join("../../testdata/goldens", set, "checkpoint")
	cp, err := checkpoint.Open(t.Context(), folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cp.Close() })
	r := &families.Release{Name: set, Parts: map[string]*families.Release{}, PlanOnly: true}
	for name, dst := range map[string]*json.RawMessage{"config.json": &r.Config, "preprocessor_config.json": &r.Preprocessor,
		"processor_config.json": &r.Processor, "tokenizer.json": &r.Tokenizer, "tokenizer_config.json": &r.TokenizerConfig} {
		if raw, err := os.ReadFile(filepath.Join(folder, name)); err == nil {
			*dst = raw
		}
	}
	family, _, err := families.Find(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	if parts := family.Parts(r.Config); len(parts) > 0 {
		cp = withParts(t, r, folder, cp, parts)
	}
	tensors := blocks.NewTensors(cp)
	tensors.Guide.Target = target
	plan, err := family.Plan(r, tensors, families.Options{Precision: precision})
	if err != nil {
		t.Fatal(err)
	}
	if p := tensors.Problems(); len(p) > 0 {
		t.Fatalf("problems: %v", p)
	}
	return plan
}

// withParts opens the checkpoints that a release refers to, which lie inside its folder.
func withParts(t *testing.T, r *families.Release, folder string, main checkpoint.Checkpoint, parts map[string]string) checkpoint.Checkpoint {
	t.Helper()
	all := map[string]checkpoint.Checkpoint{"": main}
	for name, reference := range parts {
		at := filepath.Join(folder, filepath.Base(reference))
		part, err := checkpoint.Open(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { part.Close() })
		all[name+"."] = part
		r.Parts[name] = &families.Release{Name: name}
		if r.Parts[name].Config, err = os.ReadFile(filepath.Join(at, "config.json")); err != nil {
			t.Fatal(err)
		}
	}
	merged, err := checkpoint.Merge(all)
	if err != nil {
		t.Fatal(err)
	}
	return merged
}

// TestGraphSnapshots shows a change of a graph in review. Run with -update after an intended one.
func TestGraphSnapshots(t *testing.T) {
	all := []blocks.Precision{blocks.FP32, blocks.INT8, blocks.INT4}
	for _, tc := range []struct {
		set        string
		precisions []blocks.Precision
	}{
		{"llava15-tiny", all}, {"blip2-opt-tiny", all[:1]}, {"blip2-t5-tiny", []blocks.Precision{blocks.FP32, blocks.FP16}},
		{"blip2-itm-tiny", all[:1]}, {"instructblip-tiny", all[:1]},
		{"internvl3-tiny", all[:1]}, {"llavanext-tiny", all[:1]}, {"llavaonevision-tiny", all[:1]}, {"smolvlm-tiny", all[:1]},
		{"qwen2vl-tiny", all[:1]}, {"qwen25vl-tiny", all[:1]}, {"qwen3vl-tiny", all[:1]}, {"qwenvl-tiny", all[:1]},
		{"internvlchat10-tiny", all[:1]}, {"internvlchat11-tiny", all[:1]}, {"internvl14b-tiny", all[:1]}, {"gemma3-tiny", all[:1]},
		{"videollama-tiny", all[:1]},
	} {
		set := tc.set
		for _, precision := range tc.precisions {
			plan := planTiny(t, set, precision)
			for _, c := range plan.Components {
				name := strings.Join([]string{set, string(precision), c.Name}, ".") + ".txt"
				t.Run(name, func(t *testing.T) {
					compareSnapshot(t, name, c.Builder)
				})
			}
		}
	}
}

// compareSnapshot compares a graph's text with the file of that name.
func compareSnapshot(t *testing.T, name string, b *blocks.Builder) {
	t.Helper()
	var got bytes.Buffer
	if err := b.WriteText(&got); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("the graph changed (-snapshot +now); run with -update if that is meant:\n%s", diff)
	}
}

// TestGraphSnapshotsForCUDA shows what becomes of graphs in float16: a decoder with and without a wide residual stream, an
// encoder, attention with a mask, and towers.
func TestGraphSnapshotsForCUDA(t *testing.T) {
	for _, tc := range []struct {
		set       string
		precision blocks.Precision
	}{
		{"llava15-tiny", blocks.FP16}, {"llava15-tiny", blocks.INT4}, {"llava15-tiny", blocks.FP32}, {"blip2-t5-tiny", blocks.FP16}, {"gemma3-tiny", blocks.FP16},
	} {
		plan := planFor(t, tc.set, tc.precision, blocks.CUDA)
		for _, c := range plan.Components {
			name := strings.Join([]string{tc.set, "cuda", string(tc.precision), c.Name}, ".") + ".txt"
			t.Run(name, func(t *testing.T) {
				if err := c.Builder.ForCUDA(); err != nil {
					t.Fatal(err)
				}
				compareSnapshot(t, name, c.Builder)
			})
		}
	}
}

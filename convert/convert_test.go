package convert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert"
	"glimpse/manifest"
)

const tiny = "../testdata/goldens/llava15-tiny/checkpoint"

// mustConvert converts and fails the test on any error.
func mustConvert(t *testing.T, opts convert.Options) *convert.Summary {
	t.Helper()
	s, err := convert.Convert(context.Background(), opts)
	if err != nil {
		t.Fatalf("convert: %v", err)
	}
	return s
}

func TestConvertWritesAWholeModelFolder(t *testing.T) {
	for _, precision := range []string{"fp32", "fp16", "int8", "int4", "auto"} {
		t.Run(precision, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "model")
			s := mustConvert(t, convert.Options{Checkpoint: tiny, Out: out, Precision: precision, Version: "test"})
			m, err := manifest.Read(out)
			if err != nil {
				t.Fatal(err)
			}
			var total int64
			entries, err := os.ReadDir(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				info, err := e.Info()
				if err != nil {
					t.Fatal(err)
				}
				total += info.Size()
			}
			if total != s.Bytes {
				t.Errorf("the summary says %d bytes and the folder has %d", s.Bytes, total)
			}
			for name, c := range m.Components {
				for _, f := range []string{c.File, c.Data} {
					if _, err := os.Stat(filepath.Join(out, f)); err != nil {
						t.Errorf("component %s: %v", name, err)
					}
				}
			}
			for _, f := range m.Source.Files {
				if len(f.SHA256) != 64 || f.Bytes == 0 {
					t.Errorf("source file %+v has no hash or size", f)
				}
			}
			if left := leftovers(t, filepath.Dir(out)); len(left) > 0 {
				t.Errorf("converting left %v behind", left)
			}
		})
	}
}

// leftovers lists what lies beside the model.
func leftovers(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "model" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestConvertIsDeterministic(t *testing.T) {
	folders := []string{filepath.Join(t.TempDir(), "model"), filepath.Join(t.TempDir(), "model")}
	for i, out := range folders {
		mustConvert(t, convert.Options{Checkpoint: tiny, Out: out, Precision: "int4", Version: "test", Workers: 1 + 3*i})
	}
	entries, err := os.ReadDir(folders[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		a, errA := os.ReadFile(filepath.Join(folders[0], e.Name()))
		b, errB := os.ReadFile(filepath.Join(folders[1], e.Name()))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs between two conversions (%v, %v)", e.Name(), errA, errB)
		}
	}
}

func TestPlanAcceptsReleasedInventories(t *testing.T) {
	for _, tc := range []struct {
		name       string
		parameters int64 // used by the graphs and the token table; the rest is the tower's last layer and text tower
	}{
		{"llava-hf--llava-1.5-7b-hf", 7_050_828_800},
		{"liuhaotian--llava-v1.5-7b", 7_050_304_512},
		{"Salesforce--blip2-opt-2.7b", 3_873_534_976}, // the tied head is counted with the token table and again in the decoder
		{"Salesforce--blip2-flan-t5-xl", 3_942_456_896},
		{"Salesforce--blip2-itm-vit-g", 1_386_085_378}, // the Q-Former is in three graphs
		{"Salesforce--instructblip-vicuna-7b", 7_913_726_720},
		{"Qwen--Qwen2-VL-2B-Instruct", 2_442_359_296}, // all of it, with the tied head counted again
		{"Qwen--Qwen2.5-VL-3B-Instruct", 4_065_787_904},
		{"Qwen--Qwen3-VL-2B-Instruct", 2_438_696_960},
		{"Qwen--Qwen-VL-Chat", 9_662_407_424},                         // position tables grow with the picture's grid
		{"OpenGVLab--InternVL3-1B-hf", 938_193_024},                   // all of it
		{"OpenGVLab--InternVL-14B-224px", 26_992_122_369},             // QLLaMA is in three graphs
		{"google--gemma-3-4b-it", 4_971_331_952},                      // all of it, with the tied head counted again
		{"OpenGVLab--InternVL3-1B", 938_193_024},                      // the authors' layout of the same
		{"llava-hf--llava-v1.6-mistral-7b-hf", 7_554_149_376},         // without the tower's last layer and norm
		{"llava-hf--llava-v1.6-vicuna-7b-hf", 7_050_832_896},          // the same
		{"llava-hf--llava-onevision-qwen2-0.5b-ov-hf", 1_029_865_248}, // the tied head again, without the tower's norm
		{"HuggingFaceTB--SmolVLM2-2.2B-Instruct", 2_246_784_880},      // all of it
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := mustConvert(t, convert.Options{Checkpoint: "../testdata/inventories/" + tc.name + ".json.gz", Plan: true})
			if !s.Planned || s.Parameters != tc.parameters {
				t.Errorf("planned %v with %d parameters, want %d", s.Planned, s.Parameters, tc.parameters)
			}
		})
	}
}

// TestT5KeepsWoAndSaysSo: the layer that overflows in every halved port stays fp32, and the summary explains it.
func TestT5KeepsWoAndSaysSo(t *testing.T) {
	const t5 = "../testdata/goldens/blip2-t5-tiny/checkpoint"
	for precision, says := range map[string]bool{"fp16": true, "int8": true, "int4": true, "fp32": false} {
		s := mustConvert(t, convert.Options{Checkpoint: t5, Precision: precision, Plan: true})
		for _, c := range s.Components {
			if c.Name != "encoder" && c.Name != "decoder" {
				continue
			}
			if strings.Contains(c.Policy, "overflow float16") != says {
				t.Errorf("%s %s: policy %q", precision, c.Name, c.Policy)
			}
			if precision != "fp32" && c.Formats["fp32"] < 2*96*48 {
				t.Errorf("%s %s: only %d parameters are fp32; wo alone has more", precision, c.Name, c.Formats["fp32"])
			}
		}
	}
}

func TestConvertRefusesATakenPlace(t *testing.T) {
	out := filepath.Join(t.TempDir(), "model")
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := convert.Convert(context.Background(), convert.Options{Checkpoint: tiny, Out: out, Precision: "fp32"})
	if !errors.Is(err, convert.ErrInput) || !strings.Contains(err.Error(), "exists") {
		t.Fatalf("got %v", err)
	}
	mustConvert(t, convert.Options{Checkpoint: tiny, Out: out, Precision: "fp32", Force: true})
	if _, err := manifest.Read(out); err != nil {
		t.Fatal(err)
	}
}

func TestForceReplacesModelsOnly(t *testing.T) {
	out := filepath.Join(t.TempDir(), "model")
	if err := os.MkdirAll(filepath.Join(out, "letters"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := convert.Convert(context.Background(), convert.Options{Checkpoint: tiny, Out: out, Precision: "fp32", Force: true})
	if !errors.Is(err, convert.ErrInput) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(out, "letters")); err != nil {
		t.Errorf("what was there is gone: %v", err)
	}
}

func TestConvertInterruptedLeavesNothing(t *testing.T) {
	folder := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	opts := convert.Options{Checkpoint: tiny, Out: filepath.Join(folder, "model"), Precision: "fp32", Workers: 1,
		Progress: func(p convert.Progress) { cancel() }}
	_, err := convert.Convert(ctx, opts)
	if !errors.Is(err, context.Canceled) || errors.Is(err, convert.ErrInput) {
		t.Fatalf("got %v", err)
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) > 0 {
		t.Fatalf("left %v (%v)", entries, err)
	}
}

// edited copies the tiny checkpoint and lets edit change its configuration.
func edited(t *testing.T, edit func(config map[string]any)) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(tiny)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	edit(config)
	if raw, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestConvertNamesWhatItDoesNotUnderstand: whatever could change the model's meaning is refused by name.
func TestConvertNamesWhatItDoesNotUnderstand(t *testing.T) {
	text := func(c map[string]any) map[string]any { return c["text_config"].(map[string]any) }
	for _, tc := range []struct {
		name string
		edit func(map[string]any)
		want []string
	}{
		{"unknown architecture", func(c map[string]any) { c["architectures"] = []string{"NewVLM"}; c["model_type"] = "newvlm" }, []string{`architecture "NewVLM"`, "supported families"}},
		{"unknown field", func(c map[string]any) { text(c)["attn_temperature_tuning"] = 4 }, []string{"text_config attn_temperature_tuning", "not a field"}},
		{"two unknown fields at once", func(c map[string]any) { c["zeta"] = 1; text(c)["alpha"] = 2 }, []string{"zeta", "alpha"}},
		{"missing layer", func(c map[string]any) { text(c)["num_hidden_layers"] = 3 }, []string{"layers.2.self_attn.q_proj.weight", "missing"}},
		{"extra layer", func(c map[string]any) { text(c)["num_hidden_layers"] = 1 }, []string{"layers.1.self_attn.q_proj.weight", "belongs to no layer"}},
		{"wrong shape", func(c map[string]any) { text(c)["intermediate_size"] = 121 }, []string{"gate_proj.weight", "[120 96]", "[121 96]"}},
		{"unknown decoder", func(c map[string]any) { text(c)["model_type"] = "falcon" }, []string{"model_type", "falcon"}},
		{"unknown rope", func(c map[string]any) { text(c)["rope_scaling"] = map[string]any{"rope_type": "longrope", "factor": 2} }, []string{"rope_scaling", "longrope"}},
		{"activation", func(c map[string]any) { text(c)["hidden_act"] = "gelu" }, []string{"hidden_act", "gelu"}},
		{"zero heads", func(c map[string]any) { text(c)["num_attention_heads"] = 0 }, []string{"num_attention_heads", "is 0"}},
		{"huge layer count", func(c map[string]any) { text(c)["num_hidden_layers"] = int64(1) << 60 }, []string{"num_hidden_layers"}},
		{"feature layer", func(c map[string]any) { c["vision_feature_layer"] = -9 }, []string{"vision_feature_layer"}},
		{"image token", func(c map[string]any) { c["image_token_index"] = 7 }, []string{"image token", "1000", "7"}},
		{"field of the wrong type", func(c map[string]any) { text(c)["hidden_size"] = "many" }, []string{"text_config", "hidden_size"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			folder := t.TempDir()
			_, err := convert.Convert(context.Background(), convert.Options{Checkpoint: edited(t, tc.edit), Out: filepath.Join(folder, "model"), Precision: "fp32"})
			if !errors.Is(err, convert.ErrInput) {
				t.Fatalf("got %v, want an input error", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q: %v", w, err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %v", err)
			}
			if entries, _ := os.ReadDir(folder); len(entries) > 0 {
				t.Errorf("something was left: %v", entries)
			}
		})
	}
}

func TestInspectDescribesACheckpoint(t *testing.T) {
	in, err := convert.Inspect(context.Background(), tiny)
	if err != nil {
		t.Fatal(err)
	}
	if in.Family != "llava-1.5" || in.Plan == nil || len(in.Problems) > 0 {
		t.Fatalf("got %+v", in)
	}
	var sum int64
	for _, g := range in.Groups {
		sum += g.Parameters
	}
	if sum != in.Parameters {
		t.Errorf("groups have %d parameters and the checkpoint %d", sum, in.Parameters)
	}
	broken, err := convert.Inspect(context.Background(), edited(t, func(c map[string]any) { c["zeta"] = 1 }))
	if err != nil || len(broken.Problems) == 0 {
		t.Fatalf("a checkpoint with a problem: %+v, %v", broken, err)
	}
}

// TestManifestOfTiny holds the manifest to what the golden set's NOTES say.
func TestManifestOfTiny(t *testing.T) {
	out := filepath.Join(t.TempDir(), "model")
	mustConvert(t, convert.Options{Checkpoint: tiny, Out: out, Precision: "fp32"})
	m, err := manifest.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	want := manifest.Decoder{Component: "decoder", Layers: 2, HiddenSize: 96, Heads: 6, KVHeads: 2, HeadDim: 16, VocabSize: 1024, MaxPositions: 2048,
		CacheDType: "float32", Rope: &manifest.Rope{Type: "default", Theta: 10000, Dim: 16}}
	if diff := cmp.Diff(want, *m.Decoder); diff != "" {
		t.Errorf("decoder (-want +got):\n%s", diff)
	}
	if m.Tokens.Image != 1000 || m.Picture.TokensPerTile != 16 || !cmp.Equal(m.Tokens.EOS, []int{2}) {
		t.Errorf("tokens %+v, picture %+v", m.Tokens, m.Picture)
	}
}

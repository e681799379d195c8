package convert_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/convert"
)

// A release in six pieces, at its real size, from the pieces' tensor lists: every tensor is used or known to be left out.
func TestPlanAcceptsAReleaseInPieces(t *testing.T) {
	s := mustConvert(t, convert.Options{Checkpoint: "../testdata/inventories/video-llama.toml", Plan: true})
	want := map[string]int64{
		"vision":          985_952_256,   // 39 of the file's 40 blocks, ln_vision
		"connector":       127_266_304,   // 12 layers of the image's Q-Former, 2 of the video's, positions, the projection
		"audio":           86_235_649,    // 12 blocks of ImageBind for sound
		"audio_connector": 22_855_680,    // 2 layers, positions, the projection
		"decoder":         6_607_343_616, // LLaMA-2 7B but for the token table
		"prefill":         6_607_343_616, // the same weights, for prompts
		"embeddings":      131_072_000,
	}
	if len(s.Components) != len(want) {
		t.Errorf("%d components, want %d", len(s.Components), len(want))
	}
	for _, c := range s.Components {
		if c.Parameters != want[c.Name] {
			t.Errorf("%s has %d parameters, want %d", c.Name, c.Parameters, want[c.Name])
		}
	}
}

// A piece that is missing, or given and of no use, is named before anything is written.
func TestPiecesAreNamed(t *testing.T) {
	folder, err := filepath.Abs("../testdata/goldens/videollama-tiny/checkpoint/ckpt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"vision": "eva_vit_g.pth", "qformer": "blip2_pretrained_flant5xxl.pth", "video": "finetuned_visual_branch.pth",
		"audio": "finetuned_audio_branch.pth", "imagebind": "imagebind_path/imagebind_huge.pth"}
	plan := func(change func(parts map[string]string)) error {
		parts := map[string]string{}
		for name, file := range all {
			parts[name] = filepath.Join(folder, file)
		}
		change(parts)
		alone := filepath.Join(t.TempDir(), "llm") // away from the pieces, which are found beside it
		if err := os.CopyFS(alone, os.DirFS(filepath.Join(folder, "vicuna-tiny"))); err != nil {
			t.Fatal(err)
		}
		text := "checkpoint = \"" + alone + "\"\n[parts]\n"
		for name, path := range parts {
			text += name + " = \"" + path + "\"\n"
		}
		text += "[options]\nvision_layers = 2\nvision_heads = 4\nqformer_heads = 4\naudio_heads = 4\n"
		file := filepath.Join(t.TempDir(), "pieces.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := convert.Convert(t.Context(), convert.Options{Checkpoint: file, Plan: true})
		return err
	}
	if err := plan(func(map[string]string) {}); err != nil {
		t.Fatal(err)
	}
	if err := plan(func(p map[string]string) { delete(p, "audio"); delete(p, "imagebind") }); err != nil {
		t.Errorf("a deaf model: %v", err)
	}
	for _, tc := range []struct {
		name   string
		change func(map[string]string)
		want   string
	}{
		{"sound without ImageBind", func(p map[string]string) { delete(p, "imagebind") }, "imagebind_huge.pth"},
		{"sound without its branch", func(p map[string]string) { delete(p, "audio") }, "finetuned_audio_branch.pth"},
		{"no Q-Former", func(p map[string]string) { delete(p, "qformer") }, "blip2_pretrained_flant5xxl.pth"},
		{"no vision", func(p map[string]string) { delete(p, "vision") }, "eva_vit_g.pth"},
		{"one too many", func(p map[string]string) { p["lora"] = p["video"] }, "parts.lora"},
		{"not there", func(p map[string]string) { p["video"] += ".part" }, "no such file"},
		{"another piece's file", func(p map[string]string) { p["imagebind"] = p["vision"] }, "imagebind"},
		{"the same branch twice", func(p map[string]string) { p["audio"] = p["video"] }, "audio"},
	} {
		if err := plan(tc.change); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q in it", tc.name, err, tc.want)
		}
	}
}

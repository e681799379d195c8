package convert_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"glimpse/convert"
	"glimpse/convert/checkpoint"
)

// TestLAVISPiecesGiveTheHubsModel takes a golden checkpoint of the hub apart into the authors' pieces, under the authors'
// names and with a block more than is run, and expects the same weights from both.
func TestLAVISPiecesGiveTheHubsModel(t *testing.T) {
	const hub = "../testdata/goldens/blip2-t5-tiny/checkpoint"
	folder := t.TempDir()
	pieces := lavisPieces(t, hub, folder)
	out := t.TempDir()
	mustConvert(t, convert.Options{Checkpoint: hub, Out: filepath.Join(out, "hub"), Precision: "fp32"})
	s := mustConvert(t, convert.Options{Checkpoint: pieces, Out: filepath.Join(out, "authors"), Precision: "fp32"})
	if s.Family != "blip-2 (authors)" {
		t.Errorf("family %q", s.Family)
	}
	for _, name := range []string{"vision.onnx.data", "connector.onnx.data", "encoder.onnx.data", "decoder.onnx.data", "embeddings.bin"} {
		a, errA := os.ReadFile(filepath.Join(out, "hub", name))
		b, errB := os.ReadFile(filepath.Join(out, "authors", name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs (%v, %v)", name, errA, errB)
		}
	}
}

// lavisPieces writes eva_vit_g, the Q-Former file and the language model's folder, and the .toml that names them.
func lavisPieces(t *testing.T, hub, folder string) string {
	t.Helper()
	cp, err := checkpoint.Open(t.Context(), hub)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	pieces := map[string][]checkpoint.TensorData{}
	for _, name := range cp.Names() {
		piece, renamed := lavisName(name)
		info, _ := cp.Lookup(name)
		raw := make([]byte, info.Bytes())
		if err := cp.ReadRaw(t.Context(), name, 0, raw); err != nil {
			t.Fatal(err)
		}
		add := func(name string, shape []int64, raw []byte) {
			pieces[piece] = append(pieces[piece], checkpoint.TensorData{TensorInfo: checkpoint.TensorInfo{Name: name, DType: info.DType, Shape: shape}, Data: raw})
		}
		if bias, ok := strings.CutSuffix(renamed, "attn.qkv.bias"); ok {
			third := len(raw) / 3
			add(bias+"attn.q_bias", []int64{info.Shape[0] / 3}, raw[:third])
			add(bias+"attn.v_bias", []int64{info.Shape[0] / 3}, raw[2*third:])
			continue
		}
		add(renamed, info.Shape, raw)
		if strings.HasPrefix(renamed, "blocks.0.") { // one block more than is run
			add(strings.Replace(renamed, "blocks.0.", "blocks.2.", 1), info.Shape, raw)
		}
	}
	for piece, list := range pieces {
		path := filepath.Join(folder, piece)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkpoint.WriteSafetensors(f, list); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	copyText(t, hub, filepath.Join(folder, "flan-t5"))
	toml := filepath.Join(folder, "blip2.toml")
	text := "checkpoint = \"flan-t5\"\n[parts]\nvision = \"eva_vit_g.safetensors\"\nqformer = \"blip2_pretrained.safetensors\"\n" +
		"[options]\nvision_layers = 2\nvision_heads = 5\nqformer_heads = 6\n"
	if err := os.WriteFile(toml, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return toml
}

// lavisName is the inverse of what the family renames.
func lavisName(hub string) (piece, name string) {
	if at, ok := strings.CutPrefix(hub, "language_model."); ok {
		return "flan-t5/model.safetensors", at
	}
	for _, rule := range []struct{ from, piece, to string }{
		{`^vision_model\.embeddings\.class_embedding$`, "eva", "cls_token"},
		{`^vision_model\.embeddings\.position_embedding$`, "eva", "pos_embed"},
		{`^vision_model\.embeddings\.patch_embedding\.`, "eva", "patch_embed.proj."},
		{`^vision_model\.post_layernorm\.`, "qformer", "ln_vision."},
		{`^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.`, "eva", "blocks.$1.attn.proj."},
		{`^vision_model\.encoder\.layers\.(\d+)\.self_attn\.`, "eva", "blocks.$1.attn."},
		{`^vision_model\.encoder\.layers\.(\d+)\.layer_norm`, "eva", "blocks.$1.norm"},
		{`^vision_model\.encoder\.layers\.(\d+)\.`, "eva", "blocks.$1."},
		{`^qformer\.layernorm\.`, "qformer", "Qformer.bert.embeddings.LayerNorm."},
		{`^qformer\.(.*)attention\.attention\.`, "qformer", "Qformer.bert.${1}attention.self."},
		{`^qformer\.`, "qformer", "Qformer.bert."},
		{`^language_projection\.`, "qformer", "t5_proj."},
		{`^`, "qformer", ""},
	} {
		if re := regexp.MustCompile(rule.from); re.MatchString(hub) {
			return map[string]string{"eva": "eva_vit_g.safetensors", "qformer": "blip2_pretrained.safetensors"}[rule.piece], re.ReplaceAllString(hub, rule.to)
		}
	}
	return "", ""
}

// copyText makes the language model's folder: its own configuration, and the tokenizer.
func copyText(t *testing.T, hub, folder string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(hub, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Text json.RawMessage `json:"text_config"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	tokenizer, err := os.ReadFile(filepath.Join(hub, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"config.json": config.Text, "tokenizer.json": tokenizer} {
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAMissingPieceIsNamed: what is missing is said before any work.
func TestAMissingPieceIsNamed(t *testing.T) {
	folder := t.TempDir()
	pieces := lavisPieces(t, "../testdata/goldens/blip2-t5-tiny/checkpoint", folder)
	if err := os.Remove(filepath.Join(folder, "eva_vit_g.safetensors")); err != nil {
		t.Fatal(err)
	}
	_, err := convert.Convert(context.Background(), convert.Options{Checkpoint: pieces, Plan: true})
	if err == nil || !strings.Contains(err.Error(), "vision") || !strings.Contains(err.Error(), "eva_vit_g") {
		t.Fatalf("got %v", err)
	}
}

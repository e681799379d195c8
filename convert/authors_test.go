package convert_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/convert"
	"glimpse/convert/checkpoint"
	"glimpse/manifest"
)

// TestAuthorsLLaVAGivesTheHubsModel lays a golden checkpoint of the hub out as the authors released LLaVA-1.5: LLaMA's
// tensors at the top, model.mm_projector, the CLIP tower in a folder of its own beside it, and expects the same weights.
func TestAuthorsLLaVAGivesTheHubsModel(t *testing.T) {
	root := t.TempDir()
	authors := authorsLLaVA(t, root)
	out := t.TempDir()
	mustConvert(t, convert.Options{Checkpoint: tiny, Out: filepath.Join(out, "hub"), Precision: "int8"})
	mustConvert(t, convert.Options{Checkpoint: authors, Out: filepath.Join(out, "authors"), Precision: "int8"})
	for _, name := range []string{"vision.onnx.data", "connector.onnx.data", "decoder.onnx.data", "embeddings.bin", "vision.onnx", "decoder.onnx"} {
		a, errA := os.ReadFile(filepath.Join(out, "hub", name))
		b, errB := os.ReadFile(filepath.Join(out, "authors", name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs (%v, %v)", name, errA, errB)
		}
	}
	m, err := manifest.Read(filepath.Join(out, "authors"))
	if err != nil {
		t.Fatal(err)
	}
	if p := m.Picture; p.Recipe != "pad" || len(p.Background) != 3 || p.Background[0] != 122 || p.Background[1] != 116 || p.Background[2] != 104 {
		t.Errorf("picture %+v", m.Picture)
	}
	template, err := os.ReadFile(filepath.Join(out, "authors", m.Prompt.Template))
	if err != nil || !strings.Contains(string(template), "A chat between a curious human") {
		t.Errorf("template %q (%v)", template, err)
	}
	var files []string
	for _, f := range m.Source.Files {
		files = append(files, f.Name)
	}
	if len(files) < 5 {
		t.Errorf("the manifest names only %v as its source", files)
	}
}

// authorsLLaVA writes the two checkpoints and returns the folder of the language model's.
func authorsLLaVA(t *testing.T, root string) string {
	t.Helper()
	cp, err := checkpoint.Open(t.Context(), tiny)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	rename := strings.NewReplacer("language_model.model.", "model.", "language_model.lm_head", "lm_head",
		"multi_modal_projector.linear_1", "model.mm_projector.0", "multi_modal_projector.linear_2", "model.mm_projector.2")
	var text, tower []checkpoint.TensorData
	for _, name := range cp.Names() {
		info, _ := cp.Lookup(name)
		raw := make([]byte, info.Bytes())
		if err := cp.ReadRaw(t.Context(), name, 0, raw); err != nil {
			t.Fatal(err)
		}
		if inner, ok := strings.CutPrefix(name, "vision_tower."); ok {
			info.Name = inner
			tower = append(tower, checkpoint.TensorData{TensorInfo: info, Data: raw})
			continue
		}
		info.Name = rename.Replace(name)
		text = append(text, checkpoint.TensorData{TensorInfo: info, Data: raw})
	}
	// What else a CLIP checkpoint and an old LLaMA save hold.
	tower = append(tower, constant("logit_scale"), constant("visual_projection.weight", 2, 2), constant("text_model.final_layer_norm.weight", 2))
	text = append(text, constant("model.layers.0.self_attn.rotary_emb.inv_freq", 8))

	var hub struct {
		Text   map[string]any  `json:"text_config"`
		Vision json.RawMessage `json:"vision_config"`
	}
	raw, err := os.ReadFile(filepath.Join(tiny, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &hub); err != nil {
		t.Fatal(err)
	}
	config := hub.Text
	for k, v := range map[string]any{"architectures": []string{"LlavaLlamaForCausalLM"}, "model_type": "llava", "image_aspect_ratio": "pad",
		"mm_hidden_size": 40, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
		"mm_vision_tower": "somebody/clip-tiny", "eos_token_id": 2, "bos_token_id": 1, "rope_scaling": nil, "tie_word_embeddings": false} {
		config[k] = v
	}
	release, clip := filepath.Join(root, "llava"), filepath.Join(root, "clip-tiny")
	writeCheckpoint(t, release, config, text)
	writeCheckpoint(t, clip, map[string]any{"architectures": []string{"CLIPModel"}, "vision_config": hub.Vision}, tower)
	for from, to := range map[string]string{"tokenizer.json": release, "preprocessor_config.json": clip} {
		raw, err := os.ReadFile(filepath.Join(tiny, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, from), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return release
}

func constant(name string, shape ...int64) checkpoint.TensorData {
	info := checkpoint.TensorInfo{Name: name, DType: "F32", Shape: shape}
	return checkpoint.TensorData{TensorInfo: info, Data: make([]byte, info.Bytes())}
}

func writeCheckpoint(t *testing.T, folder string, config map[string]any, tensors []checkpoint.TensorData) {
	t.Helper()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "config.json"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(folder, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	if err := checkpoint.WriteSafetensors(f, tensors); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

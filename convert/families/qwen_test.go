package families_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
)

// planChanged plans a golden checkpoint whose config.json has other values: key or "object.key". It returns the problems.
func planChanged(t *testing.T, set string, change map[string]any, release func(*families.Release)) string {
	t.Helper()
	folder := filepath.Join("../../testdata/goldens", set, "checkpoint")
	raw, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	for key, value := range change {
		at := config
		if object, inner, nested := strings.Cut(key, "."); nested {
			at, key = config[object].(map[string]any), inner
		}
		if at[key] = value; value == nil {
			delete(at, key)
		}
	}
	r := &families.Release{Parts: map[string]*families.Release{}, Extra: map[string]json.RawMessage{}, PlanOnly: true}
	if r.Config, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if release != nil {
		release(r)
	}
	cp, err := checkpoint.Open(t.Context(), folder)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	family, _, err := families.Find(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	tensors := blocks.NewTensors(cp)
	if _, err := family.Plan(r, tensors, families.Options{Precision: blocks.FP32}); err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, p := range tensors.Noted() {
		all = append(all, p.String())
	}
	return strings.Join(all, "\n")
}

// Configurations that these models cannot have are named, and nothing panics.
func TestQwenConfigurationsThatCannotBe(t *testing.T) {
	for _, c := range []struct {
		set, key string
		value    any
		want     string
	}{
		{"qwen25vl-tiny", "rope_scaling", nil, "mrope_section"},
		{"qwen25vl-tiny", "rope_scaling.mrope_section", []int{2, 3}, "mrope_section"},
		{"qwen25vl-tiny", "rope_scaling.mrope_section", []int{2, 3, 4}, "mrope_section"},
		{"qwen25vl-tiny", "vision_config.fullatt_block_indexes", []int{1, 1, 1}, "fullatt_block_indexes"},
		{"qwen25vl-tiny", "vision_config.fullatt_block_indexes", []int{7}, "fullatt_block_indexes"},
		{"qwen25vl-tiny", "vision_config.window_size", 14, "window_size"},
		{"qwen25vl-tiny", "vision_config.num_heads", 7, "num_heads"},
		{"qwen25vl-tiny", "vision_config.in_chans", 4, "in_chans"},
		{"qwen25vl-tiny", "vision_config.depth", 1 << 40, "depth"},
		{"qwen25vl-tiny", "vision_config.hidden_act", "mish", "hidden_act"},
		{"qwen25vl-tiny", "vision_config.something", 1, "vision_config something"},
		{"qwen25vl-tiny", "something", 1, "config.json something"},
		{"qwen25vl-tiny", "vision_config.out_hidden_size", 32, "out_hidden_size"},
		{"qwen3vl-tiny", "vision_config.num_position_embeddings", 35, "num_position_embeddings"},
		{"qwen3vl-tiny", "vision_config.deepstack_visual_indexes", []int{0, 0}, "deepstack_visual_indexes"},
		{"qwen3vl-tiny", "vision_config.depth", 5, "is missing"},
		{"qwen3vl-tiny", "text_config.num_hidden_layers", 1, "deepstack_visual_indexes"},
		{"qwen2vl-tiny", "vision_config.mlp_ratio", 0, "intermediate_size"},
		{"qwenvl-tiny", "visual", nil, "without pictures"},
		{"qwenvl-tiny", "quantization_config", map[string]any{"bits": 4}, "not quantized"},
		{"qwenvl-tiny", "no_bias", false, "no_bias"},
		{"qwenvl-tiny", "rotary_pct", 0.5, "rotary_pct"},
		{"qwenvl-tiny", "seq_length", 0, "seq_length"},
		{"qwenvl-tiny", "kv_channels", 24, "head_dim"},
		{"qwenvl-tiny", "visual.n_queries", 250, "n_queries"},
		{"qwenvl-tiny", "visual.patch_size", 5, "patch_size"},
		{"qwenvl-tiny", "visual.output_dim", 200, "output_dim"},
		{"qwenvl-tiny", "visual.mlp_ratio", 1e30, "mlp_ratio"},
		{"qwenvl-tiny", "visual.heads", 5, "heads"},
	} {
		if got := planChanged(t, c.set, map[string]any{c.key: c.value}, nil); !strings.Contains(got, c.want) {
			t.Errorf("%s with %s %v: want a problem with %q, got %q", c.set, c.key, c.value, c.want, got)
		}
	}
}

// Files beside config.json that say something else than it are named.
func TestQwenFilesThatDoNotFit(t *testing.T) {
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for _, c := range []struct {
		set, want string
		change    func(*families.Release)
	}{
		{"qwen25vl-tiny", "patch_size", func(r *families.Release) { r.Preprocessor = raw(`{"patch_size": 16}`) }},
		{"qwen25vl-tiny", "bounds a picture", func(r *families.Release) { r.Preprocessor = raw(`{"min_pixels": 100, "max_pixels": 50}`) }},
		{"qwen25vl-tiny", "image_processor_type", func(r *families.Release) { r.Preprocessor = raw(`{"image_processor_type": "CLIPImageProcessor"}`) }},
		{"qwen25vl-tiny", "gives the image token", func(r *families.Release) {
			r.Tokenizer = raw(`{"added_tokens": [{"id": 5, "content": "<|image_pad|>"}]}`)
		}},
		{"qwen3vl-tiny", "image_mean, image_std", func(r *families.Release) {
			r.Extra["video_preprocessor_config.json"] = raw(`{"image_mean": [0, 0, 0]}`)
		}},
		{"qwen3vl-tiny", "bounds a video", func(r *families.Release) {
			r.Extra["video_preprocessor_config.json"] = raw(`{"size": {"shortest_edge": 9, "longest_edge": 1}}`)
		}},
		{"qwenvl-tiny", "line 1", func(r *families.Release) { r.Extra["qwen.tiktoken"] = raw("hello\n") }},
	} {
		if got := planChanged(t, c.set, nil, c.change); !strings.Contains(got, c.want) {
			t.Errorf("%s: want a problem with %q, got %q", c.set, c.want, got)
		}
	}
}

// The decoder's keys beside those of the tower, and in an object of their own, are one model.
func TestQwenConfigurationsOfBothStyles(t *testing.T) {
	flat := map[string]any{}
	folder := filepath.Join("../../testdata/goldens", "qwen25vl-tiny", "checkpoint")
	raw, err := os.ReadFile(filepath.Join(folder, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &flat); err != nil {
		t.Fatal(err)
	}
	text := maps.Clone(flat)
	nested := map[string]any{}
	for key := range flat {
		if strings.HasPrefix(key, "vision") || strings.HasSuffix(key, "_token_id") && key != "bos_token_id" && key != "eos_token_id" {
			delete(text, key)
			continue
		}
		if key != "architectures" && key != "model_type" && key != "tie_word_embeddings" {
			nested[key] = nil // taken out of the outer object
		}
	}
	nested["text_config"] = text
	if got := planChanged(t, "qwen25vl-tiny", nested, nil); got != "" {
		t.Errorf("with a text_config: %s", got)
	}
}

package convert_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert"
	"glimpse/manifest"
)

func TestNeeds(t *testing.T) {
	index := `{"metadata": {"total_size": 1}, "weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}}`
	read := func(name string) ([]byte, error) {
		if name == "config.json" {
			return []byte(`{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}`), nil
		}
		return []byte(index), nil
	}
	everything := []string{".gitattributes", "README.md", "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
		"tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja", "qformer_tokenizer/tokenizer.json", "modeling_x.py", "model.onnx", "onnx/model.onnx",
		"model.Q4.gguf", "flax_model.msgpack", "tf_model.h5", "pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors"}
	side := []string{"chat_template.jinja", "qformer_tokenizer/tokenizer.json", "config.json", "preprocessor_config.json", "generation_config.json",
		"tokenizer_config.json", "tokenizer.json"}
	cases := []struct {
		name string
		has  []string
		want []string
	}{
		{"torch", everything, append(side[:7:7], "pytorch_model.bin")},
		{"shards", append(everything[:len(everything):len(everything)], "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors", "model-3.safetensors"),
			append(side[:7:7], "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors")},
		{"sentencepiece", []string{"config.json", "tokenizer.model", "added_tokens.json", "model.safetensors"},
			[]string{"config.json", "tokenizer.model", "added_tokens.json", "model.safetensors"}},
	}
	for _, c := range cases {
		got, err := convert.Needs(c.has, read)
		if err != nil {
			t.Fatal(c.name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	for _, c := range []struct {
		has   []string
		index string
		want  string
	}{
		{[]string{"README.md", "model.gguf"}, index, "model.gguf"},
		{[]string{"config.json", "flax_model.msgpack"}, index, "flax_model.msgpack"},
		{[]string{"config.json", "model.safetensors.index.json"}, index, "model-1.safetensors"},
		{[]string{"config.json", "model.safetensors.index.json"}, `{"weight_map": {"a": "../x.safetensors"}}`, "../x.safetensors"},
	} {
		index = c.index
		if _, err := convert.Needs(c.has, read); err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, convert.ErrInput) {
			t.Errorf("%v: %v", c.has, err)
		}
	}
}

// What Needs leaves out is not missed: a folder with just those files becomes the same model.
func TestNeedsIsEnough(t *testing.T) {
	for _, set := range []string{"llava15-tiny", "instructblip-tiny", "qwenvl-tiny", "internvlchat10-tiny"} {
		folder := filepath.Join("../testdata/goldens", set, "checkpoint")
		var names []string
		if err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				name, _ := filepath.Rel(folder, path)
				names = append(names, filepath.ToSlash(name))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		needed, err := convert.Needs(names, func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(folder, name)) })
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		some := filepath.Join(dir, "checkpoint")
		for _, name := range needed {
			raw, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(some, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(some, name), raw, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var models [2]*manifest.Manifest
		for i, from := range []string{folder, some} {
			out := filepath.Join(dir, string(rune('a'+i)))
			if _, err := convert.Convert(context.Background(), convert.Options{Checkpoint: from, Out: out, Repository: "org/x", Revision: "abc", Name: "x"}); err != nil {
				t.Fatal(set, err)
			}
			if models[i], err = manifest.Read(out); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(models[0], models[1]); diff != "" {
			t.Errorf("%s (-all +needed):\n%s", set, diff)
		}
		if got := models[1].Source; got.Repository != "org/x" || got.Revision != "abc" || got.Name != "x" {
			t.Errorf("%s: source %+v", set, got)
		}
	}
}

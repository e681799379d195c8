package engine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert"
	"glimpse/engine"
)

// Dynamic NTK scaling against transformers (testdata/dynamic_ntk.py): a sequence that stays within the original 64
// positions, one that grows beyond them and a prompt that is longer from the start; in chunks and in company.
func TestDynamicRopeEqualsTransformers(t *testing.T) {
	raw, err := os.ReadFile("testdata/dynamic_ntk.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Prompt    string  `json:"prompt"`
			PromptIDs []int32 `json:"prompt_ids"`
			IDs       []int32 `json:"ids"`
		} `json:"cases"`
	}
	if err := json.Unmarshal(raw, &file); err != nil || len(file.Cases) != 3 {
		t.Fatalf("%d cases: %v", len(file.Cases), err)
	}
	folder := dynamicModel(t)
	rt := openRuntime(t)
	for _, chunk := range []int{16, 128} {
		e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1, PrefillChunk: chunk, Slots: 3})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i, c := range file.Cases {
			wg.Go(func() {
				r := generate(t, e, t.Context(), engine.Request{Raw: true, Prompt: c.Prompt, MaxTokens: len(c.IDs)})
				if diff := cmp.Diff(c.PromptIDs, r.PromptTokenIDs); diff != "" {
					t.Errorf("case %d: the prompt: %s", i, diff)
				}
				if diff := cmp.Diff(c.IDs, r.TokenIDs); diff != "" {
					t.Errorf("case %d in chunks of %d: %s", i, chunk, diff)
				}
			})
		}
		wg.Wait()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
}

// dynamicModel converts llava15-tiny with dynamic scaling in its configuration.
func dynamicModel(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	checkpoint := filepath.Join(dir, "checkpoint")
	if err := os.CopyFS(checkpoint, os.DirFS(filepath.Join(goldens, "llava15-tiny", "checkpoint"))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(checkpoint, "config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	text := config["text_config"].(map[string]any)
	text["rope_scaling"] = map[string]any{"type": "dynamic", "factor": 2.0}
	text["max_position_embeddings"] = 64
	if raw, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "model")
	if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: out, Precision: "fp32"}); err != nil {
		t.Fatal(err)
	}
	return out
}

package engine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"glimpse/convert"
	"glimpse/engine"
)

// A page of English, Chinese and other scripts, code, emoji and special tokens: the tokenizer that was made of a file of
// ranks gives tiktoken's own ids.
func TestTokenizerOfRanksEqualsTiktoken(t *testing.T) {
	raw, err := os.ReadFile("testdata/qwenvl_page.json")
	if err != nil {
		t.Fatal(err)
	}
	var page struct {
		Text string  `json:"text"`
		IDs  []int32 `json:"ids"`
	}
	if err := json.Unmarshal(raw, &page); err != nil || len(page.IDs) < 1000 {
		t.Fatalf("%d ids, %v", len(page.IDs), err)
	}
	folder := filepath.Join(t.TempDir(), "model")
	if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: filepath.Join(goldens, "qwenvl-tiny", "checkpoint"), Out: folder, Precision: "fp32"}); err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: openRuntime(t), Threads: 1, Capacity: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ids, err := e.Tokenize(page.Text)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(ids, page.IDs) {
		for i := range min(len(ids), len(page.IDs)) {
			if ids[i] != page.IDs[i] {
				t.Fatalf("id %d is %d, want %d, behind %q", i, ids[i], page.IDs[i], e.Decode(ids[max(0, i-20):i]))
			}
		}
		t.Fatalf("%d ids, want %d", len(ids), len(page.IDs))
	}
}

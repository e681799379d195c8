package verify_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/engine/verify"
	"glimpse/graphs"
)

// Releases whose tokenizer gives only the first stretch of a text its dummy prefix (legacy = false, as Vicuna 1.5's) still
// give every stretch between pictures one: the authors' code tokenizes each by itself. These cases have no other special
// token, so the ids are those of the golden set.
func TestStretchesBetweenPicturesAreTokenizedApart(t *testing.T) {
	const set = "internvlchat10-tiny"
	checkpoint := t.TempDir()
	if err := os.CopyFS(checkpoint, os.DirFS(filepath.Join(goldens, set, "checkpoint"))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(checkpoint, "tokenizer_config.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	if config["legacy"] != true {
		t.Fatalf("legacy is %v in the golden set", config["legacy"])
	}
	config["legacy"] = false
	if raw, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "model")
	if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder, Precision: "fp32"}); err != nil {
		t.Fatal(err)
	}
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	report, err := verify.Run(t.Context(), e, filepath.Join(goldens, set), verify.Options{Cases: []string{"wide", "middle", "two"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Cases {
		for _, r := range c.Rows {
			if !r.OK {
				t.Errorf("%s %s: %g of %g %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.Note)
			}
		}
	}
}

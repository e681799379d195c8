package families_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/BurntSushi/toml"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
)

// planPieces plans a golden checkpoint that a pieces.toml names.
func planPieces(t *testing.T, set string, precision blocks.Precision) *families.Plan {
	t.Helper()
	folder := filepath.Join("../../testdata/goldens", set)
	var given struct {
		Checkpoint string
		Parts      map[string]string
		Options    map[string]int64
	}
	if _, err := toml.DecodeFile(filepath.Join(folder, "pieces.toml"), &given); err != nil {
		t.Fatal(err)
	}
	main := filepath.Join(folder, given.Checkpoint)
	r := &families.Release{Name: set, Parts: map[string]*families.Release{}, Options: given.Options, PlanOnly: true}
	for name, dst := range map[string]*json.RawMessage{"config.json": &r.Config, "tokenizer_config.json": &r.TokenizerConfig} {
		raw, err := os.ReadFile(filepath.Join(main, name))
		if err != nil {
			t.Fatal(err)
		}
		*dst = raw
	}
	all := map[string]checkpoint.Checkpoint{}
	open := func(prefix string, opened checkpoint.Checkpoint, err error) {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { opened.Close() })
		all[prefix] = opened
	}
	cp, err := checkpoint.Open(t.Context(), main)
	open("", cp, err)
	var names []string
	for name, file := range given.Parts {
		part, err := checkpoint.OpenFile(t.Context(), filepath.Join(folder, file))
		open(name+".", part, err)
		r.Parts[name] = &families.Release{Name: name}
		names = append(names, name)
	}
	merged, err := checkpoint.Merge(all)
	if err != nil {
		t.Fatal(err)
	}
	family, _, err := families.Find(r.Config, names...)
	if err != nil {
		t.Fatal(err)
	}
	tensors := blocks.NewTensors(merged)
	plan, err := family.Plan(r, tensors, families.Options{Precision: precision})
	if err != nil {
		t.Fatal(err)
	}
	if p := tensors.Problems(); len(p) > 0 {
		t.Fatalf("problems: %v", p)
	}
	return plan
}

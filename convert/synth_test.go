package convert_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert"
	"glimpse/convert/checkpoint"
)

// TestSynthFromAConfigurationHasTheReleasesTensors: what a plan asks for is what the release stores, the layers it never
// runs included.
func TestSynthFromAConfigurationHasTheReleasesTensors(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.json")
	raw, err := os.ReadFile(filepath.Join(tiny, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "checkpoint")
	if _, err := convert.Synth(context.Background(), convert.SynthOptions{Source: config, Out: out, Seed: 3}); err != nil {
		t.Fatal(err)
	}
	want, got := tensorList(t, tiny), tensorList(t, out)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tensors (-released +made):\n%s", diff)
	}
	model := filepath.Join(t.TempDir(), "model")
	mustConvert(t, convert.Options{Checkpoint: out, Out: model, Precision: "int8"})
}

func tensorList(t *testing.T, folder string) map[string][]int64 {
	t.Helper()
	cp, err := checkpoint.Open(t.Context(), folder)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	list := map[string][]int64{}
	for _, name := range cp.Names() {
		info, _ := cp.Lookup(name)
		list[name] = info.Shape
	}
	return list
}

func TestSynthRefusesATakenPlace(t *testing.T) {
	_, err := convert.Synth(context.Background(), convert.SynthOptions{Source: "../testdata/inventories/llava-hf--llava-1.5-7b-hf.json.gz", Out: tiny})
	if err == nil {
		t.Fatal("a folder with files was overwritten")
	}
}

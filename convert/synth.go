// Synthetic checkpoints: the shapes of a release with random weights, for planning, tests and benchmarks. Speed does not
// depend on values.

package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
)

// SynthOptions say what to make.
type SynthOptions struct {
	Source   string // a folder with a config.json, a config.json, or an inventory (.json.gz)
	Out      string
	Seed     uint64
	Progress func(Progress)
}

// SynthSummary says what was made.
type SynthSummary = checkpoint.SynthSummary

// Synth makes a checkpoint. An inventory brings its tensor list; from a configuration the family's plan says which
// tensors a complete release has. A folder's tokenizer and processor files come along.
func Synth(ctx context.Context, opts SynthOptions) (*SynthSummary, error) {
	o := checkpoint.SynthOptions{Seed: opts.Seed, Out: opts.Out}
	if opts.Progress != nil {
		o.Progress = func(done, total int64) { opts.Progress(Progress{Component: "weights", Done: done, Total: total}) }
	}
	if err := synthSource(opts.Source, &o); err != nil {
		return nil, badInput(fmt.Errorf("synth %s: %w", opts.Source, err))
	}
	if entries, err := os.ReadDir(opts.Out); err == nil && len(entries) > 0 {
		return nil, badInput(fmt.Errorf("synth %s: %s exists and is not empty", opts.Source, opts.Out))
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, badInput(fmt.Errorf("synth %s: %w", opts.Source, err))
	}
	return checkpoint.Synthesize(ctx, o)
}

func synthSource(path string, o *checkpoint.SynthOptions) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		if o.Files, err = checkpoint.FolderFiles(path); err != nil {
			return err
		}
	case strings.HasSuffix(path, ".json.gz"):
		inv, err := checkpoint.ReadInventory(path)
		if err != nil {
			return err
		}
		o.Inventory = inv
		o.SpecialTokens = inv.TokenIDs()
		o.Files, err = inv.ReleaseFiles()
		return err
	default:
		raw, _, err := readSide(filepath.Dir(path), filepath.Base(path))
		if err != nil {
			return err
		}
		o.Files = map[string][]byte{"config.json": raw}
	}
	o.Inventory, err = listTensors(o.Files)
	return err
}

// listTensors asks the family which tensors a release with these files has.
func listTensors(files map[string][]byte) (checkpoint.Inventory, error) {
	config := json.RawMessage(files["config.json"])
	if config == nil {
		return nil, errors.New("it has no config.json")
	}
	family, _, err := families.Find(config)
	if err != nil {
		return nil, err
	}
	if parts := family.Parts(config); len(parts) > 0 {
		return nil, fmt.Errorf("a release of %s is several checkpoints: make them one by one from their inventories", family.Name())
	}
	tensors := blocks.NewListing(storedDType(config))
	r := &families.Release{Config: config, Preprocessor: files["preprocessor_config.json"], Processor: files["processor_config.json"],
		Parts: map[string]*families.Release{}, PlanOnly: true}
	if _, err := family.Plan(r, tensors, families.Options{Precision: blocks.FP32}); err != nil {
		return nil, err
	}
	if p := tensors.Noted(); len(p) > 0 {
		return nil, &ProblemsError{"the configuration", p}
	}
	return checkpoint.NewList(tensors.Wanted())
}

// storedDType is the dtype that the configuration says the weights are stored in; float16 where it says nothing.
func storedDType(config json.RawMessage) checkpoint.DType {
	var c struct {
		DType    string `json:"dtype"`
		OldDType string `json:"torch_dtype"` // its name before transformers 5
	}
	_ = json.Unmarshal(config, &c) // the family judges the configuration
	switch c.DType + c.OldDType {
	case "float32":
		return "F32"
	case "bfloat16":
		return "BF16"
	}
	return "F16"
}

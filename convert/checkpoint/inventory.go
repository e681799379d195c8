package checkpoint

// Inventories: a release's configuration and its list of tensors without the weights, as gzipped JSON.

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// InventoryFile is one released checkpoint without its weights.
type InventoryFile struct {
	*List
	Path string

	// The JSON files of the release, as far as they are known; nil otherwise.
	Config, PreprocessorConfig, ProcessorConfig, GenerationConfig, TokenizerConfig json.RawMessage

	PromptFormat  string                     // how a question about a picture is written
	SpecialTokens map[string]json.RawMessage // token to id; a few are formulas in words
	Tied          map[string]string          // names that a loader makes up → the stored tensor
	Shards        []string                   // the files that the released index names
	Parameters    int64                      // elements of all tensors
	TotalBytes    int64
}

// maxInventoryBytes bounds the JSON; those of 7B releases have 100 kB.
const maxInventoryBytes = 64 << 20

// ReadInventory reads a .json.gz or .json inventory. Errors are Problems.
func ReadInventory(path string) (*InventoryFile, error) {
	name := filepath.Base(path)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening inventory: %w", err)
	}
	defer f.Close()
	data, err := decompress(f, maxInventoryBytes)
	if err != nil {
		return nil, Problems{{File: name, Text: err.Error(), Err: err}}
	}
	inventory, problems := parseInventory(name, data)
	if err := problems.err(); err != nil {
		return nil, err
	}
	inventory.Path = path
	return inventory, nil
}

// decompress reads at most most bytes of a gzipped or plain stream; more is an error.
func decompress(r io.Reader, most int64) ([]byte, error) {
	head := make([]byte, 2)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	r = io.MultiReader(bytes.NewReader(head[:n]), r)
	if bytes.Equal(head, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		defer z.Close()
		r = z
	}
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("has more than %d bytes when decompressed", most)
	}
	return data, nil
}

func parseInventory(file string, data []byte) (*InventoryFile, Problems) {
	fail := func(err error) (*InventoryFile, Problems) {
		return nil, Problems{{File: file, Text: err.Error(), Err: err}}
	}
	d, err := newStrictDecoder(data)
	if err != nil {
		return fail(err)
	}
	inventory := &InventoryFile{}
	count := int64(-1)
	into := map[string]any{
		"config": &inventory.Config, "preprocessor_config": &inventory.PreprocessorConfig,
		"processor_config": &inventory.ProcessorConfig, "generation_config": &inventory.GenerationConfig,
		"tokenizer_config": &inventory.TokenizerConfig, "prompt_format": &inventory.PromptFormat,
		"special_tokens": &inventory.SpecialTokens, "tied": &inventory.Tied, "shards": &inventory.Shards,
		"parameters": &inventory.Parameters, "total_bytes": &inventory.TotalBytes, "num_tensors": &count,
	}
	var tensors []TensorInfo
	found := false
	err = d.object("the inventory", func(key string) (err error) {
		if key == "tensors" {
			found = true
			tensors, err = parseInventoryTensors(d)
			return err
		}
		target, known := into[key]
		if !known { // sources, checks, notes: for people
			target = &json.RawMessage{}
		}
		if err := d.Decode(target); err != nil {
			return fmt.Errorf("%s: %w", quoted(key), err)
		}
		return nil
	})
	if err == nil {
		err = d.end()
	}
	if err == nil && !found {
		err = errors.New(`there is no "tensors"`)
	}
	if err != nil {
		return fail(err)
	}
	for _, config := range []*json.RawMessage{&inventory.Config, &inventory.PreprocessorConfig, &inventory.ProcessorConfig,
		&inventory.GenerationConfig, &inventory.TokenizerConfig} {
		if string(*config) == "null" {
			*config = nil
		}
	}
	list, problems := newList(file, tensors)
	inventory.List = list
	if len(problems) > 0 {
		return nil, problems
	}
	if err := inventory.checkTotals(count); err != nil {
		return fail(err)
	}
	return inventory, nil
}

// parseInventoryTensors reads {"name": ["F16", [shape]], …}.
func parseInventoryTensors(d *strictDecoder) ([]TensorInfo, error) {
	var tensors []TensorInfo
	err := d.object("tensors", func(name string) error {
		what := "tensor " + quoted(name)
		if err := d.delim('[', what); err != nil {
			return err
		}
		dtype, err := d.string(what + ": dtype")
		if err != nil {
			return err
		}
		shape, err := d.naturals(what+": shape", maxRank)
		if err != nil {
			return err
		}
		tensors = append(tensors, TensorInfo{Name: name, DType: DType(dtype), Shape: shape})
		return d.delim(']', what)
	})
	return tensors, err
}

// checkTotals compares the list with the counts beside it, and fills in what the file does not say.
func (f *InventoryFile) checkTotals(count int64) error {
	var elements, size int64
	for _, name := range f.names {
		t := f.tensors[name]
		elements += t.Elements()
		if size += t.Bytes(); size < 0 || elements < 0 {
			return errors.New("the sizes of its tensors overflow")
		}
	}
	for _, total := range []struct {
		what         string
		said, summed int64
		known        bool
	}{
		{"num_tensors", count, int64(len(f.names)), count >= 0},
		{"parameters", f.Parameters, elements, f.Parameters != 0},
		{"total_bytes", f.TotalBytes, size, f.TotalBytes != 0},
	} {
		if total.known && total.said != total.summed {
			return fmt.Errorf("%s is %d, but its tensors make %d", total.what, total.said, total.summed)
		}
	}
	f.Parameters, f.TotalBytes = elements, size
	return nil
}

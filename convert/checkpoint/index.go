package checkpoint

// Shards: model.safetensors.index.json and pytorch_model.bin.index.json say which file holds which tensor.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxIndexBytes bounds an index file; those of the largest models have a few megabytes.
const maxIndexBytes = 64 << 20

// parseIndex returns the weight_map: tensor to file name, both checked to be harmless.
func parseIndex(data []byte) (map[string]string, error) {
	d, err := newStrictDecoder(data)
	if err != nil {
		return nil, err
	}
	var weightMap map[string]string
	err = d.object("the index", func(key string) error {
		if key != "weight_map" { // "metadata" and whatever else there is
			var skipped json.RawMessage
			if err := d.Decode(&skipped); err != nil {
				return fmt.Errorf("the JSON is broken at byte %d: %w", d.InputOffset(), err)
			}
			return nil
		}
		weightMap = map[string]string{}
		return d.object("weight_map", func(name string) error {
			shard, err := d.string("weight_map " + quoted(name))
			if err != nil {
				return err
			}
			if err := checkShardName(shard); err != nil {
				return fmt.Errorf("weight_map %s: %w", quoted(name), err)
			}
			weightMap[name] = shard
			return nil
		})
	})
	switch {
	case err != nil:
		return nil, err
	case weightMap == nil:
		return nil, errors.New(`there is no "weight_map"`)
	case len(weightMap) == 0:
		return nil, errors.New(`its "weight_map" is empty`)
	}
	return weightMap, d.end()
}

// Shards returns the files that an index names, sorted. Each is the plain name of a file beside the index.
func Shards(index []byte) ([]string, error) {
	weightMap, err := parseIndex(index)
	if err != nil {
		return nil, err
	}
	return slices.Compact(slices.Sorted(maps.Values(weightMap))), nil
}

// checkShardName refuses all but the name of a file beside the index.
func checkShardName(shard string) error {
	if shard == "" || shard == "." || shard == ".." || strings.ContainsAny(shard, "/\\\x00") || !filepath.IsLocal(shard) {
		return fmt.Errorf("shard %s is not the plain name of a file in the same folder", quoted(shard))
	}
	return nil
}

// openIndex opens all shards of an index. Tensors that the index does not list are taken as well, as upstream's loader does;
// where two shards hold the same name, the index says which one counts.
func openIndex(ctx context.Context, path string) (Checkpoint, error) {
	folder, indexName := filepath.Split(path)
	data, err := readBounded(path, maxIndexBytes)
	if err != nil {
		return nil, Problems{{File: indexName, Text: err.Error(), Err: err}}
	}
	weightMap, err := parseIndex(data)
	if err != nil {
		return nil, Problems{{File: indexName, Text: err.Error(), Err: err}}
	}
	listed := map[string][]string{} // shard → tensors
	for name, shard := range weightMap {
		listed[shard] = append(listed[shard], name)
	}

	s := newStore()
	var problems Problems
	for _, shard := range slices.Sorted(maps.Keys(listed)) {
		names := listed[shard]
		slices.Sort(names)
		p, err := openPart(ctx, filepath.Join(folder, shard), shard)
		if errors.Is(err, os.ErrNotExist) {
			text := fmt.Sprintf("is missing; %s wants %d tensors from it, the first is %s", indexName, len(names), quoted(names[0]))
			problems = append(problems, Problem{File: shard, Text: text, Err: err})
			continue
		}
		if err != nil {
			problems = appendProblems(problems, shard, err)
			continue
		}
		s.files = append(s.files, p.file)
		problems = append(problems, s.addShard(p, names, weightMap, indexName)...)
	}
	if err := problems.err(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.seal()
	return s, nil
}

// addShard takes the tensors of one shard over and checks that it holds those that the index lists for it.
func (s *store) addShard(p *part, listed []string, weightMap map[string]string, indexName string) Problems {
	var problems Problems
	found := make(map[string]bool, len(p.tensors))
	for _, t := range p.tensors {
		found[t.Name] = true
		if shard, ok := weightMap[t.Name]; ok && shard != p.file.name {
			continue // a copy; the index names another shard for it
		}
		if first, twice := s.tensors[t.Name]; twice {
			problems = append(problems, Problem{File: p.file.name, Tensor: t.Name,
				Text: fmt.Sprintf("is in %s too, and %s does not say which one counts", first.file.name, indexName)})
			continue
		}
		s.tensors[t.Name] = t
	}
	for _, name := range listed {
		if !found[name] {
			problems = append(problems, Problem{File: p.file.name, Tensor: name, Text: "is not in the file, though " + indexName + " says so"})
		}
	}
	return problems
}

// appendProblems flattens what a reader reported.
func appendProblems(problems Problems, file string, err error) Problems {
	var several Problems
	if errors.As(err, &several) {
		return append(problems, several...)
	}
	return append(problems, Problem{File: file, Text: err.Error(), Err: err})
}

// readBounded reads a small file, and does not read a large one.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := openDataFile(path, filepath.Base(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.size > most {
		return nil, fmt.Errorf("has %d bytes, more than the %d that are read", f.size, most)
	}
	data := make([]byte, f.size)
	return data, f.readFull(data, 0)
}

package checkpoint

// Checkpoints with random weights: the shapes, names and dtypes of a release, for benchmarks and for tests at real size.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// SynthOptions says what to make.
type SynthOptions struct {
	Inventory Inventory // the tensors
	Seed      uint64    // the same seed makes the same values, tensor by tensor, whatever else is in the checkpoint
	Out       string    // the folder to make; it must not exist, or be empty

	// Files are written beside the weights by their names: config.json, preprocessor_config.json, … See
	// InventoryFile.ReleaseFiles and FolderFiles. Without a tokenizer among them, a stand-in is made when config.json says
	// how large the vocabulary is.
	Files map[string][]byte

	// SpecialTokens are the names of ids in a stand-in tokenizer; ids that config.json names (image_token_index,
	// eos_token_id, …) get names if they have none here.
	SpecialTokens map[string]int64

	ShardBytes int64 // the most a file holds, unless a single tensor is larger; 0 is 5 GB, as in releases

	Progress func(done, total int64) // bytes; may be nil
}

// SynthSummary is what was made.
type SynthSummary struct {
	Tensors       int
	Parameters    int64
	Bytes         int64
	Files         []string // sorted
	StandInTokens int      // the size of the stand-in tokenizer's vocabulary; 0 when none was made
}

const defaultShardBytes = 5_000_000_000

// Synthesize writes a checkpoint with random weights (see recipeFor for their distribution). The folder appears whole, or
// not at all. Memory stays at a few megabytes whatever the size.
func Synthesize(ctx context.Context, o SynthOptions) (*SynthSummary, error) {
	fail := func(err error) (*SynthSummary, error) {
		return nil, fmt.Errorf("making checkpoint %s: %w", o.Out, err)
	}
	if len(o.Inventory.Names()) == 0 {
		return fail(errors.New("the tensor list is empty"))
	}
	if o.ShardBytes == 0 {
		o.ShardBytes = defaultShardBytes
	}
	if o.ShardBytes < 0 {
		return fail(fmt.Errorf("shards of %d bytes", o.ShardBytes))
	}
	files := maps.Clone(o.Files)
	if files == nil {
		files = map[string][]byte{}
	}
	summary := &SynthSummary{}
	tokens, err := addStandIn(files, o.SpecialTokens, o.Inventory)
	if err != nil {
		return fail(err)
	}
	summary.StandInTokens = tokens
	if err := checkFree(o.Out); err != nil {
		return fail(err)
	}
	parent := filepath.Dir(filepath.Clean(o.Out))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fail(err)
	}
	temporary, err := os.MkdirTemp(parent, "."+filepath.Base(o.Out)+"-partial-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(temporary) // after a success it is no longer there
	s := synthesis{options: o, folder: temporary, summary: summary}
	if err := s.write(ctx, files); err != nil {
		return fail(err)
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return fail(err)
	}
	if err := os.Remove(o.Out); err != nil && !errors.Is(err, os.ErrNotExist) { // an empty folder
		return fail(err)
	}
	if err := os.Rename(temporary, o.Out); err != nil {
		return fail(err)
	}
	slices.Sort(summary.Files)
	return summary, nil
}

// checkFree refuses to write over anything.
func checkFree(out string) error {
	entries, err := os.ReadDir(out)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return errors.New("the folder exists and is not empty; remove it or choose another")
	}
	return nil
}

// synthesis is one run of Synthesize.
type synthesis struct {
	options     SynthOptions
	folder      string
	summary     *SynthSummary
	done, total int64
}

func (s *synthesis) write(ctx context.Context, files map[string][]byte) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("file name %s leads out of the folder", quoted(name))
		}
		path := filepath.Join(s.folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return err
		}
		s.summary.Files = append(s.summary.Files, name)
	}
	shards := s.shards()
	for i, shard := range shards {
		if err := s.writeShard(ctx, shardName(i, len(shards)), shard); err != nil {
			return err
		}
	}
	if len(shards) > 1 {
		return s.writeIndex(shards)
	}
	return nil
}

// shards cuts the sorted tensors into files.
func (s *synthesis) shards() [][]TensorInfo {
	var shards [][]TensorInfo
	var room int64
	for _, name := range s.options.Inventory.Names() {
		info, _ := s.options.Inventory.Lookup(name)
		size := info.Bytes()
		if len(shards) == 0 || size > room {
			shards = append(shards, nil)
			room = s.options.ShardBytes
		}
		last := len(shards) - 1
		shards[last] = append(shards[last], info)
		room -= size
		s.summary.Tensors++
		s.summary.Parameters += info.Elements()
		s.total += size
	}
	s.summary.Bytes = s.total
	return shards
}

func shardName(i, count int) string {
	if count == 1 {
		return "model.safetensors"
	}
	return fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, count)
}

func (s *synthesis) writeShard(ctx context.Context, name string, infos []TensorInfo) (err error) {
	f, err := os.Create(filepath.Join(s.folder, name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tensors := make([]TensorData, len(infos))
	for i, info := range infos {
		tensors[i] = TensorData{TensorInfo: info, Stream: func(w io.Writer) error {
			return fillRandom(ctx, &progressWriter{w: w, s: s}, info, s.options.Seed)
		}}
	}
	s.summary.Files = append(s.summary.Files, name)
	return WriteSafetensors(f, tensors)
}

// progressWriter reports while a tensor is being written.
type progressWriter struct {
	w io.Writer
	s *synthesis
}

func (p *progressWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.s.done += int64(n)
	if p.s.options.Progress != nil {
		p.s.options.Progress(p.s.done, p.s.total)
	}
	return n, err
}

func (s *synthesis) writeIndex(shards [][]TensorInfo) error {
	weightMap := map[string]string{}
	for i, shard := range shards {
		for _, info := range shard {
			weightMap[info.Name] = shardName(i, len(shards))
		}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	index := struct {
		Metadata  map[string]int64  `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}{map[string]int64{"total_size": s.total}, weightMap}
	if err := encoder.Encode(index); err != nil {
		return err
	}
	const name = "model.safetensors.index.json"
	s.summary.Files = append(s.summary.Files, name)
	return os.WriteFile(filepath.Join(s.folder, name), b.Bytes(), 0o644)
}

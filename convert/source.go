// Opening a release: its files, its weights, and the other checkpoints it refers to.

package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
	"glimpse/convert/onnx"
	"glimpse/convert/sentencepiece"
	"glimpse/manifest"
)

// maxSideFile bounds the JSON files of a release; the largest real tokenizer.json is 33 MB.
const maxSideFile = 128 << 20

// source is an opened release.
type source struct {
	path      string
	release   *families.Release
	head      families.Head
	family    families.Family
	inventory checkpoint.Inventory
	weights   checkpoint.Checkpoint // nil for an inventory
	files     []checkpoint.File     // the files that go into the model, for the manifest's hashes
	tensors   *blocks.Tensors
	closers   []io.Closer
}

func (s *source) Close() error {
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c.Close())
	}
	s.closers = nil
	return errors.Join(errs...)
}

func (s *source) architecture() string {
	if len(s.head.Architectures) > 0 {
		return s.head.Architectures[0]
	}
	return s.head.ModelType
}

// plan lets the family plan and turns problems into one error.
func (s *source) plan(opts families.Options) (*families.Plan, error) {
	s.tensors = blocks.NewTensors(s.inventory)
	s.tensors.Guide = &opts.Guide
	plan, err := s.family.Plan(s.release, s.tensors, opts)
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", s.path, err)
	}
	// Without a plan the configuration alone is at fault: that nothing used the tensors is then no news.
	problems := s.tensors.Problems()
	if plan == nil {
		problems = s.tensors.Noted()
	}
	if len(problems) > 0 {
		return nil, &ProblemsError{s.path, problems}
	}
	if s.weights != nil {
		s.tensors.Bind(s.weights)
	}
	if opts.Guide.Target == blocks.CUDA {
		if err := forCUDA(plan); err != nil {
			return nil, fmt.Errorf("convert %s: %w", s.path, err)
		}
		return plan, nil
	}
	addPrefill(plan)
	return plan, nil
}

// prefillName is the component that reads prompts.
const prefillName = "prefill"

// forCUDA makes a plan's graphs and caches those of CUDA. It has no second graph for prompts: its blockwise operator
// multiplies wide batches in float16, and there is no faster one.
func forCUDA(plan *families.Plan) error {
	plan.Manifest.Target = manifest.TargetCUDA
	if d := plan.Manifest.Decoder; d != nil {
		d.CacheDType = onnx.Float16.String()
	}
	var problems []error
	for _, c := range plan.Components {
		problems = append(problems, c.Builder.ForCUDA())
	}
	return errors.Join(problems...)
}

// addPrefill gives a decoder of blockwise linears its second graph. Where an encoder reads the prompts the decoder has few
// rows only.
func addPrefill(plan *families.Plan) {
	d := plan.Manifest.Decoder
	if d == nil || d.Encoder != nil {
		return
	}
	for _, c := range plan.Components {
		if c.Name != d.Component {
			continue
		}
		if p := c.Builder.Prefill(prefillName); p != nil {
			d.Prefill = prefillName
			plan.Components = append(plan.Components, &families.Component{Name: prefillName, Builder: p})
			return
		}
	}
}

// pieces is the .toml that names the parts of a split release. Paths are relative to the file.
type pieces struct {
	Checkpoint string            `toml:"checkpoint"`
	Parts      map[string]string `toml:"parts"`
	Options    map[string]int64  `toml:"options"`
}

// openSource opens a folder, a .toml of pieces, or an inventory (.json.gz, which can only be planned). parts are those of a
// folder; a .toml has its own.
func openSource(ctx context.Context, path string, planOnly bool, parts map[string]string) (s *source, err error) {
	given := pieces{Checkpoint: path, Parts: maps.Clone(parts)}
	if strings.HasSuffix(path, ".toml") {
		if given, err = readPieces(path); err != nil {
			return nil, err
		}
	}
	main := given.Checkpoint
	s = &source{path: path}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	inventory, cp, err := s.openOne(ctx, main, planOnly, &s.release)
	if err != nil {
		return s, err
	}
	s.release.Options = given.Options
	if s.family, s.head, err = families.Find(s.release.Config, slices.Sorted(maps.Keys(given.Parts))...); err != nil {
		return s, fmt.Errorf("convert %s: %w", path, err)
	}
	merged := map[string]checkpoint.Inventory{"": inventory}
	for name, reference := range families.PartsOf(s.family, s.head, s.release.Config) {
		at, err := locatePart(main, name, reference, given.Parts)
		if err != nil {
			return s, fmt.Errorf("convert %s: %w", path, err)
		}
		delete(given.Parts, name)
		part := new(families.Release)
		inv, _, err := s.openOne(ctx, at, planOnly, &part)
		if err != nil {
			return s, fmt.Errorf("convert %s: %s: %w", path, name, err)
		}
		s.release.Parts[name] = part
		merged[name+"."] = inv
	}
	for name := range given.Parts {
		return s, fmt.Errorf("convert %s: parts.%s is given and the family %s has no such part", path, name, s.family.Name())
	}
	return s, s.merge(merged, inventory, cp)
}

// merge joins the parts under their prefixes.
func (s *source) merge(parts map[string]checkpoint.Inventory, main checkpoint.Inventory, cp checkpoint.Checkpoint) error {
	if len(parts) == 1 {
		s.inventory, s.weights = main, cp
		return nil
	}
	if cp == nil {
		var err error
		if s.inventory, err = mergeLists(parts); err != nil {
			return fmt.Errorf("convert %s: %w", s.path, err)
		}
		return nil
	}
	weights := map[string]checkpoint.Checkpoint{}
	for prefix, inv := range parts {
		part, ok := inv.(checkpoint.Checkpoint)
		if !ok {
			return fmt.Errorf("convert %s: its part %s is an inventory, which has no weights", s.path, prefix)
		}
		weights[prefix] = part
	}
	merged, err := checkpoint.Merge(weights)
	if err != nil {
		return fmt.Errorf("convert %s: %w", s.path, err)
	}
	s.inventory, s.weights = merged, merged
	return nil
}

// mergeLists puts the parts' tensor lists under their prefixes, as checkpoint.Merge does with weights.
func mergeLists(parts map[string]checkpoint.Inventory) (*checkpoint.List, error) {
	var all []checkpoint.TensorInfo
	for prefix, inv := range parts {
		for _, name := range inv.Names() {
			info, _ := inv.Lookup(name)
			info.Name = prefix + name
			all = append(all, info)
		}
	}
	return checkpoint.NewList(all)
}

// openOne opens one folder or inventory and fills the release.
func (s *source) openOne(ctx context.Context, path string, planOnly bool, release **families.Release) (checkpoint.Inventory, checkpoint.Checkpoint, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open checkpoint: %w", err)
	}
	if !info.IsDir() && weightFile(path) {
		cp, err := checkpoint.OpenFile(ctx, path)
		if err != nil {
			return nil, nil, err
		}
		s.closers = append(s.closers, cp)
		s.files = append(s.files, cp.Files()...)
		*release = &families.Release{Name: filepath.Base(path), Parts: map[string]*families.Release{}}
		return cp, cp, nil
	}
	if !info.IsDir() {
		if !strings.HasSuffix(path, ".json.gz") {
			return nil, nil, fmt.Errorf("open checkpoint %s: a folder, a .toml of pieces or an inventory (.json.gz) is due", path)
		}
		if !planOnly {
			return nil, nil, fmt.Errorf("open checkpoint %s: an inventory has no weights: it can only be planned (--plan)", path)
		}
		inv, err := checkpoint.ReadInventory(path)
		if err != nil {
			return nil, nil, err
		}
		*release = inventoryRelease(path, inv)
		return inv.List, nil, nil
	}
	r, side, err := readRelease(path)
	if err != nil {
		return nil, nil, err
	}
	cp, err := checkpoint.Open(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	s.closers = append(s.closers, cp)
	s.files = append(append(s.files, side...), cp.Files()...)
	*release = r
	return cp, cp, nil
}

// weightFile reports whether a piece is a file of weights alone.
func weightFile(path string) bool {
	return slices.Contains([]string{".pth", ".pt", ".bin", ".safetensors"}, filepath.Ext(path))
}

// sideFiles are the files of a release that say something about the model, by where they go.
func sideFiles(r *families.Release) []struct {
	name string
	dst  *json.RawMessage
} {
	return []struct {
		name string
		dst  *json.RawMessage
	}{
		{"config.json", &r.Config}, {"preprocessor_config.json", &r.Preprocessor}, {"processor_config.json", &r.Processor},
		{"generation_config.json", &r.Generation}, {"tokenizer_config.json", &r.TokenizerConfig},
		{"special_tokens_map.json", &r.SpecialTokensMap}, {"tokenizer.json", &r.Tokenizer},
	}
}

// extraFiles are further files of releases that a family may ask for.
var extraFiles = []string{"video_preprocessor_config.json", "qformer_tokenizer/tokenizer.json", "qwen.tiktoken"}

// readRelease reads the side files of a checkpoint folder and lists those that were there.
func readRelease(folder string) (*families.Release, []checkpoint.File, error) {
	r := &families.Release{Name: filepath.Base(filepath.Clean(folder)), Parts: map[string]*families.Release{}, Extra: map[string]json.RawMessage{}}
	var found []checkpoint.File
	for _, f := range sideFiles(r) {
		raw, file, err := readSide(folder, f.name)
		if err != nil {
			return nil, nil, err
		}
		if raw == nil {
			continue
		}
		if !json.Valid(raw) {
			return nil, nil, fmt.Errorf("open checkpoint %s: %s is not valid JSON", folder, f.name)
		}
		*f.dst = raw
		found = append(found, file)
	}
	if r.Config == nil {
		return nil, nil, fmt.Errorf("open checkpoint %s: it has no config.json", folder)
	}
	for _, name := range extraFiles {
		raw, file, err := readSide(folder, name)
		if err != nil {
			return nil, nil, err
		}
		if raw != nil {
			r.Extra[name] = raw
			found = append(found, file)
		}
	}
	template, files, err := readTemplate(folder)
	if err != nil {
		return nil, nil, err
	}
	r.ChatTemplate = template
	found = append(found, files...)
	if r.Tokenizer == nil {
		files, err := readSentencePiece(folder, r)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, files...)
	}
	return r, found, nil
}

// sentencePieceFiles are what releases without a tokenizer.json call their SentencePiece model.
var sentencePieceFiles = []string{"tokenizer.model", "spiece.model"}

// readSentencePiece makes the tokenizer.json of a release that has a SentencePiece model instead, and lists what it was
// made from.
func readSentencePiece(folder string, r *families.Release) ([]checkpoint.File, error) {
	for _, name := range sentencePieceFiles {
		model, file, err := readSide(folder, name)
		if err != nil {
			return nil, err
		}
		if model == nil {
			continue
		}
		found := []checkpoint.File{file}
		added, file, err := readSide(folder, "added_tokens.json")
		if err != nil {
			return nil, err
		}
		if added != nil {
			found = append(found, file)
		}
		r.Tokenizer, err = sentencepiece.Convert(model, sentencepiece.Files{TokenizerConfig: r.TokenizerConfig, SpecialTokensMap: r.SpecialTokensMap, AddedTokens: added})
		if err != nil {
			return nil, fmt.Errorf("open checkpoint %s: %s: %w", folder, name, err)
		}
		return found, nil
	}
	return nil, nil
}

// readTemplate reads chat_template.jinja, or the text inside chat_template.json.
func readTemplate(folder string) (string, []checkpoint.File, error) {
	raw, file, err := readSide(folder, "chat_template.jinja")
	if err != nil || raw != nil {
		return string(raw), []checkpoint.File{file}, err
	}
	raw, file, err = readSide(folder, "chat_template.json")
	if err != nil || raw == nil {
		return "", nil, err
	}
	var holder struct {
		ChatTemplate string `json:"chat_template"`
	}
	if err := json.Unmarshal(raw, &holder); err != nil {
		return "", nil, fmt.Errorf("open checkpoint %s: chat_template.json: %w", folder, err)
	}
	return holder.ChatTemplate, []checkpoint.File{file}, nil
}

// readSide reads a file of the folder, or nothing when there is none.
func readSide(folder, name string) ([]byte, checkpoint.File, error) {
	path := filepath.Join(folder, name)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, checkpoint.File{}, nil
	}
	if err != nil {
		return nil, checkpoint.File{}, fmt.Errorf("open checkpoint: %w", err)
	}
	if info.Size() > maxSideFile {
		return nil, checkpoint.File{}, fmt.Errorf("open checkpoint %s: %s has %d bytes, more than the %d such a file may have", folder, name, info.Size(), maxSideFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, checkpoint.File{}, fmt.Errorf("open checkpoint: %w", err)
	}
	return raw, checkpoint.File{Name: name, Path: path, Bytes: int64(len(raw))}, nil
}

// inventoryRelease is what an inventory says besides its tensors.
func inventoryRelease(path string, inv *checkpoint.InventoryFile) *families.Release {
	return &families.Release{
		Name: strings.TrimSuffix(filepath.Base(path), ".json.gz"), Config: inv.Config, Preprocessor: inv.PreprocessorConfig,
		Processor: inv.ProcessorConfig, Generation: inv.GenerationConfig, TokenizerConfig: inv.TokenizerConfig, Parts: map[string]*families.Release{}, PlanOnly: true,
	}
}

func readPieces(path string) (p pieces, err error) {
	meta, err := toml.DecodeFile(path, &p)
	if err != nil {
		return p, fmt.Errorf("read pieces %s: %w", path, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return p, fmt.Errorf("read pieces %s: unknown key %s", path, unknown[0])
	}
	if p.Checkpoint == "" {
		return p, fmt.Errorf("read pieces %s: checkpoint is not given", path)
	}
	p.Checkpoint = relativeTo(path, p.Checkpoint)
	for name, at := range p.Parts {
		p.Parts[name] = relativeTo(path, at)
	}
	return p, nil
}

func relativeTo(file, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

// locatePart finds a checkpoint that the release only names ("openai/clip-vit-large-patch14-336"): given in a .toml,
// inside the release's folder, or beside it. A name inside a configuration never leads anywhere else.
func locatePart(main, name, reference string, given map[string]string) (string, error) {
	if at, ok := given[name]; ok {
		return at, nil
	}
	base := filepath.Base(filepath.FromSlash(reference))
	beside := filepath.Dir(filepath.Clean(main))
	candidates := []string{filepath.Join(main, base), filepath.Join(beside, base)}
	if strings.HasSuffix(main, ".json.gz") {
		candidates = []string{filepath.Join(beside, strings.ReplaceAll(reference, "/", "--")+".json.gz")}
	}
	if reference != "" && base != "." && base != ".." {
		for _, c := range candidates {
			if _, err := os.Stat(c); err == nil {
				return c, nil
			}
		}
	}
	return "", &MissingPartError{name, reference, candidates}
}

// MissingPartError says that a release names another checkpoint which is not there.
type MissingPartError struct {
	Part      string   // its name in [parts] of a .toml and in Options.Parts
	Reference string   // as the release's configuration has it, usually organisation/name on a hub
	Looked    []string // paths
}

func (e *MissingPartError) Error() string {
	return fmt.Sprintf("its %s is another checkpoint, %q, and none of these is there: %s; put it there, or name it in a .toml "+
		"(checkpoint = \"…\", [parts] %s = \"…\") and convert that", e.Part, e.Reference, strings.Join(e.Looked, ", "), e.Part)
}

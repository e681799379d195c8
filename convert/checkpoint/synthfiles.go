package checkpoint

// The small files beside the weights of a synthetic checkpoint.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// ReleaseFiles are the files that an inventory knows, by the names of a release, for SynthOptions.Files.
func (f *InventoryFile) ReleaseFiles() (map[string][]byte, error) {
	files := map[string][]byte{}
	for name, content := range map[string]json.RawMessage{
		"config.json":              f.Config,
		"preprocessor_config.json": f.PreprocessorConfig,
		"processor_config.json":    f.ProcessorConfig,
		"generation_config.json":   f.GenerationConfig,
		"tokenizer_config.json":    f.TokenizerConfig,
	} {
		if content == nil {
			continue
		}
		var b bytes.Buffer
		if err := json.Indent(&b, content, "", "  "); err != nil {
			return nil, fmt.Errorf("inventory %s: %s: %w", f.Path, name, err)
		}
		b.WriteByte('\n')
		files[name] = b.Bytes()
	}
	return files, nil
}

// TokenIDs are the special tokens whose ids the inventory states as numbers, for SynthOptions.SpecialTokens. Notes behind
// a token's text are dropped: "newline (eos)" is "newline".
func (f *InventoryFile) TokenIDs() map[string]int64 {
	ids := map[string]int64{}
	for token, raw := range f.SpecialTokens {
		var id int64
		if json.Unmarshal(raw, &id) != nil || id < 0 {
			continue // a formula, or a constant of upstream's code
		}
		text, _, _ := strings.Cut(token, " (")
		if i := strings.Index(text, ">/"); i >= 0 {
			text = text[:i+1]
		}
		ids[text] = id
	}
	return ids
}

const (
	maxSmallFile  = 64 << 20
	maxSmallFiles = 256 << 20
)

// smallSuffixes are configurations, tokenizers and templates; ".json.gz" is unpacked.
var smallSuffixes = []string{".json", ".json.gz", ".jinja", ".txt", ".model", ".tiktoken"}

// FolderFiles reads the files beside the weights in a folder and its sub-folders, for SynthOptions.Files. Gzipped ones are
// unpacked and lose the suffix. Weights, indexes and whatever else there is are left alone.
func FolderFiles(folder string) (map[string][]byte, error) {
	files := map[string][]byte{}
	total := 0
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		small := slices.ContainsFunc(smallSuffixes, func(s string) bool { return strings.HasSuffix(path, s) })
		if entry.IsDir() || !small || strings.HasSuffix(path, ".index.json") {
			return nil
		}
		relative, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		content, err := readSmall(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if total += len(content); total > maxSmallFiles {
			return fmt.Errorf("the files beside the weights have more than %d bytes", maxSmallFiles)
		}
		files[filepath.ToSlash(strings.TrimSuffix(relative, ".gz"))] = content
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the files of %s: %w", folder, err)
	}
	return files, nil
}

func readSmall(path string) ([]byte, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return decompress(f, maxSmallFile)
}

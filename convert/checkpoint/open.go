package checkpoint

// Which files of a folder are the checkpoint, and which format a file has.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// folderChoices are tried in the order of transformers' loader (modeling_utils, _get_resolved_checkpoint_files): safetensors
// before torch, a single file before shards.
var folderChoices = []string{
	"model.safetensors",
	"model.safetensors.index.json",
	"pytorch_model.bin",
	"pytorch_model.bin.index.json",
}

// Choose returns the name of the file that Open would open in a folder which has what has says; false: none.
func Choose(has func(name string) bool) (string, bool) {
	for _, choice := range folderChoices {
		if has(choice) {
			return choice, true
		}
	}
	return "", false
}

// Open opens a checkpoint's folder. Given a file, it does as OpenFile.
// Errors are Problems; errors.Is tells ErrNoWeights and ErrLegacyTorch.
func Open(ctx context.Context, folder string) (Checkpoint, error) {
	info, err := os.Stat(folder)
	if err != nil {
		return nil, fmt.Errorf("opening checkpoint: %w", err)
	}
	if !info.IsDir() {
		return OpenFile(ctx, folder)
	}
	for _, name := range folderChoices {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		return OpenFile(ctx, path)
	}
	return nil, fmt.Errorf("opening checkpoint %s: %w: looked for %s%s", absolute(folder), ErrNoWeights,
		strings.Join(folderChoices, ", "), otherWeights(folder))
}

// otherWeights names files that a user may have meant.
func otherWeights(folder string) string {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return ""
	}
	var found []string
	for _, e := range entries {
		if slices.Contains([]string{".safetensors", ".bin", ".pth", ".pt"}, filepath.Ext(e.Name())) {
			found = append(found, e.Name())
		}
	}
	if len(found) == 0 {
		return ""
	}
	const most = 5
	more := ""
	if len(found) > most {
		found, more = found[:most], ", …"
	}
	return "; other weight files there, which can be named directly: " + strings.Join(found, ", ") + more
}

// OpenFile opens one weight file (.safetensors, .bin, .pth) or one index (.json) with its shards.
func OpenFile(ctx context.Context, path string) (Checkpoint, error) {
	if strings.HasSuffix(path, ".json") {
		return openIndex(ctx, path)
	}
	name := filepath.Base(path)
	p, err := openPart(ctx, path, name)
	if err != nil {
		return nil, appendProblems(nil, name, err).err()
	}
	s := newStore()
	s.files = []*dataFile{p.file}
	for _, t := range p.tensors {
		s.tensors[t.Name] = t
	}
	s.seal()
	return s, nil
}

// openPart opens one file by what it holds, not by what it is called; names are unique in what it returns.
func openPart(ctx context.Context, path, name string) (*part, error) {
	f, err := openDataFile(path, name)
	if err != nil {
		return nil, err
	}
	p, problems := readPart(ctx, f)
	if err := problems.err(); err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// sniffBytes reach to the mark of a tar file.
const sniffBytes = 512

func readPart(ctx context.Context, f *dataFile) (*part, Problems) {
	head := make([]byte, min(sniffBytes, f.size))
	if err := f.readFull(head, 0); err != nil {
		return nil, Problems{{File: f.name, Text: err.Error(), Err: err}}
	}
	switch {
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return openTorch(ctx, f)
	case bytes.HasPrefix(head, []byte("version https://git-lfs")):
		return nil, Problems{{File: f.name, Text: "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"}}
	case strings.HasSuffix(f.name, ".safetensors"):
		return openSafetensors(ctx, f)
	case isLegacyTorch(head):
		return nil, Problems{{File: f.name, Text: legacyText, Err: ErrLegacyTorch}}
	case isPickle(head):
		return nil, Problems{{File: f.name, Text: "is a bare pickle, not a torch zip file: torch.save(model.state_dict(), …) makes one"}}
	case slices.Contains([]string{".bin", ".pth", ".pt"}, filepath.Ext(f.name)):
		return nil, Problems{{File: f.name, Text: "is not a torch zip file (it does not start as one): the download is damaged, or it is no checkpoint"}}
	}
	return openSafetensors(ctx, f) // blobs of a download cache have no suffix
}

// A model folder's hash.

package batch

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// HashFolder identifies a model by its files: SHA-256 over, for each file by name, the name, the size and the SHA-256 of the
// contents; the first 16 hex digits. Hidden files do not count. It reads everything, which is what loading the model does
// next anyway.
func HashFolder(folder string) (string, error) {
	var names []string
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
			names = append(names, path)
		}
		return err
	})
	if err == nil && len(names) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", fmt.Errorf("hash the model %s: %w", folder, err)
	}
	slices.Sort(names)
	whole := sha256.New()
	for _, name := range names {
		size, sum, err := hashFile(name)
		if err != nil {
			return "", fmt.Errorf("hash the model %s: %w", folder, err)
		}
		below, err := filepath.Rel(folder, name)
		if err != nil {
			return "", fmt.Errorf("hash the model %s: %w", folder, err)
		}
		fmt.Fprintf(whole, "%s\n%d\n%x\n", filepath.ToSlash(below), size, sum)
	}
	return hex.EncodeToString(whole.Sum(nil)[:8]), nil
}

func hashFile(path string) (int64, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return n, h.Sum(nil), err
}

// Reading one picture's bytes, whatever holds them.

package source

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"

	"glimpse/batch/row"
)

// Version returns the item's version without reading it: of a file its size and time of change.
func Version(i *Item) uint64 {
	if i.Version != 0 || !i.Local() {
		return i.Version
	}
	version, err := FileVersion(i.Path)
	if err != nil {
		return 0
	}
	return version
}

// FileVersion returns the version of a file, or of a folder's files.
func FileVersion(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if !info.IsDir() {
		return VersionOf(info.Size(), info.ModTime().UnixNano()), nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, err
	}
	parts := make([]int64, 0, 3*len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return 0, err
		}
		name := fnv.New64a()
		name.Write([]byte(e.Name()))
		parts = append(parts, int64(name.Sum64()), info.Size(), info.ModTime().UnixNano())
	}
	return VersionOf(parts...), nil
}

// VersionOf hashes the numbers that change with a file. It is never 0.
func VersionOf(parts ...int64) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(p))
		h.Write(b[:])
	}
	return h.Sum64() | 1
}

// Read returns the bytes of an item that is a file or an object, at most limit of them.
func Read(ctx context.Context, i *Item, store Store, limit int64) ([]byte, *row.ItemError) {
	if i.Ref == "" {
		return readFile(i.Path, limit)
	}
	in, err := store.Open(ctx, i.Ref)
	if err != nil {
		return nil, row.FileError(err)
	}
	defer in.Close()
	return readAll(in, limit)
}

func readFile(path string, limit int64) ([]byte, *row.ItemError) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, row.FileError(err)
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for a writer that may never come
		return nil, &row.ItemError{Kind: row.KindUnreadable, Message: "not a regular file"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, row.FileError(err)
	}
	defer f.Close()
	return readAll(f, limit)
}

// readAll counts the size here, since what is read may be growing.
func readAll(in io.Reader, limit int64) ([]byte, *row.ItemError) {
	data, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, row.FileError(err)
	}
	return checkSize(data, limit)
}

func checkSize(data []byte, limit int64) ([]byte, *row.ItemError) {
	switch {
	case len(data) == 0:
		return nil, &row.ItemError{Kind: row.KindEmpty, Message: "the file is empty"}
	case int64(len(data)) > limit:
		return nil, &row.ItemError{Kind: row.KindTooLarge, Message: fmt.Sprintf("the file has more than %d bytes", limit)}
	}
	return data, nil
}

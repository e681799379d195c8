// WebDataset shards: tar files whose members with a picture's extension are the inputs.

package source

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"glimpse/batch/row"

	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory that a zstd frame may ask for.
const maxWindow = 128 << 20

// tar yields the picture members of a shard, in their order. The compression is told by the first bytes, not by the name.
func (s *Source) tar(ctx context.Context, r root, yield yielder) bool {
	in, err := s.open(ctx, r.name)
	if err != nil {
		return yield(failed(r, err))
	}
	defer in.Close()
	plain, done, err := decompress(in)
	if err != nil {
		return yield(failed(r, &row.ItemError{Kind: row.KindUnreadable, Message: fmt.Sprintf("read the shard: %v", err)}))
	}
	defer done()
	version := shardVersion(r.name)
	members := tar.NewReader(plain)
	for n := int64(0); ; n++ {
		header, err := members.Next()
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			// What was listed so far stands; the rest of the shard is one error.
			return yield(failed(r, &row.ItemError{Kind: row.KindUnreadable, Message: fmt.Sprintf("read the shard after %d members: %v", n, err)}))
		}
		if header.Typeflag != tar.TypeReg || !s.wanted(header.Name) {
			continue
		}
		place := filepath.ToSlash(r.name) + "/" + header.Name
		item := Item{ID: row.Printable(place), Path: place, Load: func() ([]byte, error) {
			data, problem := readAll(members, s.limit(header.Name))
			if problem != nil {
				return nil, problem
			}
			return data, nil
		}}
		if version != 0 {
			item.Version = VersionOf(int64(version), n, header.Size)
		}
		if !yield(item) {
			return false
		}
	}
}

func shardVersion(name string) uint64 {
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return VersionOf(info.Size(), info.ModTime().UnixNano())
}

func decompress(in io.Reader) (plain io.Reader, done func(), err error) {
	buffered := bufio.NewReaderSize(in, 1<<16)
	start, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { z.Close() }, nil
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return buffered, func() {}, nil
}

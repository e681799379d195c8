// WebDataset parts: a tar file whose samples' members lie next to each other, KEY.jpg KEY.txt KEY.json.

package sink

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"glimpse/batch/row"
)

// spool is a tar file that is filled as rows come. It has no state but its length, so that cutting it back to where a
// member ended is all that a crash needs.
type spool struct {
	file    *os.File
	buffer  *bufio.Writer
	written uint64
}

// openSpool opens the part under way and cuts it back to end. A part that was renamed already, but not described by a
// stats file, becomes the part under way again.
func openSpool(path, published string, end uint64) (*spool, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(published, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("take the part up again: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the part under way: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() < int64(end) {
		err = fmt.Errorf("%s has %d bytes, and the journal says %d", path, info.Size(), end)
	}
	if err == nil {
		err = f.Truncate(int64(end))
	}
	if err == nil {
		_, err = f.Seek(int64(end), io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open the part under way: %w", err)
	}
	return &spool{f, bufio.NewWriterSize(f, 1<<18), end}, nil
}

// extensions by the first bytes of a picture; WebDataset readers decode by the extension.
var extensions = []struct {
	magic, extension string
}{
	{"\xff\xd8", "jpg"}, {"\x89PNG", "png"}, {"GIF8", "gif"}, {"BM", "bmp"}, {"II*\x00", "tiff"}, {"MM\x00*", "tiff"}, {"RIFF", "webp"},
}

func extensionOf(data []byte) string {
	for _, x := range extensions {
		if bytes.HasPrefix(data, []byte(x.magic)) {
			if x.extension != "webp" || len(data) >= 12 && string(data[8:12]) == "WEBP" {
				return x.extension
			}
		}
	}
	if extension := row.ClipExtension(data); extension != "" {
		return extension
	}
	return "bin"
}

// add appends a sample and returns where the file ends then. Rows without a caption have no sample: they are in
// errors.jsonl, or have their original's.
func (s *spool) add(r *row.Row, line, data []byte, key string) (uint64, error) {
	if r.Error != nil || r.DuplicateOf != "" {
		return s.written, nil
	}
	// Members are given whole, with a header that has no time, owner or machine in it.
	for _, m := range []struct {
		name string
		data []byte
	}{{key + "." + extensionOf(data), data}, {key + ".txt", []byte(r.Caption)}, {key + ".json", line}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		header := &tar.Header{Typeflag: tar.TypeReg, Name: m.name, Size: int64(len(m.data)), Mode: 0o644, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return 0, fmt.Errorf("add %s to the shard: %w", r.ID, err)
		}
		if _, err := w.Write(m.data); err != nil {
			return 0, fmt.Errorf("add %s to the shard: %w", r.ID, err)
		}
		if err := w.Flush(); err != nil { // pads to a block, without a trailer
			return 0, fmt.Errorf("add %s to the shard: %w", r.ID, err)
		}
		if _, err := s.buffer.Write(b.Bytes()); err != nil {
			return 0, fmt.Errorf("write the part under way: %w", err)
		}
		s.written += uint64(b.Len())
	}
	return s.written, nil
}

func (s *spool) sync() error {
	if err := s.buffer.Flush(); err != nil {
		return fmt.Errorf("write the part under way: %w", err)
	}
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("write the part under way: %w", err)
	}
	return nil
}

// finish adds the trailer, two blocks of zeros, and closes the file.
func (s *spool) finish() error {
	if _, err := s.buffer.Write(make([]byte, 1024)); err != nil {
		return fmt.Errorf("write the part under way: %w", err)
	}
	return errors.Join(s.sync(), s.close())
}

// close closes the file; closing nil or again is harmless.
func (s *spool) close() error {
	if s == nil || s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

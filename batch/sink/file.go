// One JSONL file that can be resumed.
//
// The file is its own journal: it is only ever appended to, whole lines in one write, and synced in groups. A crash can
// therefore leave nothing worse than a torn last line. Opening the file reads the rows that are there, cuts a torn line
// off, and refuses a file that is not a caption file: the cut must never destroy a stranger's data. Rows with an error
// are in NAME.errors.jsonl beside it as well, which is made again from the rows when the file is opened.

package sink

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"glimpse/batch/row"
)

// maxLine bounds a line of an existing file. Ours are a few hundred bytes.
const maxLine = 16 << 20

// linePrefix is how every line of ours begins.
const linePrefix = `{"id":"`

// newSuffix is what a file has at the end of its name while it is to replace another.
const newSuffix = ".new"

type file struct {
	o       Options
	file    *os.File
	errors  *os.File // nil until there is an error
	pending []byte
	failed  []byte // lines for errors
	seen    map[row.Key]Seen
	err     error // a failed write leaves an unknown tail; nothing may follow it
}

func openFile(o Options) (*file, error) {
	path := o.Out
	switch o.OnExisting {
	case Append:
		return nil, fmt.Errorf("%w: rows cannot be appended to the file %s so that a killed run can go on; name a folder", ErrInput, o.Out)
	case Overwrite:
		path += newSuffix
	}
	if o.Format != "" && o.Format != JSONL {
		return nil, fmt.Errorf("%w: %s is a file, and %s needs a folder", ErrInput, o.Out, o.Format)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%w: open output: %w", ErrInput, err)
	}
	s := &file{o: o, file: f, seen: map[row.Key]Seen{}}
	if err := s.prepare(); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// prepare locks the file, reads its rows, cuts a torn line and leaves the offset at the end.
func (s *file) prepare() error {
	name := s.file.Name()
	if err := lock(s.file, name); err != nil {
		return err
	}
	end, err := readRows(s.file, func(r *row.Row) error {
		rec, err := recordOf(r, 0, 0)
		if err != nil {
			return err
		}
		s.seen[rec.Key] = seenOf(rec)
		s.o.Visit(r.ID, rec)
		if r.Error != nil {
			return s.appendFailed(r)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: output %s: %w", ErrInput, name, err)
	}
	if err := s.file.Truncate(end); err != nil {
		return fmt.Errorf("cut the torn line of %s: %w", name, err)
	}
	if _, err := s.file.Seek(end, io.SeekStart); err != nil {
		return fmt.Errorf("seek in %s: %w", name, err)
	}
	if err := os.Remove(s.errorsPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace the list of errors: %w", err)
	}
	if err := s.flushFailed(); err != nil {
		return err
	}
	// The name must be as durable as the rows: without this a crash may lose a file whose contents were synced.
	return syncFolder(filepath.Dir(name))
}

func (s *file) errorsPath() string {
	return strings.TrimSuffix(s.o.Out, filepath.Ext(s.o.Out)) + ".errors.jsonl"
}

// readRows calls f for each row and returns the offset at which whole rows end. Anything but a torn last line that is not a
// row of ours is an error.
func readRows(r io.Reader, f func(*row.Row) error) (end int64, err error) {
	lines := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			if !isTorn(line) {
				return 0, fmt.Errorf("its last line is not a caption row; choose another file")
			}
			return end, nil
		}
		if err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
		var named struct {
			ID     *string `json:"id"`
			Prompt *string `json:"prompt"`
			Model  *string `json:"model"`
		}
		var r row.Row
		if err := errors.Join(json.Unmarshal(line, &named), json.Unmarshal(line, &r)); err != nil {
			return 0, fmt.Errorf("line %d is not a caption row (%w); choose another file", n, err)
		}
		if named.ID == nil || named.Prompt == nil || named.Model == nil {
			return 0, fmt.Errorf("line %d is not a caption row: it needs id, prompt and model; choose another file", n)
		}
		if err := f(&r); err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
		end += int64(len(line))
	}
}

// readLine returns a line with its newline; without one the error is io.EOF.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return nil, fmt.Errorf("longer than %d bytes; choose another file", maxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// isTorn reports whether a text without newline can be the beginning of a line of ours. File systems that lose power may
// also leave zeros where the data should be.
func isTorn(line []byte) bool {
	line = bytes.TrimRight(line, "\x00")
	return bytes.HasPrefix(line, []byte(linePrefix)) || strings.HasPrefix(linePrefix, string(line))
}

func (s *file) Seen(key row.Key) (Seen, bool) {
	seen, ok := s.seen[key]
	return seen, ok
}

func (s *file) NeedsData() bool { return false }

func (s *file) State(name string) string {
	if s.o.OnExisting == Overwrite {
		return s.o.Out + newSuffix + "." + name
	}
	return s.o.Out + "." + name
}

func (s *file) Append(r *row.Row, _ []byte, version uint64) error {
	if s.err != nil {
		return s.err
	}
	line, err := r.Encode()
	if err != nil {
		return err
	}
	s.pending = append(s.pending, line...)
	if r.Error != nil {
		return s.appendFailed(r)
	}
	return nil
}

func (s *file) appendFailed(r *row.Row) error {
	line, err := r.Encode()
	s.failed = append(s.failed, line...)
	return err
}

func (s *file) Sync() error {
	if s.err != nil || len(s.pending) == 0 {
		return s.err
	}
	s.o.Hook("file.write")
	_, err := s.file.Write(s.pending)
	s.pending = s.pending[:0]
	s.o.Hook("file.fsync")
	if err == nil {
		err = s.file.Sync()
	}
	if err == nil {
		err = s.flushFailed()
	}
	if err != nil {
		s.err = fmt.Errorf("write rows: %w", err)
	}
	return s.err
}

// flushFailed writes error rows. They are not synced: the rows themselves are.
func (s *file) flushFailed() error {
	if len(s.failed) == 0 {
		return nil
	}
	if s.errors == nil {
		f, err := os.OpenFile(s.errorsPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("list errors: %w", err)
		}
		s.errors = f
	}
	_, err := s.errors.Write(s.failed)
	s.failed = s.failed[:0]
	return err
}

func (s *file) Finish() error {
	if err := s.Sync(); err != nil {
		return err
	}
	if s.o.OnExisting != Overwrite {
		return nil
	}
	s.o.Hook("file.rename")
	if err := os.Rename(s.file.Name(), s.o.Out); err != nil {
		return fmt.Errorf("replace %s: %w", s.o.Out, err)
	}
	return syncFolder(filepath.Dir(s.o.Out))
}

// Close syncs and releases the lock; closing again is harmless. An error that Sync already returned is not repeated.
func (s *file) Close() error {
	if s.file == nil {
		return nil
	}
	var err error
	if s.err == nil {
		err = s.Sync()
	}
	err = errors.Join(err, s.file.Close())
	if s.errors != nil {
		err = errors.Join(err, s.errors.Close())
	}
	s.file, s.errors = nil, nil
	return err
}

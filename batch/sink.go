// Where rows go: a JSONL file that can be resumed, or a stream.
//
// The file is only ever appended to, whole lines in one write, and synced in groups. A crash can therefore leave nothing
// worse than a torn last line. Opening the file reads the rows that are there, cuts a torn line off, and refuses a file
// that is not a caption file: the cut must never destroy a stranger's data.

package batch

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
	"syscall"
)

// sink takes rows in their final order. Rows are durable after Sync or Close. Not safe for several goroutines.
type sink interface {
	Append(line []byte) error
	Sync() error
	Close() error // syncs
}

// maxLine bounds a line of an existing file. Ours are a few hundred bytes.
const maxLine = 16 << 20

// linePrefix is how every line of ours begins.
const linePrefix = `{"id":"`

// openSink opens the output and returns the keys of the rows it holds, each with whether that row is an error.
func openSink(out string, stdout Writer) (sink, map[key]bool, error) {
	if out == "-" {
		if stdout == nil {
			return nil, nil, fmt.Errorf("%w: no standard output to write to", ErrInput)
		}
		return streamSink{stdout}, map[key]bool{}, nil
	}
	info, err := os.Stat(out)
	if err == nil && info.IsDir() {
		return nil, nil, fmt.Errorf("%w: output %s is a folder; name a .jsonl file", ErrInput, out)
	}
	if err == nil && !info.Mode().IsRegular() { // /dev/stdout, a pipe
		f, err := os.OpenFile(out, os.O_WRONLY, 0)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: open output: %w", ErrInput, err)
		}
		return closingSink{streamSink{f}, f}, map[key]bool{}, nil
	}
	return openFile(out)
}

func openFile(out string) (sink, map[key]bool, error) {
	f, err := os.OpenFile(out, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: open output: %w", ErrInput, err)
	}
	done, err := prepareFile(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return &fileSink{file: f}, done, nil
}

// prepareFile locks the file, reads its rows, cuts a torn line and leaves the offset at the end.
func prepareFile(f *os.File) (map[key]bool, error) {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: output %s is being written by another run", ErrInput, f.Name())
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	done, end, err := readRows(f)
	if err != nil {
		return nil, fmt.Errorf("%w: output %s: %w", ErrInput, f.Name(), err)
	}
	if err := f.Truncate(end); err != nil {
		return nil, fmt.Errorf("cut the torn line of %s: %w", f.Name(), err)
	}
	if _, err := f.Seek(end, io.SeekStart); err != nil {
		return nil, fmt.Errorf("seek in %s: %w", f.Name(), err)
	}
	// The name must be as durable as the rows: without this a crash may lose a file whose contents were synced.
	if err := syncFolder(filepath.Dir(f.Name())); err != nil {
		return nil, err
	}
	return done, nil
}

// readRows returns the keys of the rows and the offset at which whole rows end. Anything but a torn last line that is
// not a row of ours is an error.
func readRows(r io.Reader) (map[key]bool, int64, error) {
	done := map[key]bool{}
	var end int64
	lines := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			if !isTorn(line) {
				return nil, 0, fmt.Errorf("its last line is not a caption row; choose another file")
			}
			return done, end, nil
		}
		if err != nil {
			return nil, 0, fmt.Errorf("line %d: %w", n, err)
		}
		var row struct {
			ID     *string    `json:"id"`
			Prompt *string    `json:"prompt"`
			Model  *string    `json:"model"`
			Error  *ItemError `json:"error"`
		}
		if err := json.Unmarshal(line, &row); err != nil {
			return nil, 0, fmt.Errorf("line %d is not a caption row (%w); choose another file", n, err)
		}
		if row.ID == nil || row.Prompt == nil || row.Model == nil {
			return nil, 0, fmt.Errorf("line %d is not a caption row: it needs id, prompt and model; choose another file", n)
		}
		done[keyOf(*row.ID, *row.Prompt, *row.Model)] = row.Error != nil
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

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, fs.ErrInvalid) {
		return fmt.Errorf("sync folder %s: %w", path, err) // EINVAL: a file system without this call
	}
	return nil
}

// fileSink appends to a locked file. Lines wait in memory until Sync.
type fileSink struct {
	file    *os.File
	pending []byte
	err     error // a failed write leaves an unknown tail; nothing may follow it
}

func (s *fileSink) Append(line []byte) error {
	if s.err != nil {
		return s.err
	}
	s.pending = append(s.pending, line...)
	return nil
}

func (s *fileSink) Sync() error {
	if s.err != nil || len(s.pending) == 0 {
		return s.err
	}
	_, err := s.file.Write(s.pending)
	s.pending = s.pending[:0]
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		s.err = fmt.Errorf("write rows: %w", err)
	}
	return s.err
}

// Close syncs and releases the lock; closing again is harmless. An error that Sync already returned is not repeated.
func (s *fileSink) Close() error {
	if s.file == nil {
		return nil
	}
	var err error
	if s.err == nil {
		err = s.Sync()
	}
	err = errors.Join(err, s.file.Close())
	s.file = nil
	return err
}

// streamSink writes every row at once.
type streamSink struct{ w Writer }

func (s streamSink) Append(line []byte) error {
	if _, err := s.w.Write(line); err != nil {
		return fmt.Errorf("write row: %w", err)
	}
	return nil
}
func (streamSink) Sync() error  { return nil }
func (streamSink) Close() error { return nil }

// closingSink is a stream that we opened ourselves.
type closingSink struct {
	streamSink
	c io.Closer
}

func (s closingSink) Close() error { return s.c.Close() }

// Package journal is the batch's memory: which pictures have a row, and the rows of the part that is being filled.
// docs/batch.md writes the format down.
//
// A journal is a list of segments, one a part of the output. While a part is being filled its segment holds whole rows;
// once the part is published its segment is replaced by one of keys alone. Records are appended, never changed, and each
// has a checksum. What must stay true: a record that Sync has returned for is there after any crash, and a torn last
// record is recognised and cut, but damage before the end is an error and never a silent loss.
package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"

	"glimpse/batch/row"
)

// Magic begins every segment.
const Magic = "GLMPJ01\n"

// MaxRecord bounds a record, so that a damaged length asks for no memory.
const MaxRecord = 64 << 20

const (
	frameSize = 8  // length and checksum
	headSize  = 61 // of a record's body without its row
)

// Flags of a Record.
const (
	FlagError     = 1 << iota // the row is one with an error
	FlagDuplicate             // the row names another as its original
	FlagPHash                 // PHash is set
	FlagKeys                  // of the row only its id is kept
)

// ErrDamaged is a segment that is not what was written.
var ErrDamaged = errors.New("journal is damaged")

// Record is one row, or what is kept of it.
type Record struct {
	Flags   uint8
	Key     row.Key // of the row: id, prompt, model
	Content row.Key // of the content: bytes, prompt, model
	Version uint64  // of the file (size and time of change); 0: not known
	PHash   uint64
	Run     uint32 // which run made it; see docs/batch.md
	Spool   uint64 // WebDataset: where the part under way ends after this row
	Row     []byte // JSON; in a segment of keys {"id": …} alone
}

var table = crc32.MakeTable(crc32.Castagnoli)

// Append adds the record's bytes to buf: u32 length of the body, u32 CRC-32C of the body, the body; little endian.
func (r *Record) Append(buf []byte) []byte {
	at := len(buf)
	buf = append(buf, make([]byte, frameSize)...)
	buf = append(buf, r.Flags)
	buf = append(buf, r.Key[:]...)
	buf = append(buf, r.Content[:]...)
	buf = binary.LittleEndian.AppendUint64(buf, r.Version)
	buf = binary.LittleEndian.AppendUint64(buf, r.PHash)
	buf = binary.LittleEndian.AppendUint32(buf, r.Run)
	buf = binary.LittleEndian.AppendUint64(buf, r.Spool)
	buf = append(buf, r.Row...)
	body := buf[at+frameSize:]
	binary.LittleEndian.PutUint32(buf[at:], uint32(len(body)))
	binary.LittleEndian.PutUint32(buf[at+4:], crc32.Checksum(body, table))
	return buf
}

func parse(body []byte) Record {
	r := Record{Flags: body[0], Key: row.Key(body[1:17]), Content: row.Key(body[17:33])}
	r.Version = binary.LittleEndian.Uint64(body[33:])
	r.PHash = binary.LittleEndian.Uint64(body[41:])
	r.Run = binary.LittleEndian.Uint32(body[49:])
	r.Spool = binary.LittleEndian.Uint64(body[53:])
	if len(body) > headSize {
		r.Row = body[headSize:]
	}
	return r
}

// Read calls f for each whole record and returns the offset at which they end; what follows is torn. A record's Row is
// only valid during the call. An error of f ends the reading.
func Read(in io.Reader, f func(Record) error) (end int64, err error) {
	r := bufio.NewReaderSize(in, 1<<16)
	magic := make([]byte, len(Magic))
	n, err := io.ReadFull(r, magic)
	if err != nil && ignoreEnd(err) != nil {
		return 0, err
	}
	if string(magic[:n]) != Magic {
		if strings.HasPrefix(Magic, strings.TrimRight(string(magic[:n]), "\x00")) {
			return 0, tornOr(r, 0) // created, and not even its head was written
		}
		return 0, fmt.Errorf("%w: it does not begin as a journal does", ErrDamaged)
	}
	end = int64(len(Magic))
	var body []byte
	for {
		var frame [frameSize]byte
		if _, err := io.ReadFull(r, frame[:]); err != nil {
			return end, ignoreEnd(err)
		}
		length := int64(binary.LittleEndian.Uint32(frame[:]))
		if length < headSize || length > MaxRecord {
			return end, tornOr(r, end)
		}
		body, err = readBody(r, body, int(length))
		if err != nil {
			return end, ignoreEnd(err)
		}
		if crc32.Checksum(body, table) != binary.LittleEndian.Uint32(frame[4:]) {
			return end, tornOr(r, end)
		}
		if err := f(parse(body)); err != nil {
			return end, err
		}
		end += frameSize + length
	}
}

// readBody grows its buffer as bytes come, since a damaged length may promise more than there is.
func readBody(r io.Reader, body []byte, length int) ([]byte, error) {
	body = body[:0]
	for len(body) < length {
		n := min(length-len(body), 1<<20)
		at := len(body)
		body = append(body, make([]byte, n)...)
		if _, err := io.ReadFull(r, body[at:]); err != nil {
			return nil, err
		}
	}
	return body, nil
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// tornOr decides about a record that does not hold: it is torn when it is the last thing in the file, or nothing but
// zeros follow, which is what some file systems leave; with more behind it, it was whole once and is damaged now.
func tornOr(r io.Reader, at int64) error {
	rest, err := io.ReadAll(io.LimitReader(r, 1<<16))
	if err != nil {
		return err
	}
	if onlyZeros(rest) {
		return nil
	}
	return fmt.Errorf("%w: the record at byte %d has a wrong checksum or length, and more follows it", ErrDamaged, at)
}

// onlyZeros reports whether there is nothing but zeros.
func onlyZeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// Writer appends to a segment. Records wait in memory until Sync. Not safe for several goroutines.
type Writer struct {
	file    *os.File
	pending []byte
	err     error // a failed write leaves an unknown tail; nothing may follow it
}

// Open opens a segment for appending after calling f for each record that is there; a torn tail is cut.
func Open(path string, f func(Record) error) (*Writer, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	w := &Writer{file: file}
	end, err := Read(file, f)
	if err == nil {
		err = file.Truncate(end)
	}
	if err == nil {
		_, err = file.Seek(end, io.SeekStart)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	if end == 0 {
		w.pending = append(w.pending, Magic...)
	}
	return w, nil
}

// Append takes a record; it is durable after Sync.
func (w *Writer) Append(r *Record) error {
	if w.err != nil {
		return w.err
	}
	if headSize+len(r.Row) > MaxRecord {
		return fmt.Errorf("a row of %d bytes is more than the journal takes", len(r.Row))
	}
	w.pending = r.Append(w.pending)
	return nil
}

// Sync writes what waits, in one call, and makes it durable.
func (w *Writer) Sync() error {
	if w.err != nil || len(w.pending) == 0 {
		return w.err
	}
	_, err := w.file.Write(w.pending)
	w.pending = w.pending[:0]
	if err == nil {
		err = w.file.Sync()
	}
	if err != nil {
		w.err = fmt.Errorf("write journal: %w", err)
	}
	return w.err
}

// Close drops what was not synced and releases the file; closing again is harmless.
func (w *Writer) Close() error {
	if w == nil || w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

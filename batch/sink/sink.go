// Package sink is where rows go: a JSONL file, a stream, or a folder of parts in one of several formats.
//
// What must stay true: a row that Sync has returned for is there after any crash; a part is under its name only when it is
// whole and durable; and killing a run at any moment and running it again leaves the same bytes as a run that was not
// disturbed, given the same rows in the same order. docs/batch.md writes the files down.
package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/batch/journal"
	"glimpse/batch/row"
)

// ErrInput marks outputs that are not ours to write, or not as asked.
var ErrInput = errors.New("bad batch output")

// Output takes rows in their final order. But for Seen not safe for several goroutines.
type Output interface {
	// Seen returns what was known of the row with this key when the output was opened; ok is false where this run is to make
	// it. It may be called at any time from any goroutine.
	Seen(key row.Key) (s Seen, ok bool)
	// Append takes a row and, where NeedsData, the picture's bytes. It is durable after Sync.
	Append(r *row.Row, data []byte, version uint64) error
	Sync() error
	// Finish says that all rows are there: the last part is published.
	Finish() error
	// Close keeps what was synced; closing again is harmless.
	Close() error
	// State is a path for what belongs to the output until it is finished; "" where nothing is kept. Another run of the same
	// output has the same, but never at the same time.
	State(name string) string
	// NeedsData reports whether Append wants the pictures.
	NeedsData() bool
}

// Seen is what is remembered of a row.
type Seen struct {
	Content [8]byte // the beginning of its content key
	Version uint64
	Error   bool // it is a row with an error
}

// Formats of parts.
const (
	JSONL      = "jsonl"
	CSV        = "csv"
	Parquet    = "parquet"
	WebDataset = "webdataset"
	Text       = "txt"
)

// Formats lists them.
var Formats = []string{JSONL, CSV, Parquet, WebDataset, Text}

// What is done with rows that are there already.
const (
	Skip      = "skip"      // inputs that have a row are not captioned again
	Overwrite = "overwrite" // the rows that are there are removed first
	Append    = "append"    // every input gets another row
)

// OnExisting lists them.
var OnExisting = []string{Skip, Overwrite, Append}

// DefaultPartRows is how many rows a part has.
const DefaultPartRows = 10_000

// Options say where rows go. Zero values are the defaults.
type Options struct {
	Out        string    // a .jsonl file, "-", or a folder; required
	Stdout     io.Writer // where "-" goes
	Format     string    // of a folder's parts; "": JSONL
	PartRows   int       // rows of a part; 0: DefaultPartRows
	OnExisting string    // "": Skip
	Settings   string    // what rows depend on beside the picture: an unfinished run with others is not continued by Overwrite or Append
	// Visit is called for each row that is there, in order, with its id.
	Visit func(id string, r journal.Record)
	// Upload takes a finished file of a folder to an object store, after which the local one is removed; nil: it stays.
	Upload func(ctx context.Context, name, path string) error
	// Hook is called by the name of the step that is about to be done; tests stop the world there. nil: nothing.
	Hook func(step string)
}

// Open opens an output. Errors that are the caller's are ErrInput.
func Open(ctx context.Context, o Options) (Output, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.Out == "-" {
		if o.Stdout == nil {
			return nil, fmt.Errorf("%w: no standard output to write to", ErrInput)
		}
		return stream{o.Stdout}, nil
	}
	info, err := os.Stat(o.Out)
	switch {
	case err == nil && info.IsDir():
		return openFolder(ctx, o)
	case err == nil && !info.Mode().IsRegular(): // /dev/stdout, a pipe
		f, err := os.OpenFile(o.Out, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("%w: open output: %w", ErrInput, err)
		}
		return closingStream{stream{f}, f}, nil
	case err == nil, o.isFile():
		return openFile(o)
	}
	return openFolder(ctx, o)
}

// isFile reports whether a name that is not there yet is to be one file. A name without an extension is a folder, and so
// is every output whose format needs parts.
func (o *Options) isFile() bool {
	return (o.Format == JSONL || o.Format == "") && slices.Contains([]string{".jsonl", ".ndjson", ".json"}, strings.ToLower(filepath.Ext(o.Out)))
}

func (o Options) withDefaults() (Options, error) {
	if o.Out == "" {
		return o, fmt.Errorf("%w: no output named", ErrInput)
	}
	if o.Format != "" && !slices.Contains(Formats, o.Format) {
		return o, fmt.Errorf("%w: the format must be one of %s, not %q", ErrInput, strings.Join(Formats, ", "), o.Format)
	}
	if o.OnExisting == "" {
		o.OnExisting = Skip
	}
	if !slices.Contains(OnExisting, o.OnExisting) {
		return o, fmt.Errorf("%w: what to do with existing rows must be one of %s, not %q", ErrInput, strings.Join(OnExisting, ", "), o.OnExisting)
	}
	if o.PartRows <= 0 {
		o.PartRows = DefaultPartRows
	}
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	if o.Visit == nil {
		o.Visit = func(string, journal.Record) {}
	}
	for _, extension := range []string{".csv", ".parquet", ".tar"} {
		if strings.HasSuffix(strings.ToLower(o.Out), extension) {
			if info, err := os.Stat(o.Out); err != nil || !info.IsDir() {
				return o, fmt.Errorf("%w: %s: only JSON Lines go to a single file; name a folder, and the format with --format", ErrInput, o.Out)
			}
		}
	}
	return o, nil
}

// States are the paths that Output.State may give for a name, for who does not write the output.
func States(out, name string) []string {
	return []string{filepath.Join(out, ".glimpse", name), out + "." + name, out + newSuffix + "." + name}
}

// recordOf is a row as the journal has it.
func recordOf(r *row.Row, version uint64, run uint32) (journal.Record, error) {
	rec := journal.Record{Key: r.Key(), Version: version, Run: run}
	if r.SHA256 != "" {
		rec.Content = r.ContentKey()
	}
	if r.Error != nil {
		rec.Flags |= journal.FlagError
	}
	if r.DuplicateOf != "" {
		rec.Flags |= journal.FlagDuplicate
	}
	if r.PHash != "" {
		if _, err := fmt.Sscanf(r.PHash, "%016x", &rec.PHash); err != nil {
			return rec, fmt.Errorf("row %s: perceptual hash %q: %w", r.ID, r.PHash, err)
		}
		rec.Flags |= journal.FlagPHash
	}
	return rec, nil
}

func seenOf(r journal.Record) Seen {
	return Seen{Content: [8]byte(r.Content[:8]), Version: r.Version, Error: r.Flags&journal.FlagError != 0}
}

// stream writes every row at once.
type stream struct{ w io.Writer }

func (s stream) Append(r *row.Row, _ []byte, _ uint64) error {
	line, err := r.Encode()
	if err != nil {
		return err
	}
	if _, err := s.w.Write(line); err != nil {
		return fmt.Errorf("write row: %w", err)
	}
	return nil
}

func (stream) Seen(row.Key) (Seen, bool) { return Seen{}, false }
func (stream) Sync() error               { return nil }
func (stream) Finish() error             { return nil }
func (stream) Close() error              { return nil }
func (stream) NeedsData() bool           { return false }
func (stream) State(string) string       { return "" }

// closingStream is a stream that we opened ourselves.
type closingStream struct {
	stream
	c io.Closer
}

func (s closingStream) Close() error { return s.c.Close() }

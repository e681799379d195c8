// A folder of parts with a journal.
//
//	OUT/part-00000.parquet, part-00000.stats.json, …    whole and durable once the stats file is there
//	OUT/errors.jsonl                                    every row with an error
//	OUT/.glimpse/run.json                               which run this is and whether it has ended
//	OUT/.glimpse/journal-00000, …                       a segment a part
//	OUT/.glimpse/spool-00000                            WebDataset: the part that is being filled
//
// The journal is the truth: a part is a pure function of its segment's rows, so that it can be made again at any moment until
// its stats file is there. After that the segment is replaced by one that keeps the keys alone. A WebDataset part also
// holds pictures, which the journal does not: it is filled as rows come and cut back to where the last journalled row ends.

package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"glimpse/batch/journal"
	"glimpse/batch/row"
)

// run is run.json.
type run struct {
	Number   uint32 `json:"run"`    // counts the runs that ended, plus one
	Mode     string `json:"mode"`   // what this run does with existing rows
	State    string `json:"state"`  // stateClearing, stateRunning or stateDone
	Format   string `json:"format"` // of the parts
	PartRows int    `json:"part_rows"`
	Settings string `json:"settings"` // a hash: what rows depend on beside the picture
}

const (
	stateClearing = "clearing" // an overwriting run is removing what was there
	stateRunning  = "running"
	stateDone     = "done"
)

type folder struct {
	ctx     context.Context
	o       Options
	format  format
	run     run
	lock    *os.File
	part    int // the part that is being filled
	journal *journal.Writer
	rows    int // in the journal's last segment
	spool   *spool
	errors  *os.File
	failed  []byte // lines for errors
	seen    map[row.Key]Seen
	err     error
}

func (f *folder) state(name string) string { return filepath.Join(f.o.Out, ".glimpse", name) }
func (f *folder) segment(part int) string  { return f.state(fmt.Sprintf("journal-%05d", part)) }
func (f *folder) spoolPath() string        { return f.state(fmt.Sprintf("spool-%05d", f.part)) }
func (f *folder) partPath(part int) string {
	return filepath.Join(f.o.Out, fmt.Sprintf("part-%05d%s", part, f.format.extension))
}
func (f *folder) statsPath(part int) string {
	return filepath.Join(f.o.Out, fmt.Sprintf("part-%05d.stats.json", part))
}
func (f *folder) errorsPath() string { return filepath.Join(f.o.Out, "errors.jsonl") }

func openFolder(ctx context.Context, o Options) (_ *folder, err error) {
	f := &folder{ctx: ctx, o: o, seen: map[row.Key]Seen{}}
	if err := os.MkdirAll(f.state(""), 0o755); err != nil {
		return nil, fmt.Errorf("%w: make output: %w", ErrInput, err)
	}
	if f.lock, err = os.OpenFile(f.state("lock"), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, fmt.Errorf("%w: open output: %w", ErrInput, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := lock(f.lock, o.Out); err != nil {
		return nil, err
	}
	if err := f.begin(); err != nil {
		return nil, err
	}
	if err := f.recover(); err != nil {
		return nil, err
	}
	return f, nil
}

// begin decides whether this run continues another, and makes room for an overwriting one.
func (f *folder) begin() error {
	had, err := readJSON(f.state("run.json"), &f.run)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInput, err)
	}
	if !had {
		if err := f.refuseStrangers(); err != nil {
			return err
		}
	}
	if had && f.run.State == stateClearing { // what is left of the parts would not fit together
		if err := f.clear(); err != nil {
			return err
		}
	}
	unfinished := had && f.run.State != stateDone
	continues := unfinished && f.run.Mode == f.o.OnExisting && (f.o.OnExisting == Skip || f.run.Settings == f.o.Settings)
	if f.o.Format == "" {
		f.o.Format = JSONL
		if had {
			f.o.Format = f.run.Format
		}
	}
	f.format = formatOf(f.o.Format)
	if had && f.run.Format != f.o.Format && f.o.OnExisting != Overwrite {
		return fmt.Errorf("%w: %s has %s parts; name another folder, or overwrite it", ErrInput, f.o.Out, f.run.Format)
	}
	if continues {
		f.o.PartRows = f.run.PartRows // a part that is half full keeps its size
		f.run.State = stateRunning
		return f.write(f.run)
	}
	next := run{Number: f.run.Number + 1, Mode: f.o.OnExisting, State: stateRunning, Format: f.o.Format, PartRows: f.o.PartRows, Settings: f.o.Settings}
	if f.o.OnExisting == Overwrite && had {
		next.State = stateClearing
		if err := f.write(next); err != nil {
			return err
		}
		if err := f.clear(); err != nil {
			return err
		}
		next.State = stateRunning
	}
	return f.write(next)
}

func (f *folder) write(r run) error {
	f.run = r
	return f.o.replaceJSON(f.state("run.json"+asideSuffix), f.state("run.json"), "run", r)
}

// refuseStrangers keeps us from writing among parts that another program made.
func (f *folder) refuseStrangers() error {
	for _, pattern := range []string{"part-*", "errors.jsonl"} {
		if found, _ := filepath.Glob(filepath.Join(escapeGlob(f.o.Out), pattern)); len(found) > 0 {
			return fmt.Errorf("%w: %s is there, and no journal of ours beside it; name another folder", ErrInput, found[0])
		}
	}
	return nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(path)
}

// clear removes the parts, their stats, the errors and the journal, and nothing else.
func (f *folder) clear() error {
	out := escapeGlob(f.o.Out)
	for _, pattern := range []string{"part-[0-9]*", "errors.jsonl", ".glimpse/journal-*", ".glimpse/spool-*"} {
		found, err := filepath.Glob(filepath.Join(out, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			f.o.Hook("clear")
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("clear the output: %w", err)
			}
		}
	}
	return syncFolder(f.o.Out)
}

// recover reads the journal, finishes what a crash interrupted and opens the part that is to be filled.
func (f *folder) recover() error {
	if asides, _ := filepath.Glob(f.state("*" + asideSuffix)); len(asides) > 0 {
		for _, path := range asides {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove what a crash left: %w", err)
			}
		}
	}
	var errorsEnd int64
	for ; ; f.part++ {
		var s Stats
		published, err := readJSON(f.statsPath(f.part), &s)
		if err != nil {
			return err
		}
		if !published {
			break
		}
		if err := f.replay(f.part, s.Rows); err != nil {
			return err
		}
		errorsEnd = s.ErrorsBytes
	}
	if err := f.openErrors(errorsEnd); err != nil {
		return err
	}
	return f.openPart()
}

// replay reads the segment of a published part and replaces it by one of keys, unless that is done.
func (f *folder) replay(part int, rows int) error {
	in, err := os.Open(f.segment(part))
	if err != nil {
		return fmt.Errorf("part %d has no journal: %w", part, err)
	}
	defer in.Close()
	n, full := 0, false
	_, err = journal.Read(in, func(r journal.Record) error {
		n++
		full = full || r.Flags&journal.FlagKeys == 0
		return f.remember(r)
	})
	if err == nil && n != rows {
		err = fmt.Errorf("it has %d rows, and the part %d", n, rows)
	}
	if err != nil {
		return fmt.Errorf("journal of part %d: %w", part, err)
	}
	if full {
		return f.compact(part)
	}
	return nil
}

// remember takes a record into the map of what is there.
func (f *folder) remember(r journal.Record) error {
	var named struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(r.Row, &named); err != nil {
		return fmt.Errorf("%w: a row is no JSON: %w", journal.ErrDamaged, err)
	}
	if f.run.Mode != Append || r.Run == f.run.Number {
		f.seen[r.Key] = seenOf(r)
		f.o.Visit(named.ID, r)
	}
	return nil
}

// openPart opens the journal of the part that is to be filled, and its spool.
func (f *folder) openPart() (err error) {
	var end uint64
	f.rows = 0
	f.o.Hook("segment.open")
	f.journal, err = journal.Open(f.segment(f.part), func(r journal.Record) error {
		f.rows++
		end = r.Spool
		if r.Flags&journal.FlagError != 0 {
			f.failed = append(append(f.failed, r.Row...), '\n')
		}
		return f.remember(r)
	})
	if err != nil {
		return err
	}
	if f.format.spooled {
		if f.spool, err = openSpool(f.spoolPath(), f.partPath(f.part), end); err != nil {
			return err
		}
	}
	if err := f.flushFailed(); err != nil {
		return err
	}
	if err := syncFolder(f.state("")); err != nil {
		return err
	}
	if f.rows >= f.o.PartRows {
		if err := f.publish(); err != nil {
			return err
		}
		return f.openPart()
	}
	return nil
}

// openErrors cuts the list of errors back to those of published parts.
func (f *folder) openErrors(end int64) error {
	info, err := os.Stat(f.errorsPath())
	if errors.Is(err, fs.ErrNotExist) && end == 0 {
		return nil
	}
	if err != nil || info.Size() < end {
		return fmt.Errorf("%w: %s is missing or shorter than the parts' stats say", ErrInput, f.errorsPath())
	}
	if f.errors, err = os.OpenFile(f.errorsPath(), os.O_RDWR, 0o644); err != nil {
		return fmt.Errorf("list errors: %w", err)
	}
	if err := f.errors.Truncate(end); err != nil {
		return fmt.Errorf("list errors: %w", err)
	}
	_, err = f.errors.Seek(end, io.SeekStart)
	return err
}

func (f *folder) flushFailed() (err error) {
	if len(f.failed) == 0 {
		return nil
	}
	if f.errors == nil {
		if f.errors, err = os.Create(f.errorsPath()); err != nil {
			return fmt.Errorf("list errors: %w", err)
		}
	}
	_, err = f.errors.Write(f.failed)
	f.failed = f.failed[:0]
	return err
}

func (f *folder) Seen(key row.Key) (Seen, bool) {
	s, ok := f.seen[key]
	return s, ok
}

func (f *folder) NeedsData() bool { return f.format.spooled }

func (f *folder) State(name string) string { return f.state(name) }

func (f *folder) Append(r *row.Row, data []byte, version uint64) error {
	if f.err != nil {
		return f.err
	}
	f.o.Hook("append")
	if f.err = f.append(r, data, version); f.err != nil {
		return f.err
	}
	if f.rows >= f.o.PartRows {
		if f.err = f.publish(); f.err == nil {
			f.err = f.openPart()
		}
	}
	return f.err
}

func (f *folder) append(r *row.Row, data []byte, version uint64) error {
	rec, err := recordOf(r, version, f.run.Number)
	if err != nil {
		return err
	}
	line, err := r.Encode()
	if err != nil {
		return err
	}
	if f.spool != nil {
		if rec.Spool, err = f.spool.add(r, line, data, f.sample()); err != nil {
			return err
		}
	}
	rec.Row = line[:len(line)-1]
	if err := f.journal.Append(&rec); err != nil {
		return err
	}
	if r.Error != nil {
		f.failed = append(f.failed, line...)
	}
	f.rows++
	return nil
}

// sample is the number of the next row in all parts, which names it in a WebDataset.
func (f *folder) sample() string { return fmt.Sprintf("%05d%06d", f.part, f.rows) }

func (f *folder) Sync() error {
	if f.err == nil {
		f.err = f.sync()
	}
	return f.err
}

func (f *folder) sync() error {
	if f.spool != nil { // first, so that no journalled row lacks its picture
		f.o.Hook("sync.spool")
		if err := f.spool.sync(); err != nil {
			return err
		}
	}
	f.o.Hook("sync.journal")
	if err := f.journal.Sync(); err != nil {
		return err
	}
	f.o.Hook("sync.errors")
	return f.flushFailed()
}

// Finish publishes the last part and marks the run as ended.
func (f *folder) Finish() error {
	if err := f.Sync(); err != nil {
		return err
	}
	if f.rows > 0 {
		f.err = f.publish()
	} else {
		f.err = f.dropEmpty()
	}
	if f.err != nil {
		return f.err
	}
	r := f.run
	r.State = stateDone
	f.err = f.write(r)
	return f.err
}

// dropEmpty removes the part under way, in which there is nothing.
func (f *folder) dropEmpty() error {
	err := errors.Join(f.journal.Close(), f.spool.close())
	f.journal, f.spool = nil, nil
	for _, path := range []string{f.segment(f.part), f.spoolPath()} {
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove the empty part: %w", rerr))
		}
	}
	return errors.Join(err, syncFolder(f.state("")))
}

// Close keeps what was synced and releases the lock; closing again is harmless.
func (f *folder) Close() error {
	if f.lock == nil {
		return nil
	}
	var err error
	if f.err == nil && f.journal != nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.journal.Close(), f.spool.close(), f.lock.Close())
	if f.errors != nil {
		err = errors.Join(err, f.errors.Close())
	}
	f.lock, f.errors = nil, nil
	return err
}

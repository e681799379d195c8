// Making a part out of its segment of the journal.

package sink

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"

	"glimpse/batch/journal"
	"glimpse/batch/row"
)

// Stats is a part's stats file. Its keys are public: add, never rename. Nothing in it depends on when or how fast the part
// was made, except MS.
type Stats struct {
	Part        string         `json:"part"` // the file's name; "" where the format has none
	Format      string         `json:"format"`
	Rows        int            `json:"rows"`
	Captioned   int            `json:"captioned"`
	Duplicates  int            `json:"duplicates"`
	Errors      map[string]int `json:"errors"` // by kind
	Tokens      int            `json:"tokens"`
	MS          float64        `json:"ms"`
	FirstID     string         `json:"first_id"`
	LastID      string         `json:"last_id"`
	Bytes       int64          `json:"bytes"`
	SHA256      string         `json:"sha256"`
	ErrorsBytes int64          `json:"errors_bytes"` // where this part's rows end in errors.jsonl
}

func (s *Stats) add(r *row.Row) {
	if s.Rows == 0 {
		s.FirstID = r.ID
	}
	s.LastID = r.ID
	s.Rows++
	s.Tokens += r.Tokens
	s.MS += r.MS
	switch {
	case r.Error != nil:
		s.Errors[r.Error.Kind]++
	case r.DuplicateOf != "":
		s.Duplicates++
	default:
		s.Captioned++
	}
}

// format is how a part is written.
type format struct {
	name      string
	extension string
	spooled   bool // filled as rows come; write is nil
	// write writes the part's rows.
	write func(w io.Writer, rows iter.Seq2[*row.Row, error]) error
	// beside is called for each row before the part is published; nil: nothing lies beside it.
	beside func(o *Options, r *row.Row) error
}

func formatOf(name string) format {
	switch name {
	case CSV:
		return format{name: name, extension: ".csv", write: writeCSV}
	case Parquet:
		return format{name: name, extension: ".parquet", write: writeParquet}
	case WebDataset:
		return format{name: name, extension: ".tar", spooled: true}
	case Text:
		return format{name: name, extension: ".jsonl", write: writeJSONL, beside: writeSideCar}
	}
	return format{name: name, extension: ".jsonl", write: writeJSONL}
}

func writeJSONL(w io.Writer, rows iter.Seq2[*row.Row, error]) error {
	for r, err := range rows {
		if err != nil {
			return err
		}
		line, err := r.Encode()
		if err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// readSegment yields the rows of a segment.
func readSegment(path string) iter.Seq2[*row.Row, error] {
	return func(yield func(*row.Row, error) bool) {
		stop := fmt.Errorf("stop")
		in, err := os.Open(path)
		if err == nil {
			defer in.Close()
			_, err = journal.Read(in, func(rec journal.Record) error {
				r := &row.Row{}
				if err := json.Unmarshal(rec.Row, r); err != nil {
					return err
				}
				if !yield(r, nil) {
					return stop
				}
				return nil
			})
		}
		if err != nil && err != stop {
			yield(nil, fmt.Errorf("read the journal again: %w", err))
		}
	}
}

// publish makes the part under way whole; openPart is next. Every step can be repeated after a crash: until the stats
// file is there the part counts for nothing, and from then on its segment's rows are not needed.
func (f *folder) publish() error {
	if err := f.sync(); err != nil {
		return err
	}
	s := Stats{Format: f.format.name, Errors: map[string]int{}}
	for r, err := range readSegment(f.segment(f.part)) {
		if err != nil {
			return err
		}
		s.add(r)
		if f.format.beside != nil {
			f.o.Hook("beside")
			if err := f.format.beside(&f.o, r); err != nil {
				return err
			}
		}
	}
	if err := f.writePart(); err != nil {
		return err
	}
	if err := f.describe(&s); err != nil {
		return err
	}
	if err := f.upload(&s); err != nil {
		return err
	}
	if err := f.o.replaceJSON(f.state("stats"+asideSuffix), f.statsPath(f.part), "stats", s); err != nil {
		return err
	}
	if f.o.Upload != nil {
		if err := os.Remove(f.partPath(f.part)); err != nil {
			return fmt.Errorf("remove what was uploaded: %w", err)
		}
	}
	if err := f.journal.Close(); err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	if err := f.compact(f.part); err != nil {
		return err
	}
	f.part++
	f.journal, f.spool, f.rows = nil, nil, 0
	return nil
}

func (f *folder) writePart() error {
	if f.spool != nil {
		f.o.Hook("spool.finish")
		if err := f.spool.finish(); err != nil {
			return err
		}
		f.o.Hook("spool.rename")
		if err := os.Rename(f.spoolPath(), f.partPath(f.part)); err != nil {
			return fmt.Errorf("publish part: %w", err)
		}
		return syncFolder(f.o.Out)
	}
	return f.o.replaceFile(f.state("part"+asideSuffix), f.partPath(f.part), "part", func(file *os.File) error {
		w := bufio.NewWriterSize(file, 1<<16)
		if err := f.format.write(w, readSegment(f.segment(f.part))); err != nil {
			return err
		}
		return w.Flush()
	})
}

// describe fills in what the part's file says of itself.
func (f *folder) describe(s *Stats) error {
	in, err := os.Open(f.partPath(f.part))
	if err != nil {
		return fmt.Errorf("read the part again: %w", err)
	}
	defer in.Close()
	h := sha256.New()
	if s.Bytes, err = io.Copy(h, in); err != nil {
		return fmt.Errorf("read the part again: %w", err)
	}
	s.Part, s.SHA256 = filepath.Base(in.Name()), hex.EncodeToString(h.Sum(nil))
	if f.errors == nil {
		return nil
	}
	f.o.Hook("errors.fsync")
	if err := f.errors.Sync(); err != nil {
		return fmt.Errorf("list errors: %w", err)
	}
	s.ErrorsBytes, err = f.errors.Seek(0, io.SeekCurrent)
	return err
}

// upload takes the part, its stats and the errors so far to the object store.
func (f *folder) upload(s *Stats) error {
	if f.o.Upload == nil {
		return nil
	}
	stats := f.state("upload" + asideSuffix)
	if err := f.o.replaceJSON(f.state("upload-2"+asideSuffix), stats, "upload", s); err != nil {
		return err
	}
	files := [][2]string{{s.Part, f.partPath(f.part)}, {filepath.Base(f.statsPath(f.part)), stats}}
	if f.errors != nil {
		files = append(files, [2]string{"errors.jsonl", f.errorsPath()})
	}
	for _, file := range files {
		if err := f.o.Upload(f.ctx, file[0], file[1]); err != nil {
			return fmt.Errorf("upload %s: %w", file[0], err)
		}
	}
	return os.Remove(stats)
}

// compact replaces a published part's segment by one that keeps the keys and ids.
func (f *folder) compact(part int) error {
	path := f.segment(part)
	return f.o.replaceFile(f.state("segment"+asideSuffix), path, "compact", func(file *os.File) error {
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		w := bufio.NewWriterSize(file, 1<<16)
		if _, err := w.WriteString(journal.Magic); err != nil {
			return err
		}
		var buf []byte
		_, err = journal.Read(in, func(r journal.Record) error {
			var named struct {
				ID string `json:"id"`
			}
			if err := json.Unmarshal(r.Row, &named); err != nil {
				return err
			}
			r.Flags |= journal.FlagKeys
			if r.Row, err = json.Marshal(named); err != nil {
				return err
			}
			buf = r.Append(buf[:0])
			_, err := w.Write(buf)
			return err
		})
		if err != nil {
			return err
		}
		return w.Flush()
	})
}

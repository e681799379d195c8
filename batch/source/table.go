// Lists and tables as text: a path a line, JSON Lines, CSV.

package source

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/batch/row"
)

// PathColumns and BytesColumns are the columns that are looked for where none is named, in this order.
var (
	PathColumns  = []string{"path", "image_path", "file_name", "filename", "file", "filepath", "image", "img", "url", "image_url", "uri", "video", "video_path", "video_url"}
	BytesColumns = []string{"bytes", "image_bytes", "image.bytes", "jpg", "jpeg", "png", "webp", "mp4", "webm"}
)

// maxLine bounds a line of a table: the largest picture in base64 and a little beside it.
func (s *Source) maxLine() int { return int(s.o.MaxBytes)/3*4 + 1<<20 }

// broken is an item for a line or record that names no picture.
func broken(r root, place int, format string, args ...any) Item {
	name := fmt.Sprintf("%s:%d", filepath.ToSlash(r.name), place)
	return Item{ID: row.Printable(name), Path: name, Err: &row.ItemError{Kind: row.KindBadRecord, Message: fmt.Sprintf(format, args...)}}
}

// failed is an item for a root that could not be read to its end.
func failed(r root, err error) Item {
	return Item{ID: row.Printable(filepath.ToSlash(r.name)), Path: r.name, Err: err}
}

// lines calls f with each line, without its end, and its number. Lines that are too long are items with an error.
func (s *Source) lines(ctx context.Context, r root, yield yielder, f func(n int, line []byte) bool) bool {
	in, err := s.open(ctx, r.name)
	if err != nil {
		return yield(failed(r, err))
	}
	defer in.Close()
	buffered := bufio.NewReaderSize(in, 1<<16)
	for n := 1; ; n++ {
		line, long, err := readLine(buffered, s.maxLine())
		if long && !yield(broken(r, n, "the line has more than %d bytes", s.maxLine())) {
			return false
		}
		line = bytes.TrimRight(line, "\r\n")
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if !long && len(line) > 0 && !f(n, line) {
			return false
		}
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			return yield(failed(r, err))
		}
	}
}

// readLine returns a line with its end; of one that is too long it skips the rest.
func readLine(r *bufio.Reader, limit int) (line []byte, long bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if !long {
			line = append(line, part...)
		}
		if len(line) > limit {
			long, line = true, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, long, err
		}
	}
}

// list reads a path a line.
func (s *Source) list(ctx context.Context, r root, yield yielder) bool {
	return s.lines(ctx, r, yield, func(_ int, line []byte) bool { return yield(s.named(string(line), "")) })
}

// base is the folder of a table's relative paths.
func (r root) base() string {
	if _, remote := Scheme(r.name); r.name == "-" || remote {
		return ""
	}
	return filepath.Dir(r.name)
}

// record is one row of a table: get returns a column's text and whether it is there.
type record struct {
	place int
	get   func(column string) (string, bool)
}

// item makes an item of a table's row. Bytes are base64.
func (s *Source) item(r root, rec record) Item {
	id := ""
	if s.o.IDColumn != "" {
		var ok bool
		if id, ok = rec.get(s.o.IDColumn); !ok || id == "" {
			return broken(r, rec.place, "it has no column %s, which is to name the row", s.o.IDColumn)
		}
	}
	item, ok := s.pathItem(r, rec)
	if !ok {
		item, ok = s.bytesItem(r, rec)
	}
	if !ok {
		return broken(r, rec.place, "it names no picture: %s", s.missingColumns())
	}
	if id != "" {
		item.ID = row.Printable(id)
	}
	return item
}

func (s *Source) missingColumns() string {
	switch {
	case s.o.Column != "":
		return "no column " + s.o.Column
	case s.o.BytesColumn != "":
		return "no column " + s.o.BytesColumn
	}
	return "none of the columns " + strings.Join(slices.Concat(PathColumns, BytesColumns), ", ")
}

func (s *Source) pathItem(r root, rec record) (Item, bool) {
	if s.o.BytesColumn != "" && s.o.Column == "" {
		return Item{}, false
	}
	names := PathColumns
	if s.o.Column != "" {
		names = []string{s.o.Column}
	}
	for _, name := range names {
		if v, ok := rec.get(name); ok && v != "" {
			return s.named(v, r.base()), true
		}
	}
	return Item{}, false
}

func (s *Source) bytesItem(r root, rec record) (Item, bool) {
	if s.o.Column != "" && s.o.BytesColumn == "" {
		return Item{}, false
	}
	names := BytesColumns
	if s.o.BytesColumn != "" {
		names = []string{s.o.BytesColumn}
	}
	for _, name := range names {
		v, ok := rec.get(name)
		if !ok {
			continue
		}
		place := fmt.Sprintf("%s:%d", filepath.ToSlash(r.name), rec.place)
		return Item{ID: row.Printable(place), Path: place, Load: func() ([]byte, error) {
			data, err := base64.StdEncoding.DecodeString(v)
			if err != nil {
				return nil, &row.ItemError{Kind: row.KindBadRecord, Message: fmt.Sprintf("column %s is not base64: %v", name, err)}
			}
			return data, nil
		}}, true
	}
	return Item{}, false
}

// jsonl reads an object a line.
func (s *Source) jsonl(ctx context.Context, r root, yield yielder) bool {
	return s.lines(ctx, r, yield, func(n int, line []byte) bool {
		var object map[string]json.RawMessage
		if err := json.Unmarshal(line, &object); err != nil {
			return yield(broken(r, n, "it is no JSON object: %v", err))
		}
		return yield(s.item(r, record{n, func(column string) (string, bool) { return jsonColumn(object, column) }}))
	})
}

// jsonColumn returns a text or number; a dot reaches into an object.
func jsonColumn(object map[string]json.RawMessage, column string) (string, bool) {
	raw, ok := object[column]
	if outer, inner, dotted := strings.Cut(column, "."); !ok && dotted {
		var below map[string]json.RawMessage
		if json.Unmarshal(object[outer], &below) != nil {
			return "", false
		}
		return jsonColumn(below, inner)
	}
	if !ok {
		return "", false
	}
	var text string
	if json.Unmarshal(raw, &text) == nil && string(raw) != "null" {
		return text, true
	}
	var number json.Number
	if json.Unmarshal(raw, &number) == nil && number != "" {
		return number.String(), true
	}
	return "", false
}

// csv reads a header and then records; .tsv has tabs between.
func (s *Source) csv(ctx context.Context, r root, yield yielder) bool {
	in, err := s.open(ctx, r.name)
	if err != nil {
		return yield(failed(r, err))
	}
	defer in.Close()
	bounded := &boundedReader{in: in, limit: s.maxLine()}
	reader := csv.NewReader(bounded)
	reader.FieldsPerRecord = -1
	if extensionOf(r.name) == ".tsv" {
		reader.Comma = '\t'
	}
	header, err := reader.Read()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return true
		}
		return yield(failed(r, fmt.Errorf("read the header: %w", err)))
	}
	columns := map[string]int{}
	for i, name := range header {
		columns[strings.TrimPrefix(name, "\ufeff")] = i
	}
	reader.ReuseRecord = true
	for n := 2; ; n++ {
		bounded.read = 0
		fields, err := reader.Read()
		var bad *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			return true
		case errors.As(err, &bad):
			if !yield(broken(r, bad.StartLine, "%v", bad.Err)) {
				return false
			}
			continue
		case err != nil:
			return yield(failed(r, err))
		}
		get := func(column string) (string, bool) {
			at, ok := columns[column]
			if !ok || at >= len(fields) {
				return "", false
			}
			return fields[at], true
		}
		if !yield(s.item(r, record{n, get})) {
			return false
		}
	}
}

// boundedReader fails when one record takes too many bytes: a quote that is never closed would otherwise take the file
// into memory.
type boundedReader struct {
	in          io.Reader
	read, limit int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.read > b.limit {
		return 0, fmt.Errorf("a record has more than %d bytes; is a quote not closed?", b.limit)
	}
	n, err := b.in.Read(p)
	b.read += n
	return n, err
}

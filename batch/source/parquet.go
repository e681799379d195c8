// Parquet tables: only the columns that are needed are read, a page at a time.

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/batch/row"

	pq "github.com/parquet-go/parquet-go"
)

// parquetRows returns a table's number of rows, -1 where it cannot be read.
func (s *Source) parquetRows(name string) int64 {
	f, done, err := s.openParquet(context.Background(), name)
	if err != nil {
		return -1
	}
	defer done()
	return f.NumRows()
}

// openParquet reads a file's footer. The library panics on some broken files; that is an error here.
func (s *Source) openParquet(ctx context.Context, name string) (f *pq.File, done func(), err error) {
	var (
		at   io.ReaderAt
		size int64
	)
	done = func() {}
	defer func() {
		if p := recover(); p != nil {
			done()
			err = fmt.Errorf("the footer is broken: %v", p)
		}
	}()
	if _, ok := Scheme(name); ok {
		if at, size, err = s.o.Store.ReaderAt(ctx, name); err != nil {
			return nil, nil, err
		}
	} else {
		file, err := os.Open(name)
		if err != nil {
			return nil, nil, err
		}
		done = func() { file.Close() }
		info, err := file.Stat()
		if err != nil {
			done()
			return nil, nil, err
		}
		at, size = file, info.Size()
	}
	f, err = pq.OpenFile(at, size, pq.SkipPageIndex(true), pq.SkipBloomFilters(true))
	if err != nil {
		done()
		return nil, nil, err
	}
	return f, done, nil
}

// parquet yields a table's rows.
func (s *Source) parquet(ctx context.Context, r root, yield yielder) (goOn bool) {
	defer func() {
		if p := recover(); p != nil {
			goOn = yield(failed(r, &row.ItemError{Kind: row.KindUnreadable, Message: fmt.Sprintf("read the table: %v", p)}))
		}
	}()
	f, done, err := s.openParquet(ctx, r.name)
	if err != nil {
		return yield(failed(r, &row.ItemError{Kind: row.KindUnreadable, Message: fmt.Sprintf("read the table: %v", err)}))
	}
	defer done()
	columns, err := s.parquetColumns(f)
	if err != nil {
		return yield(failed(r, &row.ItemError{Kind: row.KindBadRecord, Message: err.Error()}))
	}
	version := shardVersion(r.name)
	place := 0
	for _, group := range f.RowGroups() {
		if !s.rowGroup(r, group, columns, version, &place, yield) {
			return false
		}
	}
	return true
}

// tableColumns are the places of the leaves that are read; -1: there is none.
type tableColumns struct{ path, bytes, id int }

func (s *Source) parquetColumns(f *pq.File) (c tableColumns, err error) {
	leaves := map[string]pq.LeafColumn{}
	for _, path := range f.Schema().Columns() {
		leaf, ok := f.Schema().Lookup(path...)
		if ok && leaf.MaxRepetitionLevel == 0 && leaf.Node.Type().Kind() == pq.ByteArray {
			leaves[strings.Join(path, ".")] = leaf
		}
	}
	first := func(named string, names []string, other string) int {
		if named != "" {
			names = []string{named}
		} else if other != "" {
			return -1
		}
		for _, name := range names {
			if leaf, ok := leaves[name]; ok {
				return leaf.ColumnIndex
			}
		}
		return -1
	}
	// In a table of pictures the bytes win over a path beside them, which is where they came from.
	c.bytes = first(s.o.BytesColumn, slices.Concat(BytesColumns, []string{"image"}), s.o.Column)
	c.path = first(s.o.Column, PathColumns, s.o.BytesColumn)
	if leaf, ok := leaves["image"]; ok && s.o.Column == "" && s.o.BytesColumn == "" && leaf.Node.Type().LogicalType() != nil {
		if c.bytes == leaf.ColumnIndex { // a text: a path
			c.bytes = -1
		}
	}
	c.id = first(s.o.IDColumn, nil, "")
	switch {
	case c.bytes < 0 && c.path < 0:
		return c, fmt.Errorf("the table names no pictures: %s", s.missingColumns())
	case s.o.IDColumn != "" && c.id < 0:
		return c, fmt.Errorf("the table has no text column %s, which is to name the rows", s.o.IDColumn)
	}
	return c, nil
}

func (s *Source) rowGroup(r root, group pq.RowGroup, columns tableColumns, version uint64, place *int, yield yielder) bool {
	readers := map[int]*columnReader{}
	for _, at := range []int{columns.path, columns.bytes, columns.id} {
		if at >= 0 && readers[at] == nil {
			readers[at] = &columnReader{pages: group.ColumnChunks()[at].Pages()}
			defer readers[at].pages.Close()
		}
	}
	for range group.NumRows() {
		values := map[int][]byte{}
		for at, reader := range readers {
			v, err := reader.next()
			if err != nil {
				return yield(failed(r, &row.ItemError{Kind: row.KindUnreadable, Message: fmt.Sprintf("read row %d: %v", *place, err)}))
			}
			values[at] = v
		}
		item := s.parquetItem(r, columns, values, *place)
		if item.Load != nil && version != 0 {
			item.Version = VersionOf(int64(version), int64(*place))
		}
		*place++
		if !yield(item) {
			return false
		}
	}
	return true
}

func (s *Source) parquetItem(r root, c tableColumns, values map[int][]byte, place int) Item {
	var item Item
	name := fmt.Sprintf("%s:%d", filepath.ToSlash(r.name), place)
	data, path := values[c.bytes], values[c.path]
	switch {
	case c.bytes >= 0 && data != nil:
		item = Item{ID: row.Printable(name), Path: name, Load: func() ([]byte, error) {
			limit := s.o.MaxBytes
			if s.o.Videos && row.ClipExtension(data) != "" {
				limit = s.o.MaxClip
			}
			data, problem := checkSize(data, limit)
			if problem != nil {
				return nil, problem
			}
			return slices.Clone(data), nil // it lies in the page
		}}
	case c.path >= 0 && len(path) > 0:
		item = s.named(string(path), r.base())
	default:
		return broken(r, place, "it names no picture")
	}
	if c.id >= 0 {
		if len(values[c.id]) == 0 {
			return broken(r, place, "column %s, which is to name the row, is empty", s.o.IDColumn)
		}
		item.ID = row.Printable(string(values[c.id]))
	}
	return item
}

// columnReader goes through a column's values.
type columnReader struct {
	pages  pq.Pages
	values pq.ValueReader
	page   pq.Page
	batch  [64]pq.Value
	have   []pq.Value
}

// next returns the next value's bytes, nil for null. They are valid until the call after the next.
func (c *columnReader) next() ([]byte, error) {
	for len(c.have) == 0 {
		if c.values != nil {
			n, err := c.values.ReadValues(c.batch[:])
			c.have = c.batch[:n]
			if err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			if n > 0 {
				break
			}
		}
		page, err := c.pages.ReadPage()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the column ends before the table does")
			}
			return nil, err
		}
		c.page, c.values = page, page.Values()
	}
	v := c.have[0]
	c.have = c.have[1:]
	if v.IsNull() {
		return nil, nil
	}
	return v.ByteArray(), nil
}

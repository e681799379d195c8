package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/batch/row"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	pq "github.com/parquet-go/parquet-go"
)

// seen is what a source says: id, and the bytes or the error's kind.
func seen(t testing.TB, o Options, inputs ...string) []string {
	t.Helper()
	if o.MaxBytes == 0 {
		o.MaxBytes = 1000
	}
	s, err := New(inputs, o)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for item := range s.Items(context.Background()) {
		what := item.Path
		if item.Load != nil {
			data, err := item.Load()
			what = string(data)
			if err != nil {
				item.Err = err
			}
		}
		if item.Err != nil {
			what = "error " + row.FileError(item.Err).Kind
		}
		got = append(got, item.ID+" = "+what)
	}
	return got
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestListOfPaths(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "list.txt")
	write(t, list, "\ufeffa.png\r\n\nsub/b c.jpg\nhttps://example.org/c.png\ns3://bucket/d.png\n"+strings.Repeat("x", 2<<20)+"\nlast.png")
	same(t, seen(t, Options{}, list), "a.png = a.png", "sub/b c.jpg = sub/b c.jpg", "https://example.org/c.png = error url",
		"s3://bucket/d.png = error url", filepath.ToSlash(list)+":6 = error bad_record", "last.png = last.png")
	same(t, seen(t, Options{Root: "/pictures", Stdin: strings.NewReader("a.png\n/b.png\n")}, "-"), "/pictures/a.png = /pictures/a.png", "/b.png = /b.png")
}

func TestJSONLines(t *testing.T) {
	dir := t.TempDir()
	table := filepath.Join(dir, "t.jsonl")
	b64 := base64.StdEncoding.EncodeToString([]byte("data"))
	write(t, table, strings.Join([]string{
		`{"file_name": "a.png", "id": 7}`, `{"image": {"bytes": "` + b64 + `"}, "id": "eight"}`, `{"text": "nothing"}`, `broken`, `{"bytes": "***"}`, `{"bytes": ""}`,
	}, "\n"))
	place := filepath.ToSlash(table)
	same(t, seen(t, Options{}, table), filepath.ToSlash(dir)+"/a.png = "+dir+"/a.png", place+":2 = data", place+":3 = error bad_record",
		place+":4 = error bad_record", place+":5 = error bad_record", place+":6 = ")
	same(t, seen(t, Options{IDColumn: "id", Root: "/r"}, table)[:2], "7 = /r/a.png", "eight = data")
	same(t, seen(t, Options{Column: "text"}, table)[2:3], filepath.ToSlash(dir)+"/nothing = "+dir+"/nothing")
}

func TestCSV(t *testing.T) {
	dir := t.TempDir()
	table := filepath.Join(dir, "t.csv")
	b64 := base64.StdEncoding.EncodeToString([]byte("data"))
	write(t, table, "name,path,bytes\nx,\"a, b.png\",\ny,,"+b64+"\nz\n\"broken\" quote,p,\nlast,c.png,\n")
	place, d := filepath.ToSlash(table), filepath.ToSlash(dir)
	same(t, seen(t, Options{}, table), d+"/a, b.png = "+dir+"/a, b.png", place+":3 = data", place+":4 = error bad_record", place+":5 = error bad_record", d+"/c.png = "+dir+"/c.png")
	same(t, seen(t, Options{IDColumn: "name"}, table)[:1], "x = "+dir+"/a, b.png")
	tabs := filepath.Join(dir, "t.tsv")
	write(t, tabs, "path\tx\na.png\t1\n")
	same(t, seen(t, Options{}, tabs), d+"/a.png = "+dir+"/a.png")
	open := filepath.Join(dir, "open.csv")
	write(t, open, "path\na.png\n\"never closed "+strings.Repeat("\nx", 2<<20))
	if got := seen(t, Options{}, open); len(got) != 2 || !strings.Contains(got[1], "error") {
		t.Errorf("%.200v", got)
	}
}

func TestParquet(t *testing.T) {
	dir := t.TempDir()
	type image struct {
		Bytes []byte `parquet:"bytes,optional"`
		Path  string `parquet:"path"`
	}
	type record struct {
		Name  string `parquet:"name"`
		Image image  `parquet:"image"`
		N     int64  `parquet:"n"`
	}
	table := filepath.Join(dir, "hf.parquet")
	var rows []record
	for i := range 300 {
		rows = append(rows, record{fmt.Sprintf("n%d", i), image{Bytes: fmt.Appendf(nil, "data %d", i)}, 5})
	}
	rows[2].Image.Bytes = nil
	if err := pq.WriteFile(table, rows, pq.MaxRowsPerRowGroup(100)); err != nil {
		t.Fatal(err)
	}
	got := seen(t, Options{}, table)
	place := filepath.ToSlash(table)
	if len(got) != 300 {
		t.Fatalf("%d items", len(got))
	}
	same(t, []string{got[0], got[2], got[299]}, place+":0 = data 0", place+":2 = error bad_record", place+":299 = data 299")
	same(t, seen(t, Options{IDColumn: "name", BytesColumn: "image.bytes"}, table)[299:], "n299 = data 299")

	type paths struct {
		Image string `parquet:"image"`
	}
	table = filepath.Join(dir, "paths.parquet")
	if err := pq.WriteFile(table, []paths{{"a.png"}, {""}}); err != nil {
		t.Fatal(err)
	}
	same(t, seen(t, Options{}, table), filepath.ToSlash(dir)+"/a.png = "+dir+"/a.png", filepath.ToSlash(table)+":1 = error bad_record")
	same(t, seen(t, Options{Column: "nope"}, table), filepath.ToSlash(table)+" = error bad_record")
	s, err := New([]string{table}, Options{MaxBytes: 1})
	if err != nil || s.Count(context.Background()) != 2 {
		t.Errorf("count %v", err)
	}
}

func shard(t testing.TB, members ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: members[i], Size: int64(len(members[i+1])), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(members[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestShards(t *testing.T) {
	dir := t.TempDir()
	plain := shard(t, "a/0.jpg", "zero", "a/0.txt", "text", "a/1.png", "one", "big.png", strings.Repeat("x", 2000), "z.webp", "")
	var zipped, packed bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(plain)
	z.Close()
	p, _ := zstd.NewWriter(&packed)
	_, _ = p.Write(plain)
	p.Close()
	for name, raw := range map[string][]byte{"s.tar": plain, "s.tar.gz": zipped.Bytes(), "s.tgz": zipped.Bytes(), "s.tar.zst": packed.Bytes(), "wrong-name.tar": packed.Bytes()} {
		path := filepath.Join(dir, name)
		write(t, path, string(raw))
		place := filepath.ToSlash(path)
		same(t, seen(t, Options{}, path), place+"/a/0.jpg = zero", place+"/a/1.png = one", place+"/big.png = error too_large", place+"/z.webp = error empty")
		write(t, path, string(raw[:len(raw)/2]))
		got := seen(t, Options{}, path)
		if last := got[len(got)-1]; !strings.Contains(last, "error") {
			t.Errorf("half of %s: %v", name, got)
		}
	}
	same(t, seen(t, Options{Kind: WebDataset, Stdin: bytes.NewReader(plain)}, "-")[:1], "-/a/0.jpg = zero")
	write(t, filepath.Join(dir, "none.tar"), "no tar at all, but long enough to be looked at "+strings.Repeat("x", 600))
	same(t, seen(t, Options{}, filepath.Join(dir, "none.tar")), filepath.ToSlash(dir)+"/none.tar = error unreadable")
}

func TestWhatCannotBe(t *testing.T) {
	for _, tc := range []struct {
		o    Options
		in   []string
		part string
	}{
		{Options{}, []string{"https://example.org/a.png"}, "does not fetch"},
		{Options{}, []string{"s3://bucket/x/"}, "no object store is set up for s3"},
		{Options{}, []string{"-"}, "no standard input"},
		{Options{Stdin: strings.NewReader("")}, []string{"-", "-"}, "once only"},
		{Options{Stdin: strings.NewReader(""), Kind: Parquet}, []string{"-"}, "Parquet"},
		{Options{Kind: "xml"}, []string{"a"}, "xml"},
	} {
		if _, err := New(tc.in, tc.o); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), tc.part) {
			t.Errorf("%v: %v", tc.in, err)
		}
	}
}

// Whatever a table or shard holds, it is listed without a panic.
func FuzzTables(f *testing.F) {
	var hf bytes.Buffer
	w := pq.NewGenericWriter[struct {
		Path string `parquet:"path"`
	}](&hf)
	_, _ = w.Write([]struct {
		Path string `parquet:"path"`
	}{{"a.png"}})
	w.Close()
	for i, raw := range [][]byte{[]byte("a.png\nb.png"), []byte(`{"path": "a"}`), []byte("path,bytes\na,\"b\nc\""), hf.Bytes(), shard(f, "a.png", "data")} {
		f.Add(uint8(i), raw)
	}
	f.Fuzz(func(t *testing.T, kind uint8, raw []byte) {
		path := filepath.Join(t.TempDir(), "table")
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		kinds := []string{List, JSONL, CSV, Parquet, WebDataset}
		got := seen(t, Options{Kind: kinds[int(kind)%len(kinds)]}, path)
		if len(got) > len(raw)+1 {
			t.Fatalf("%d items of %d bytes", len(got), len(raw))
		}
	})
}

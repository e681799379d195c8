package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"glimpse/batch/source"

	"github.com/google/go-cmp/cmp"
)

var _ source.Store = (*Store)(nil)

func address(parts ...string) string {
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(filepath.Join(parts...))}).String()
}

func TestFolder(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	s := New()
	defer s.Close()
	for _, name := range []string{"a b.png", "sub/ü.jpg", "note.txt"} {
		path := filepath.Join(dir, "in", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("bytes of "+name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for o, err := range s.List(ctx, address(dir, "in")+"/") {
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Open(ctx, o.Address)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(r)
		r.Close()
		if err != nil || o.Version == 0 {
			t.Fatal(err, o)
		}
		got = append(got, string(raw))
	}
	if d := cmp.Diff([]string{"bytes of a b.png", "bytes of note.txt", "bytes of sub/ü.jpg"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	at, size, err := s.ReaderAt(ctx, address(dir, "in", "note.txt"))
	if err != nil || size != 17 {
		t.Fatal(size, err)
	}
	part := make([]byte, 4)
	if n, err := at.ReadAt(part, 9); n != 4 || err != nil || string(part) != "note" {
		t.Errorf("%q %v", part[:n], err)
	}
	if _, err := at.ReadAt(part, 15); !errors.Is(err, io.EOF) {
		t.Errorf("beyond the end: %v", err)
	}
	if _, err := s.Open(ctx, address(dir, "in", "none.png")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestUpload(t *testing.T) {
	dir := t.TempDir()
	s := New()
	defer s.Close()
	from := filepath.Join(dir, "from")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "out"), 0o755), os.WriteFile(from, []byte("a part"), 0o644)); err != nil {
		t.Fatal(err)
	}
	upload := s.Upload(address(dir, "out"))
	for range 2 { // again is the same
		if err := upload(context.Background(), "part-00000.csv", from); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "out", "part-00000.csv"))
	if err != nil || string(raw) != "a part" {
		t.Errorf("%q %v", raw, err)
	}
	if list, _ := os.ReadDir(filepath.Join(dir, "out")); len(list) != 1 {
		t.Errorf("strangers: %v", list)
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]place{
		"s3://bucket/a/b.png":                {bucket: "s3://bucket", key: "a/b.png", prefix: "s3://bucket/"},
		"s3://bucket/a?region=eu&endpoint=x": {bucket: "s3://bucket?region=eu&endpoint=x", key: "a", prefix: "s3://bucket/", query: "?region=eu&endpoint=x"},
		"gs://bucket":                        {bucket: "gs://bucket", prefix: "gs://bucket/"},
	} {
		got, err := split(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
		if in != "gs://bucket" && got.address(got.key) != in {
			t.Errorf("%s comes back as %s", in, got.address(got.key))
		}
	}
	for _, in := range []string{"s3:///key", "file://host/x", "file:///", "s3://%zz"} {
		if _, err := split(in); err == nil {
			t.Errorf("%s was taken", in)
		}
	}
}

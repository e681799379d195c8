package source

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func itemsOf(t *testing.T, dir string, inputs ...string) []string {
	t.Helper()
	s, err := New(inputs, Options{MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for item := range s.Items(context.Background()) {
		if item.Err != nil {
			t.Errorf("%s: %v", item.ID, item.Err)
		}
		ids = append(ids, strings.TrimPrefix(item.ID, filepath.ToSlash(dir)+"/"))
	}
	return ids
}

func TestSourceOrder(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.png", "a.JPG", "sub/c.webp", "sub/deep/d.gif", "notes.bin", ".hidden.png", ".cache/e.png", "z.tiff", "[x].bmp"} {
		write(t, filepath.Join(dir, name), name)
	}
	for _, tc := range []struct {
		name   string
		inputs []string
		want   []string
	}{
		{"folder", []string{dir}, []string{"[x].bmp", "a.JPG", "b.png", "sub/c.webp", "sub/deep/d.gif", "z.tiff"}},
		{"files keep their order and any name", []string{dir + "/notes.bin", dir + "/a.JPG"}, []string{"notes.bin", "a.JPG"}},
		{"a name with brackets is a name first", []string{dir + "/[x].bmp"}, []string{"[x].bmp"}},
		{"glob", []string{dir + "/*.png"}, []string{"b.png"}},
		{"glob of folders", []string{dir + "/su?"}, []string{"sub/c.webp", "sub/deep/d.gif"}},
		{"deep glob", []string{dir + "/**/*.gif"}, []string{"sub/deep/d.gif"}},
		{"deep glob from the top", []string{dir + "/**/*.[wp]*"}, []string{"b.png", "sub/c.webp"}},
		{"repeated and unclean", []string{dir + "/./b.png", dir + "/b.png"}, []string{"b.png", "b.png"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, itemsOf(t, dir, tc.inputs...)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestSourceNamesEveryMissingInput(t *testing.T) {
	dir := t.TempDir()
	_, err := New([]string{dir, dir + "/one.png", dir + "/*.jpg", dir + "/[.png"}, Options{})
	if !errors.Is(err, ErrInput) {
		t.Fatalf("error %v", err)
	}
	for _, part := range []string{"one.png", "*.jpg", "[.png"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
	if _, err := New(nil, Options{}); !errors.Is(err, ErrInput) {
		t.Fatalf("no inputs: %v", err)
	}
}

func TestSourceUnreadableFolderIsAnItem(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "shut/a.png"), "a")
	write(t, filepath.Join(dir, "z.png"), "z")
	if err := os.Chmod(filepath.Join(dir, "shut"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "shut"), 0o755) })
	s, err := New([]string{dir}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var failed, fine int
	for item := range s.Items(context.Background()) {
		if item.Err != nil {
			failed++
		} else {
			fine++
		}
	}
	if failed != 1 || fine != 1 {
		t.Fatalf("%d failed and %d fine, want 1 and 1", failed, fine)
	}
}

func TestNamesThatAreNotUTF8StayApart(t *testing.T) {
	a, b := newItem("x/\xff.png", nil), newItem("x/\xfe.png", nil)
	if a.ID != `x/\xff.png` || b.ID != `x/\xfe.png` || a.Path != "x/\xff.png" {
		t.Fatalf("%+v %+v", a, b)
	}
}

// What stands behind an address's question mark is for the store, not part of the name.
func TestKindsOfAddresses(t *testing.T) {
	s := &Source{o: Options{Kind: Auto, Videos: true}}
	const query = "?endpoint=http%3A%2F%2F127.0.0.1%3A9000&x=a.png"
	for name, want := range map[string]string{
		"s3://b/t.parquet": Parquet, "s3://b/t.tar.zst": WebDataset, "gs://b/l.txt": List, "s3://b/in/": Picture, "s3://b/%3F.csv": CSV,
	} {
		for _, address := range []string{name, name + query} {
			if got := s.kindOf(address); got != want {
				t.Errorf("%s is %s, want %s", address, got, want)
			}
		}
	}
	for name, want := range map[string]bool{"s3://b/a.png": true, "s3://b/a.MP4": true, "s3://b/a.bin": false, "what?.png": true} {
		for _, address := range []string{name, name + query} {
			if _, remote := Scheme(name); !remote && address != name {
				continue
			}
			if got := s.wanted(address); got != want {
				t.Errorf("%s is wanted: %v", address, got)
			}
		}
	}
}

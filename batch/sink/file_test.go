package sink

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/batch/row"
)

func open(path string) (Output, error) {
	return Open(context.Background(), Options{Out: path, Format: JSONL})
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

const goodLine = `{"id":"a.png","path":"a.png","caption":"x","prompt":"p","model":"m","width":1,"height":1,"tokens":1,"ms":1}` + "\n"

// What is not ours must be refused and left as it was.
func TestForeignFilesAreNotTouched(t *testing.T) {
	for name, content := range map[string]string{
		"text":                    "my diary",
		"text with newline":       "my diary\n",
		"other JSON lines":        `{"id":"a.png"}` + "\n",
		"other JSON":              `{"name":1}`,
		"rows and then something": goodLine + "tail",
		"a list":                  "[1]\n",
		"null":                    "null\n",
		"blank lines":             goodLine + "\n" + goodLine,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out.jsonl")
			write(t, path, content)
			_, err := open(path)
			if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), path) {
				t.Fatalf("error %v", err)
			}
			if got, _ := os.ReadFile(path); string(got) != content {
				t.Fatalf("the file was changed to %q", got)
			}
		})
	}
}

func TestOutputIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.jsonl")
	first, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(path); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "another run") {
		t.Fatalf("second open: %v", err)
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	again, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestOutputThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "part-00000.csv"), "a stranger's")
	for _, path := range []string{dir, filepath.Join(dir, "no", "such", "folder.jsonl"), filepath.Join(dir, "rows.csv"), filepath.Join(dir, "part-00000.csv")} {
		if _, err := open(path); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzReadRows(f *testing.F) {
	for _, s := range []string{"", goodLine, goodLine[:20], goodLine + goodLine, goodLine + "\x00\x00", `{"id":null}` + "\n", "{\"id\":\"\xff\"", "\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		done := 0
		end, err := readRows(bytes.NewReader(raw), func(*row.Row) error { done++; return nil })
		if err != nil {
			return
		}
		kept := raw[:end]
		if len(kept) > 0 && kept[len(kept)-1] != '\n' {
			t.Fatalf("kept half a line: %q", kept)
		}
		if n := bytes.Count(kept, []byte("\n")); done != n {
			t.Fatalf("%d rows from %d lines", done, n)
		}
		if bytes.ContainsRune(raw[end:], '\n') {
			t.Fatalf("would cut a whole line: %q", raw[end:])
		}
	})
}

package sink

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/batch/row"
)

// fill writes rows to an output and ends the run.
func fill(t *testing.T, o Options, rows ...row.Row) {
	t.Helper()
	out, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		if err := out.Append(&rows[i], nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(out.Finish(), out.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestSideCars(t *testing.T) {
	for _, tc := range []struct{ mode, old, want string }{
		{Skip, "", "a cat on a mat\n"},
		{Skip, "my own words", "my own words"},
		{Overwrite, "my own words", "a cat on a mat\n"},
		{Append, "my own words", "my own words\na cat on a mat\n"},
		{Append, "my own words\na cat on a mat\n", "my own words\na cat on a mat\n"}, // a killed run was here
	} {
		dir := t.TempDir()
		if tc.old != "" {
			write(t, filepath.Join(dir, "a.txt"), tc.old)
		}
		fill(t, Options{Out: filepath.Join(dir, "out"), Format: Text, OnExisting: tc.mode},
			row.Row{ID: "a", Path: filepath.Join(dir, "a.png"), Caption: "a cat\non a mat"},
			row.Row{ID: "b", Path: filepath.Join(dir, "b.png"), Error: &row.ItemError{Kind: row.KindEmpty, Message: "m"}},
			row.Row{ID: "c", Path: filepath.Join(dir, "no", "such", "c.png"), Caption: "c"},
			row.Row{ID: "d", Path: filepath.Join(dir, "d.png"), DuplicateOf: "a"})
		got, err := os.ReadFile(filepath.Join(dir, "a.txt"))
		if err != nil || string(got) != tc.want {
			t.Errorf("%s over %q: %q %v, want %q", tc.mode, tc.old, got, err, tc.want)
		}
		for _, name := range []string{"b.txt", "d.txt"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%s: there is a %s", tc.mode, name)
			}
		}
		part, err := os.ReadFile(filepath.Join(dir, "out", "part-00000.jsonl"))
		if err != nil || strings.Count(string(part), "\n") != 4 {
			t.Errorf("%s: part %q %v", tc.mode, part, err)
		}
	}
}

// A finished file goes to the object store before its stats file says that it is there, and a failed upload is tried again.
func TestUploadsAreNotForgotten(t *testing.T) {
	dir := t.TempDir()
	remote := map[string]string{}
	fails := true
	o := Options{Out: filepath.Join(dir, "state"), Format: CSV, PartRows: 2, Upload: func(_ context.Context, name, path string) error {
		if fails && strings.HasSuffix(name, ".stats.json") {
			return errors.New("the network is down")
		}
		raw, err := os.ReadFile(path)
		remote[name] = string(raw)
		return err
	}}
	rows := []row.Row{{ID: "a", Caption: "x"}, {ID: "b", Error: &row.ItemError{Kind: row.KindEmpty, Message: "m"}}, {ID: "c", Caption: "z"}}
	out, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(out.Append(&rows[0], nil, 0), out.Append(&rows[1], nil, 0))
	if err == nil || !strings.Contains(err.Error(), "the network is down") {
		t.Fatalf("error %v", err)
	}
	_ = out.Close()
	fails = false
	if out, err = Open(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows[:2] {
		if _, ok := out.Seen(r.Key()); !ok {
			t.Errorf("row %s is not known", r.ID)
		}
	}
	if err := errors.Join(out.Append(&rows[2], nil, 0), out.Finish(), out.Close()); err != nil {
		t.Fatal(err)
	}
	for name, lines := range map[string]int{"part-00000.csv": 3, "part-00001.csv": 2, "errors.jsonl": 1, "part-00000.stats.json": 1, "part-00001.stats.json": 1} {
		if strings.Count(remote[name], "\n") < lines {
			t.Errorf("%s: %q", name, remote[name])
		}
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "state", "part-*.csv")); len(found) != 0 {
		t.Errorf("left here: %v", found)
	}
}

// A journal that lacks what the parts say, or is damaged, is an error, not an empty output.
func TestDamageIsReported(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"journal is gone": func(dir string) error { return os.Remove(filepath.Join(dir, ".glimpse", "journal-00000")) },
		"errors are gone": func(dir string) error { return os.Remove(filepath.Join(dir, "errors.jsonl")) },
		"run.json is broken": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, ".glimpse", "run.json"), []byte("{"), 0o644)
		},
		"journal is damaged": func(dir string) error {
			path := filepath.Join(dir, ".glimpse", "journal-00000")
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			raw[20] ^= 1
			return os.WriteFile(path, raw, 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			fill(t, Options{Out: dir}, row.Row{ID: "a", Caption: "x"}, row.Row{ID: "b", Error: &row.ItemError{Kind: row.KindEmpty, Message: "m"}})
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			out, err := Open(context.Background(), Options{Out: dir})
			if err == nil {
				out.Close()
				t.Fatal("it was opened")
			}
		})
	}
}

func TestFolderIsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	first, err := Open(context.Background(), Options{Out: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := Open(context.Background(), Options{Out: dir}); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "another run") {
		t.Fatalf("error %v", err)
	}
}

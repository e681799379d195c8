package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"glimpse/batch/row"

	"github.com/google/go-cmp/cmp"
)

func records() []Record {
	return []Record{
		{Key: row.KeyOf("a"), Content: row.KeyOf("b"), Version: 7, PHash: 1 << 63, Flags: FlagPHash, Run: 3, Row: []byte(`{"id":"a"}`)},
		{Key: row.KeyOf("c"), Flags: FlagError, Spool: 99, Row: []byte(`{"id":"c"}`)},
		{Key: row.KeyOf("d"), Row: []byte(`{"id":"d"}`)},
	}
}

func collect(t testing.TB, raw []byte) ([]Record, int64, error) {
	t.Helper()
	var got []Record
	end, err := Read(bytes.NewReader(raw), func(r Record) error {
		r.Row = slices.Clone(r.Row)
		got = append(got, r)
		return nil
	})
	return got, end, err
}

func encoded() []byte {
	raw := []byte(Magic)
	for _, r := range records() {
		raw = r.Append(raw)
	}
	return raw
}

// The format is public (docs/batch.md): these bytes are what every version must read and write.
func TestFormat(t *testing.T) {
	r := Record{Flags: FlagError | FlagPHash, Key: row.Key{1}, Content: row.Key{2}, Version: 3, PHash: 4, Run: 5, Spool: 6, Row: []byte("{}")}
	want := []byte{63, 0, 0, 0, 0, 0, 0, 0, 5,
		1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, '{', '}'}
	got := r.Append(nil)
	copy(want[4:8], got[4:8]) // the checksum
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestCutAnywhere(t *testing.T) {
	raw := encoded()
	for n := range len(raw) + 1 {
		for _, tail := range [][]byte{nil, make([]byte, 500), {0xff}} {
			cut := append(slices.Clone(raw[:n]), tail...)
			got, end, err := collect(t, cut)
			if tail != nil && len(tail) == 1 && err != nil {
				continue // a stray byte may look like damage; it may not lose a record silently
			}
			if err != nil {
				t.Fatalf("cut at %d, %d bytes behind: %v", n, len(tail), err)
			}
			if end > int64(n) || len(got) > 3 {
				t.Fatalf("cut at %d: %d records up to %d", n, len(got), end)
			}
			if d := cmp.Diff(append([]Record(nil), records()[:len(got)]...), got, cmp.Transformer("nil", func(b []byte) string { return string(b) })); d != "" {
				t.Fatalf("cut at %d:\n%s", n, d)
			}
		}
	}
}

func TestDamageIsNotTaken(t *testing.T) {
	raw := encoded()
	first := len(Magic)
	for _, at := range []int{0, 3, first + 4, first + 9, first + 20, first + 60} {
		broken := slices.Clone(raw)
		broken[at] ^= 0x40
		if got, _, err := collect(t, broken); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d: %d records, error %v", at, len(got), err)
		}
	}
}

func TestWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	w, err := Open(path, func(Record) error { t.Error("a record in a new journal"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records()[:2] {
		if err := w.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	last := records()[2]
	if err := errors.Join(w.Append(&last), w.Close(), w.Close()); err != nil { // not synced: dropped
		t.Fatal(err)
	}
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	_, _ = f.Write([]byte{63, 0, 0, 0, 1, 2, 3})
	f.Close()
	n := 0
	w, err = Open(path, func(Record) error { n++; return nil })
	if err != nil || n != 2 {
		t.Fatalf("%d records, %v", n, err)
	}
	if err := errors.Join(w.Append(&last), w.Sync(), w.Close()); err != nil {
		t.Fatal(err)
	}
	raw, _ := os.ReadFile(path)
	if !bytes.Equal(raw, encoded()) {
		t.Error("the journal is not what one run would have written")
	}
}

func FuzzRead(f *testing.F) {
	f.Add(encoded())
	f.Add(encoded()[:100])
	f.Add([]byte(Magic))
	f.Add(append(encoded(), 255, 255, 255, 3, 1))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, end, err := collect(t, raw)
		if end > int64(len(raw)) {
			t.Fatalf("end %d of %d", end, len(raw))
		}
		if err != nil || end == 0 {
			return
		}
		again := []byte(Magic)
		for _, r := range got {
			again = r.Append(again)
		}
		if !bytes.Equal(again, raw[:end]) {
			t.Fatal("what was read is not what is written")
		}
	})
}

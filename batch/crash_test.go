package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"glimpse/batch/sink"

	"github.com/google/go-cmp/cmp"
)

// tree reads every file below a folder, but for locks.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" {
			return err
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		files[strings.TrimPrefix(path, dir)] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func plant(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		write(t, path, content)
		if strings.HasPrefix(filepath.ToSlash(name), "pictures/") || strings.HasPrefix(name, "/pictures/") { // the pictures are those that were there before, and have their times
			if err := os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func mixed(n int) []string {
	var contents []string
	for i := range n {
		contents = append(contents, fmt.Sprintf("%s %d", []string{"a cat", "corrupt", "a dog", "long", "a bird"}[i%5], i))
		if i%11 == 10 {
			contents[i] = contents[i-1] // the same bytes again
		}
	}
	return contents
}

// What is on the disk at the moment of a kill -9 is what these tests start from: at 50 random steps of a run they keep a
// copy, then run again on each copy. Everything must come out as in the run that was not disturbed, the journal included.
func TestKilledAnywhereTheRerunIsByteIdentical(t *testing.T) {
	for _, format := range sink.Formats {
		for _, mode := range sink.OnExisting {
			t.Run(format+"/"+mode, func(t *testing.T) {
				t.Parallel()
				killAnywhere(t, format, mode)
			})
		}
	}
}

// inMemory is a folder whose fsync costs nothing, where there is such a place: these tests make thousands, and what a kill
// leaves does not depend on them.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "glimpse-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func killAnywhere(t *testing.T, format, mode string) {
	world := inMemory(t) // pictures and output: side-cars lie beside the pictures
	pictures, out := filepath.Join(world, "pictures"), filepath.Join(world, "out")
	drawn := map[string]string{}
	for i, c := range mixed(47) {
		drawn[fmt.Sprintf("pictures/%04d.png", i)] = c
		if i%9 == 5 { // and videos, one of them there twice, one corrupt
			drawn[fmt.Sprintf("pictures/%04d-clip.mp4", i)] = clipHead + []string{"walks", "runs", "walks", "corrupt", ""}[i/9%5]
		}
	}
	plant(t, world, drawn)
	options := func(step func(string)) Options {
		return Options{Inputs: []string{pictures}, Parallel: 3, Reproducible: true, Dedupe: DedupeExact, Tools: Tools{Clip: fakeClip},
			Sink: sink.Options{Out: out, Format: format, PartRows: 7, OnExisting: mode, Hook: step}}
	}
	if mode != sink.Skip { // there are rows already, of another run
		before := options(nil)
		before.Sink.OnExisting = sink.Skip
		mustCaption(t, &fake{}, before)
	}
	start := tree(t, world)
	steps := 0
	mustCaption(t, &fake{}, options(func(string) { steps++ }))
	want := tree(t, world)

	random := rand.New(rand.NewPCG(1, uint64(len(format)+len(mode))))
	kills := map[int]bool{}
	points := 50
	if mode != sink.Skip && format != sink.JSONL {
		points = 12 // what differs is tried with the other formats
	}
	for len(kills) < min(points, steps) {
		kills[random.IntN(steps)] = true
	}
	plant(t, world, start)
	var copies []map[string]string
	var names []string
	step := 0
	mustCaption(t, &fake{}, options(func(name string) {
		if kills[step] {
			copies, names = append(copies, tree(t, world)), append(names, fmt.Sprintf("%d %s", step, name))
		}
		step++
	}))
	if d := cmp.Diff(want, tree(t, world)); d != "" {
		t.Fatalf("two runs without a kill differ: %s", d)
	}
	for i, copied := range copies {
		if copied["/out/.glimpse/run.json"] == want["/out/.glimpse/run.json"] {
			if d := cmp.Diff(want, copied); d != "" { // the run had ended: another would be another
				t.Fatalf("killed at step %s, after the end: %s", names[i], d)
			}
			continue
		}
		plant(t, world, copied)
		if i%3 == 1 { // what a power cut may leave behind the last sync
			tear(t, filepath.Join(out, ".glimpse"), random)
		}
		f := &fake{pause: 50 * time.Microsecond}
		mustCaption(t, f, options(nil))
		if d := cmp.Diff(want, tree(t, world)); d != "" {
			t.Fatalf("killed at step %s: (-undisturbed +rerun)\n%s", names[i], d)
		}
	}
	t.Logf("%d kill points of %d steps", len(copies), steps)
}

// tear appends the beginning of a record and zeros to the segment that is written to, and bytes to the spool.
func tear(t *testing.T, dir string, random *rand.Rand) {
	t.Helper()
	for _, pattern := range []string{"journal-*", "spool-*"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		if len(found) == 0 {
			continue
		}
		number := strings.TrimPrefix(filepath.Base(found[len(found)-1]), strings.TrimSuffix(pattern, "*"))
		if _, err := os.Stat(filepath.Join(dir, "..", "part-"+number+".stats.json")); err == nil {
			continue // it was synced and nothing is written to it any more
		}
		f, err := os.OpenFile(found[len(found)-1], os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		tail := [][]byte{{70, 0}, bytes.Repeat([]byte{0}, 300), {200, 0, 0, 0, 1, 2, 3, 4, 5}}[random.IntN(3)]
		if raw, _ := os.ReadFile(found[len(found)-1]); len(raw) == 0 {
			tail = nil // not even the head of a segment
		}
		_, _ = f.Write(tail)
		f.Close()
	}
}

func TestChangedFilesGetAnotherRow(t *testing.T) {
	dir := pictures(t, "a cat", "a dog", "a bird")
	out := filepath.Join(t.TempDir(), "out")
	o := Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}}
	mustCaption(t, &fake{}, o)
	write(t, filepath.Join(dir, "0001.png"), "a horse")
	touched := filepath.Join(dir, "0002.png") // another time, the same bytes
	if err := os.Chtimes(touched, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "0000.png")); err != nil { // vanished: it keeps its row
		t.Fatal(err)
	}
	f := &fake{}
	s := mustCaption(t, f, o)
	if s.Written != 1 || s.Skipped != 1 || f.calls.Load() != 1 {
		t.Fatalf("%+v, %d calls", s, f.calls.Load())
	}
	if rows := readFile(t, filepath.Join(out, "part-00001.jsonl")); len(rows) != 1 || !strings.Contains(rows[0].Caption, "a horse") {
		t.Fatalf("%+v", rows)
	}
}

func TestAnOutputOfAnotherFormatIsRefused(t *testing.T) {
	dir := pictures(t, "a cat")
	out := filepath.Join(t.TempDir(), "out")
	mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out, Format: sink.CSV}})
	_, err := Caption(context.Background(), &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out, Format: sink.Parquet}})
	if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "csv") {
		t.Fatalf("error %v", err)
	}
	if s := mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}}); s.Skipped != 1 {
		t.Fatalf("without a format the folder's own counts: %+v", s)
	}
}

func TestDuplicates(t *testing.T) {
	dir := pictures(t, "a cat", "a dog", "a cat", "corrupt", "corrupt", "near a dog")
	tools := Tools{Decode: func(_ context.Context, data []byte, _ bool) (*Pixels, error) { return stripes(string(data)), nil }}
	for _, tc := range []struct {
		dedupe string
		want   []int // the original's number, -1: none
	}{
		{DedupeNone, []int{-1, -1, -1, -1, -1, -1}},
		{DedupeExact, []int{-1, -1, 0, -1, 3, -1}},
		{DedupeNear, []int{-1, -1, 0, -1, 3, 1}},
	} {
		out := filepath.Join(t.TempDir(), "out.jsonl")
		f := &fake{}
		s := mustCaption(t, f, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}, Tools: tools, PHash: true, Dedupe: tc.dedupe, Distance: 4})
		var duplicates int64
		for i, r := range readFile(t, out) {
			want := ""
			if tc.want[i] >= 0 {
				want = filepath.ToSlash(filepath.Join(dir, fmt.Sprintf("%04d.png", tc.want[i])))
				duplicates++
			}
			if r.DuplicateOf != want || (want != "") != (r.Caption == "" && r.Error == nil) {
				t.Errorf("%s: row %d %+v, want a duplicate of %q", tc.dedupe, i, r, want)
			}
		}
		if s.Duplicates != duplicates || f.calls.Load() != int64(len(tc.want))-duplicates {
			t.Errorf("%s: %+v, %d calls", tc.dedupe, s, f.calls.Load())
		}
	}
}

// stripes draws a picture whose structure depends on the text's last word, and a little on the rest.
func stripes(text string) *Pixels {
	const w, h = 64, 48
	p := &Pixels{Width: w, Height: h, Pix: make([]uint8, 3*w*h)}
	words := strings.Fields(text)
	seed := uint64(0)
	for _, c := range words[len(words)-1] {
		seed = seed*31 + uint64(c)
	}
	random := rand.New(rand.NewPCG(seed, 1))
	cells := make([]uint8, 8*6)
	for i := range cells {
		cells[i] = uint8(random.IntN(200))
	}
	for y := range h {
		for x := range w {
			for c := range 3 {
				p.Pix[3*(y*w+x)+c] = cells[y/8*8+x/8] + uint8(len(words)%4)
			}
		}
	}
	return p
}

func TestSeveralPrompts(t *testing.T) {
	dir := pictures(t, "a cat", "corrupt")
	out := filepath.Join(t.TempDir(), "out.jsonl")
	mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Ask: Ask{Prompts: []string{"one", "two"}}, Sink: sink.Options{Out: out}})
	rows := readFile(t, out)
	if r := rows[0]; r.Caption != "<a cat> & one" || len(r.Captions) != 2 || r.Captions[1].Caption != "<a cat> & two" || r.Tokens != 10 {
		t.Errorf("%+v", r)
	}
	if rows[1].Error == nil || rows[1].Captions != nil {
		t.Errorf("%+v", rows[1])
	}
}

// The pictures held at once may not be more than Options.Memory, whatever waits.
func TestMemoryIsBounded(t *testing.T) {
	var contents []string
	for i := range 60 {
		contents = append(contents, fmt.Sprintf("a cat %d %s", i, strings.Repeat("x", 1000)))
	}
	f := &fake{pause: time.Millisecond}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	mustCaption(t, f, Options{Inputs: []string{pictures(t, contents...)}, Sink: sink.Options{Out: out}, Parallel: 8, Memory: 3500})
	if n := f.highest.Load(); n > 3 {
		t.Errorf("%d pictures of 1 kB in flight, 3.5 kB allowed", n)
	}
	if rows := readFile(t, out); len(rows) != 60 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestShelfTakesPicturesOfAsManyTilesTogether(t *testing.T) {
	s := newShelf()
	for seq, tiles := range []int{1, 5, 1, 5, 2, 1} {
		s.put(&job{seq: int64(seq), tiles: tiles})
	}
	s.close()
	var got []int64
	for {
		j, ok := s.take(context.Background())
		if !ok {
			break
		}
		got = append(got, j.seq)
	}
	if d := cmp.Diff([]int64{0, 2, 5, 1, 3, 4}, got); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
}

func TestIdleShare(t *testing.T) {
	start := time.Now()
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	var b Busy
	for _, s := range [][2]float64{{5, 6}, {1, 2}, {1.5, 3}, {5.2, 5.4}, {8, 10}} {
		b.Add(at(s[0]), at(s[1]))
	}
	if idle := b.idle(start, at(10)); idle < 0.499 || idle > 0.501 {
		t.Errorf("idle %v, want half", idle)
	}
	b = Busy{}
	for i := range 3 * keepSpans {
		b.Add(at(float64(i)), at(float64(i)+0.25))
	}
	if idle := b.idle(start, at(3*keepSpans)); idle < 0.7499 || idle > 0.7501 {
		t.Errorf("idle %v of many spans, want three quarters", idle)
	}
}

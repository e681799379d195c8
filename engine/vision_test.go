package engine

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func key(n int) (k mediaKey) {
	k[0], k[1] = byte(n), byte(n>>8)
	return k
}

func someRows(tokens, width, levels int) *visionRows {
	r := &visionRows{width: width, features: make([]float32, tokens*width)}
	for range levels {
		r.deepstack = append(r.deepstack, make([]float32, tokens*width))
	}
	for _, list := range append([][]float32{r.features}, r.deepstack...) {
		for i := range list {
			list[i] = rand.Float32()
		}
	}
	return r
}

// Whatever is asked for in whatever order, the memory holds what was used last, and never more than its bytes.
func TestVisionCacheKeepsItsBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(1, 400).Draw(t, "limit")
		c := newVisionCache(limit, nil)
		var used []int // least recently first: the model
		sizes := map[int]int64{}
		for range rapid.IntRange(1, 60).Draw(t, "uses") {
			n := rapid.IntRange(0, 9).Draw(t, "key")
			rows, f, own := c.get(key(n))
			kept := false
			for i, k := range used {
				if k == n {
					kept = true
					used = append(used[:i], used[i+1:]...)
					break
				}
			}
			if kept != (rows != nil) || own == kept {
				t.Fatalf("key %d: rows %v, own %v; it should be kept: %v", n, rows != nil, own, kept)
			}
			if own {
				rows = someRows(1+n, 2, n%3)
				c.settle(key(n), f, rows)
			}
			if sizes[n] = rows.bytes(); sizes[n] > limit {
				continue
			}
			used = append(used, n)
			total := int64(0)
			for i := len(used) - 1; i >= 0; i-- {
				if total += sizes[used[i]]; total > limit {
					total -= sizes[used[i]]
					used = used[i+1:]
					break
				}
			}
			if s := c.snapshot(); s.Bytes != total || s.Entries != int64(len(used)) || s.Bytes > limit {
				t.Fatalf("%d bytes in %d entries; %d in %d are right", s.Bytes, s.Entries, total, len(used))
			}
		}
	})
}

func TestVisionCacheOff(t *testing.T) {
	if c := newVisionCache(0, nil); c != nil || c.snapshot() != (VisionStats{}) {
		t.Error("a cache of nothing")
	}
}

// A key is computed once for all that want it; when that fails, each of the others tries itself.
func TestFlights(t *testing.T) {
	c := newVisionCache(1<<20, nil)
	var wg sync.WaitGroup
	_, first, own := c.get(key(1))
	if !own {
		t.Fatal("the first request does not compute")
	}
	waiting := make(chan struct{}, 3)
	computed := 0
	var mu sync.Mutex
	for range 3 {
		wg.Go(func() {
			for tried := false; ; tried = true {
				rows, f, own := c.get(key(1))
				switch {
				case rows != nil:
					return
				case own:
					mu.Lock()
					computed++
					mu.Unlock()
					c.settle(key(1), f, someRows(2, 2, 0))
					return
				}
				if !tried {
					waiting <- struct{}{}
				}
				if <-f.done; f.rows != nil {
					return
				}
			}
		})
	}
	for range 3 {
		<-waiting
	}
	c.settle(key(1), first, nil) // cancelled
	wg.Wait()
	if computed != 1 {
		t.Errorf("computed %d times", computed)
	}
}

func testDisk(t *testing.T, limit int64) *visionDisk {
	t.Helper()
	d, err := openVisionDisk(t.TempDir(), limit, sha256.Sum256([]byte("model")), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func unitOf(n, tokens int) mediaUnit { return mediaUnit{key: key(n), tokens: tokens} }

func TestVisionDiskGivesBackWhatWasStored(t *testing.T) {
	d := testDisk(t, 0)
	for _, levels := range []int{0, 3} {
		rows := someRows(5, 4, levels)
		d.store(key(levels), rows)
		got := d.load(unitOf(levels, 5), 4, levels)
		if diff := cmp.Diff(rows, got, cmp.AllowUnexported(visionRows{})); diff != "" {
			t.Error(diff)
		}
	}
	if d.load(unitOf(9, 5), 4, 0) != nil {
		t.Error("rows that nobody stored")
	}
	other := &visionDisk{folder: d.folder, limit: d.limit, logger: d.logger}
	if other.load(unitOf(0, 5), 4, 0) != nil {
		t.Error("rows of another model")
	}
	if errors, _ := d.counts(); errors != 0 {
		t.Errorf("%d errors", errors)
	}
}

// Every way in which a file can be damaged is a miss, and the file goes.
func TestDamagedFilesAreMisses(t *testing.T) {
	d := testDisk(t, 0)
	rows := someRows(3, 4, 1)
	d.store(key(1), rows)
	path, _ := d.path(key(1))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d.store(key(2), rows)
	otherPath, _ := d.path(key(2))
	other, err := os.ReadFile(otherPath)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string][]byte{"empty": {}, "cut": whole[:len(whole)-1], "longer": append(bytes.Clone(whole), 0), "of another picture": other}
	for _, at := range []int{0, len(rowsMagic), len(rowsMagic) + 32, rowsHeader, len(whole) - 1} {
		flipped := bytes.Clone(whole)
		flipped[at] ^= 1
		damages["flipped at "+string(rune('0'+at%10))] = flipped
	}
	for name, raw := range damages {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if d.load(unitOf(1, 3), 4, 1) != nil {
			t.Errorf("%s: it was read", name)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: it is still there", name)
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if d.load(unitOf(1, 3), 4, 1) != nil {
		t.Error("a folder was read")
	}
	d.store(key(1), rows) // an error of the disk's, of nobody else's: the empty folder went with the last load
	if errors, _ := d.counts(); errors < uint64(len(damages)) {
		t.Errorf("%d errors of %d damages were counted", errors, len(damages))
	}
}

func TestVisionDiskKeepsItsBound(t *testing.T) {
	rows := someRows(8, 4, 0)
	size := int64(rowsHeader + 8*4*4 + sha256.Size)
	d := testDisk(t, 3*size)
	stale := filepath.Join(d.folder, rowsAside+"left")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * asideAge)
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.folder, "foreign"), make([]byte, 1<<12), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		d.store(key(n), rows)
		path, _ := d.path(key(n))
		at := time.Now().Add(time.Duration(n-10) * time.Minute)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	d.load(unitOf(0, 8), 4, 0) // used again: number 1 is the oldest now
	d.store(key(3), rows)
	for n, want := range []bool{true, false, true, true} {
		if got := d.load(unitOf(n, 8), 4, 0) != nil; got != want {
			t.Errorf("number %d is there: %v", n, got)
		}
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("what a dead process left half written is still there")
	}
	if _, err := os.Stat(filepath.Join(d.folder, "foreign")); err != nil {
		t.Error("a file of somebody else is gone")
	}
	if _, bytes := d.counts(); bytes > 3*size {
		t.Errorf("%d bytes; %d are allowed", bytes, 3*size)
	}
	d.store(key(9), someRows(1000, 4, 0)) // larger than the folder may be
	if _, bytes := d.counts(); bytes > 3*size {
		t.Errorf("%d bytes after rows that do not fit", bytes)
	}
}

func FuzzDecodeRows(f *testing.F) {
	full := sha256.Sum256([]byte("k"))
	good := encodeRows(full, someRows(2, 3, 1))
	f.Add(good, 2, 3, 1)
	f.Add(good[:40], 2, 3, 1)
	f.Add([]byte(rowsMagic), 0, 0, 0)
	f.Fuzz(func(t *testing.T, raw []byte, tokens, width, levels int) {
		if tokens < 0 || width < 1 || levels < 0 || tokens > 100 || width > 100 || levels > 4 { // the engine's own numbers
			return
		}
		if rows, err := decodeRows(raw, full, tokens, width, levels); err == nil && !bytes.Equal(encodeRows(full, rows), raw) {
			t.Error("what was read is not what was written")
		}
	})
}

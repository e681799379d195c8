// Feature rows of pictures by content: a picture that was seen before is neither decoded nor run through the graphs again.
//
// A key is computed by one request at a time; others that want it meanwhile wait for that one. When it fails or is cancelled
// they compute it themselves, so that nobody fails by another's doing. A request computes all keys that it took upon
// itself before it waits for those of others: no two can wait for each other.
//
// Rows in the cache are shared by everybody and never written to.

package engine

import (
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// visionRows are the prompt's rows of one medium.
type visionRows struct {
	features  []float32   // [rows, width]
	deepstack [][]float32 // as features, for each of the decoder's first layers that take them
	width     int
}

// bytes is the memory that the rows take; bookkeeping is far below what a row takes.
func (r *visionRows) bytes() int64 {
	n := len(r.features)
	for _, level := range r.deepstack {
		n += len(level)
	}
	return 4 * int64(n)
}

// flight is a key that a request computes.
type flight struct {
	done chan struct{}
	rows *visionRows // after done; nil: the others have to compute it themselves
}

// visionCache keeps rows up to a number of bytes, the least recently used go first. It is safe for many goroutines.
type visionCache struct {
	limit int64
	disk  *visionDisk // nil: memory alone

	mu      sync.Mutex
	list    *simplelru.LRU[mediaKey, *visionRows]
	flights map[mediaKey]*flight
	stats   VisionStats
}

// VisionStats count what became of the pictures, video frames and videos of prompts since the model was opened.
type VisionStats struct {
	Hits     uint64 // rows came from memory
	DiskHits uint64 // rows came from the disk
	Shared   uint64 // rows came from a request that was just computing them
	Misses   uint64 // rows were computed
	Evicted  uint64 // rows that left the memory for others
	Entries  int64  // in memory now
	Bytes    int64  // of the rows in memory now
	// DiskErrors are files that could not be read or written, or were damaged. Nothing but time is lost by them.
	DiskErrors uint64
	DiskBytes  int64 // of the files, as far as this process knows
}

// newVisionCache returns a cache; nil when there is neither memory nor a disk for it.
func newVisionCache(limit int64, disk *visionDisk) *visionCache {
	if limit <= 0 && disk == nil {
		return nil
	}
	c := &visionCache{limit: limit, disk: disk, flights: map[mediaKey]*flight{}}
	list, err := simplelru.NewLRU[mediaKey, *visionRows](math.MaxInt, nil)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	c.list = list
	return c
}

// get returns the rows of a key, or the flight of whoever computes it; or, with own, leaves it to the caller, who must settle
// the flight whatever happens.
func (c *visionCache) get(key mediaKey) (rows *visionRows, f *flight, own bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rows, ok := c.list.Get(key); ok {
		c.stats.Hits++
		return rows, nil, false
	}
	if f := c.flights[key]; f != nil {
		return nil, f, false
	}
	f = &flight{done: make(chan struct{})}
	c.flights[key] = f
	return nil, f, true
}

// settle ends a flight: rows are what its key has now, nil where they could not be made.
func (c *visionCache) settle(key mediaKey, f *flight, rows *visionRows) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flights, key)
	f.rows = rows
	close(f.done)
	if rows == nil || rows.bytes() > c.limit {
		return
	}
	c.list.Add(key, rows)
	for c.stats.Bytes += rows.bytes(); c.stats.Bytes > c.limit; c.stats.Evicted++ {
		_, oldest, _ := c.list.RemoveOldest()
		c.stats.Bytes -= oldest.bytes()
	}
}

// count notes what became of a key that was not in memory.
func (c *visionCache) count(add func(*VisionStats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	add(&c.stats)
}

// snapshot returns the counters.
func (c *visionCache) snapshot() VisionStats {
	if c == nil {
		return VisionStats{}
	}
	c.mu.Lock()
	s := c.stats
	s.Entries = int64(c.list.Len())
	c.mu.Unlock()
	if c.disk != nil {
		s.DiskErrors, s.DiskBytes = c.disk.counts()
	}
	return s
}

// openVisionCache opens the cache of a model that takes pictures and generates text.
func (e *Engine) openVisionCache(folder string, opts Options) (err error) {
	var disk *visionDisk
	if opts.VisionCacheDir != "" && e.manifest.Decoder != nil {
		model, err := visionModelHash(folder, e.manifest)
		if err != nil {
			return err
		}
		if disk, err = openVisionDisk(opts.VisionCacheDir, opts.VisionCacheDisk, model, opts.Logger); err != nil {
			return err
		}
	}
	e.vision = newVisionCache(opts.VisionCache, disk)
	return nil
}

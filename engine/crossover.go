// From how many tokens on the prefill graph is the faster one: that depends on the machine, so it is measured when a model
// is first opened there, and kept.

package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"glimpse/graphs"
	"glimpse/manifest"
	"glimpse/preprocess"
)

// crossoverSizes are the steps that are timed; a decoder that is never slower than the prefill graph keeps all of them.
var crossoverSizes = []int{2, 3, 4, 6, 8, 12, 16, 24, 32}

// crossoverRuns is how often each is timed; the fastest counts, since whatever else the machine does only adds time.
const crossoverRuns = 3

// crossover is the file that a measurement is kept in, JSON.
type crossover struct {
	WideRows int `json:"wide_rows"` // fewest tokens of a step that the prefill graph takes
}

// chooseWideRows sets d.wideRows: what was asked for, or what the cache folder holds, or what is measured now.
func (d *decoder) chooseWideRows(ctx context.Context, m *manifest.Manifest, opts Options) error {
	if d.wide == nil {
		return nil
	}
	if opts.WideRows > 0 {
		d.wideRows = opts.WideRows
		return nil
	}
	path := crossoverPath(m, opts)
	if kept, err := readCrossover(path); err == nil {
		d.wideRows = kept.WideRows
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		opts.Logger.Warn("measure again which decoder graph is faster when", "because", err)
	}
	start := time.Now()
	rows, err := d.measureWideRows(ctx)
	if err != nil {
		return fmt.Errorf("measure the decoder's two graphs: %w", err)
	}
	d.wideRows = rows
	opts.Logger.Info("measured from how many tokens on the prefill graph is faster", "tokens", rows, "took", time.Since(start))
	if err := writeCrossover(path, crossover{rows}); err != nil {
		opts.Logger.Warn("the measurement is not kept", "error", err)
	}
	return nil
}

// measureWideRows times steps of both graphs on slot 0, whose cache nobody reads yet. The prefill graph has to be the faster one for two
// sizes in a row: what else the machine does may slow the other one down once.
func (d *decoder) measureWideRows(ctx context.Context) (int, error) {
	d.session.Settle()
	d.wide.Settle()
	faster := 0 // the size before, where the prefill graph was the faster one
	s := newStep(1)
	most := min(d.tokenMap.Cap(), d.arena.Spec().Capacity)
	for _, n := range crossoverSizes {
		if n > most {
			break
		}
		var took [2]time.Duration
		for i, wide := range []int{most + 1, 1} { // the threshold that makes a step narrow, and wide
			d.wideRows = wide
			for run := range crossoverRuns + 1 {
				s.reset(0)
				s.add(0, n, 1)
				clear(d.embeds(n))
				for at := 0; d.axes != nil && at < n; at++ {
					s.positions = append(s.positions, preprocess.Position{Time: int32(at), Row: int32(at), Column: int32(at)})
				}
				for at := 0; d.spanFirst != nil && at < n; at++ {
					s.spans = append(s.spans, span{at, at})
				}
				start := time.Now()
				if err := d.run(ctx, s); err != nil {
					return 0, err
				}
				if t := time.Since(start); run == 1 || run > 1 && t < took[i] { // the first one allocates
					took[i] = t
				}
			}
		}
		switch {
		case took[1] > took[0]:
			faster = 0
		case faster > 0:
			return faster, nil
		default:
			faster = n
		}
	}
	if faster > 0 {
		return faster, nil
	}
	return min(most, crossoverSizes[len(crossoverSizes)-1]), nil
}

// crossoverPath names the file after everything that the measurement depends on; empty without a cache folder.
func crossoverPath(m *manifest.Manifest, opts Options) string {
	if opts.CacheDir == "" {
		return ""
	}
	d := m.Decoder
	h := sha256.New()
	fmt.Fprintln(h, m.Converter, m.Components[d.Component], m.Components[d.Prefill], m.Source.Files)
	fmt.Fprintln(h, opts.Device, opts.DeviceID, opts.Threads, graphs.DefaultThreads(), graphs.Processor(), opts.Runtime.Version(), opts.Runtime.Kernels())
	return filepath.Join(opts.CacheDir, "crossover", hex.EncodeToString(h.Sum(nil)[:16])+".json")
}

func readCrossover(path string) (c crossover, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil || c.WideRows < 1 || c.WideRows > 1<<20 {
		return c, fmt.Errorf("%s does not hold a measurement", path)
	}
	return c, nil
}

// writeCrossover writes aside and renames, so that a reader finds the whole file or none.
func writeCrossover(path string, c crossover) error {
	if path == "" {
		return errors.New("there is no cache folder")
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".crossover-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

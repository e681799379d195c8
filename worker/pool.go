// Models that share a machine: which are loaded, and what they may hold.

package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"glimpse/engine"
	"glimpse/manifest"
)

// Options says how workers are started. Command is required.
type Options struct {
	// Command prepares the process that will dial the socket and call Serve with the connection and the folder's model.
	Command func(folder, socket string) *exec.Cmd
	// MemoryLimit bounds the bytes that all workers hold together, as measured; 0: no limit. A model is loaded when it is
	// asked for, and those asked for least recently make room for it.
	MemoryLimit int64
	// PingTimeout is how long a worker may be silent before it is taken for stopped, and killed; 0: 45 s. It is long because
	// machines are busy at times; a slow answer is not silence.
	PingTimeout time.Duration
	Logger      *slog.Logger // nil: nothing is logged
}

const (
	// runtimeBytes is what a worker holds beside its model, to guess by before it was measured once.
	runtimeBytes = 128 << 20
	// politeness is how long a model that is wanted waits for others to be idle before one of them is told to finish.
	politeness = time.Second
	// measureEvery is how often the workers' memory is measured under a limit.
	measureEvery = 2 * time.Second
)

// Pool has the models of a server.
type Pool struct {
	opts    Options
	ctx     context.Context // ends when Close begins
	cancel  context.CancelFunc
	loads   chan struct{} // under a limit one model is loaded at a time: the token is here or with that
	mu      sync.Mutex
	models  []*Model
	watcher sync.WaitGroup
}

// NewPool checks the options and makes a pool without models.
func NewPool(o Options) (*Pool, error) {
	if o.Command == nil {
		return nil, errors.New("make a pool of workers: Options.Command is nil")
	}
	if o.MemoryLimit > 0 && !CanMeasure {
		return nil, errors.New("make a pool of workers: the memory of processes cannot be measured on this system, so it cannot be limited")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.PingTimeout <= 0 {
		o.PingTimeout = pingTimeout
	}
	p := &Pool{opts: o, loads: make(chan struct{}, 1)}
	p.loads <- struct{}{}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if o.MemoryLimit > 0 {
		p.watcher.Go(p.watch)
	}
	return p, nil
}

// Add adds a model folder. Nothing is started; the manifest is read, and a folder that can never fit is refused.
func (p *Pool) Add(folder string) (*Model, error) {
	m := &Model{pool: p, folder: folder, retired: map[*child]bool{}}
	read, err := manifest.Read(folder)
	if err != nil {
		return nil, err
	}
	m.manifest.Store(read)
	path, err := filepath.Abs(folder)
	if err != nil {
		return nil, fmt.Errorf("add model %s: %w", folder, err)
	}
	m.name = filepath.Base(path)
	m.log = p.opts.Logger.With("model", m.name)
	if limit := p.opts.MemoryLimit; limit > 0 {
		if size := folderBytes(folder); size > limit {
			return nil, fmt.Errorf("add model %s: its files have %d MiB, and the memory limit is %d MiB", folder, size>>20, limit>>20)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return nil, engine.ErrClosed
	}
	m.ctx, m.cancel = context.WithCancel(p.ctx)
	p.models = append(p.models, m)
	return m, nil
}

func folderBytes(folder string) int64 {
	var total int64
	_ = filepath.WalkDir(folder, func(_ string, entry fs.DirEntry, err error) error { // what cannot be read is found out by loading
		if err == nil && entry.Type().IsRegular() {
			if info, err := entry.Info(); err == nil {
				total += info.Size()
			}
		}
		return nil
	})
	return total
}

func (p *Pool) list() []*Model {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.models)
}

func (p *Pool) forget(m *Model) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.models = slices.DeleteFunc(p.models, func(other *Model) bool { return other == m })
}

// Reload reloads every model that is loaded, one after the other; see Model.Reload.
func (p *Pool) Reload(ctx context.Context) error {
	var problems []error
	for _, m := range p.list() {
		if err := m.Reload(ctx); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// Close closes every model. It is idempotent.
func (p *Pool) Close() error {
	p.cancel()
	var ended sync.WaitGroup
	for _, m := range p.list() {
		ended.Go(func() { _ = m.Close() }) // it never fails
	}
	ended.Wait()
	p.watcher.Wait()
	return nil
}

// usage is what a model holds now.
type usage struct {
	model    *Model
	loaded   bool
	idle     bool // no request is in flight
	bytes    int64
	leaving  int64 // of bytes, those of processes that are about to go
	lastUsed time.Time
}

// measure measures a model's processes.
func (m *Model) measure() usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := usage{model: m, lastUsed: m.lastUsed}
	for c := range m.retired {
		if bytes, err := residentBytes(c.cmd.Process.Pid); err == nil { // gone is nothing held
			u.bytes += bytes
			u.leaving += bytes
		}
	}
	if c := m.current; c != nil {
		u.loaded, u.idle = true, c.users == 0
		if bytes, err := residentBytes(c.cmd.Process.Pid); err == nil {
			m.size = bytes
			u.bytes += bytes
		}
	}
	return u
}

// estimate is what a process of the model will hold: what it held before, or what its files suggest.
func (m *Model) estimate() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.size > 0 {
		return m.size
	}
	return folderBytes(m.folder) + runtimeBytes
}

// survey measures everything.
func (p *Pool) survey() (all []usage, total, leaving int64) {
	for _, m := range p.list() {
		u := m.measure()
		all = append(all, u)
		total += u.bytes
		leaving += u.leaving
	}
	return all, total, leaving
}

// victim picks who makes room for m: the idle model that was used least recently, and with busy set any such.
func victim(all []usage, m *Model, busy bool) *Model {
	candidates := slices.DeleteFunc(slices.Clone(all), func(u usage) bool { return u.model == m || !u.loaded || !u.idle && !busy })
	if len(candidates) == 0 {
		return nil
	}
	return slices.MinFunc(candidates, func(a, b usage) int { return cmp.Or(compareBool(b.idle, a.idle), a.lastUsed.Compare(b.lastUsed)) }).model
}

func compareBool(a, b bool) int { return cmp.Compare(bit(a), bit(b)) }

// enter waits until there is memory for one more process of m, and makes some where it must. leave must be called when
// that is loaded.
func (p *Pool) enter(ctx context.Context, m *Model) (leave func(), err error) {
	if p.opts.MemoryLimit == 0 {
		return func() {}, nil
	}
	select {
	case <-p.loads:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	leave = func() { p.loads <- struct{}{} }
	since := time.Now()
	for {
		all, total, leaving := p.survey()
		need := m.estimate()
		if total+need <= p.opts.MemoryLimit {
			return leave, nil
		}
		var gone <-chan struct{}
		if total-leaving+need > p.opts.MemoryLimit { // waiting alone does not help
			if v := victim(all, m, time.Since(since) > politeness); v != nil {
				v.log.Info("unloaded to make room", "for", m.name, "held_bytes", total, "needed_bytes", need, "limit_bytes", p.opts.MemoryLimit)
				gone = v.Unload()
			} else if leaving == 0 && !slices.ContainsFunc(all, func(u usage) bool { return u.loaded && u.model != m }) {
				// There is nobody to make room. It may fit better than was thought, and if not, it is alone.
				m.log.Warn("the model may not fit into the memory limit", "held_bytes", total, "needed_bytes", need, "limit_bytes", p.opts.MemoryLimit)
				return leave, nil
			}
		}
		select {
		case <-gone: // never, where it is nil
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			leave()
			return nil, ctx.Err()
		}
	}
}

// watch unloads idle models while more memory is held than may be: processes grow.
func (p *Pool) watch() {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		all, total, leaving := p.survey()
		loaded := slices.DeleteFunc(slices.Clone(all), func(u usage) bool { return !u.loaded })
		if total-leaving <= p.opts.MemoryLimit || len(loaded) < 2 {
			continue
		}
		// The one that was used last stays, whatever it holds.
		last := slices.MaxFunc(loaded, func(a, b usage) int { return a.lastUsed.Compare(b.lastUsed) }).model
		if v := victim(all, last, false); v != nil {
			v.log.Info("unloaded: more memory is held than may be", "held_bytes", total, "limit_bytes", p.opts.MemoryLimit)
			v.Unload()
		}
	}
}

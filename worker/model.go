// A model in a worker: loaded when it is wanted, restarted when it dies, replaced without a gap.

package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"glimpse/engine"
	"glimpse/manifest"
)

const (
	// stable is how long a worker must live for its death to count as the first.
	stable = time.Minute
	// patience is how long a request waits for a restart that is put off; beyond it the client hears when to come back.
	patience = 5 * time.Second

	firstBackoff = 250 * time.Millisecond
	lastBackoff  = 30 * time.Second
)

// Model is a model folder that a worker process runs. It has the methods of *engine.Engine that a server needs.
type Model struct {
	pool     *Pool
	folder   string
	name     string
	log      *slog.Logger
	manifest atomic.Pointer[manifest.Manifest]
	ctx      context.Context // ends when Close begins
	cancel   context.CancelFunc

	mu       sync.Mutex
	current  *child        // what takes requests; nil where there is none
	loading  chan struct{} // closed when the load under way ends; nil without one
	loadErr  error         // of the last load
	failures int           // deaths and failed loads in a row
	retryAt  time.Time     // no load before
	keep     bool          // loaded on its own account: when it dies it is loaded again
	lastUsed time.Time
	size     int64           // bytes of its process when last measured
	retired  map[*child]bool // those that still have requests, or are ending
	closed   bool
	tasks    sync.WaitGroup // loads and ends under way
}

// Name returns the name of the model's folder.
func (m *Model) Name() string { return m.name }

// Manifest returns the model's manifest as the folder had it when it was last loaded. It must not be changed.
func (m *Model) Manifest() *manifest.Manifest { return m.manifest.Load() }

// Ready says whether the model answers as it should: it is loaded, or nobody has asked for it to be there before requests
// want it.
func (m *Model) Ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.closed && (!m.keep || m.current != nil && m.current.alive())
}

// Generate answers one prompt, as *engine.Engine does.
func (m *Model) Generate(ctx context.Context, r engine.Request) (*engine.Result, error) {
	return send[engine.Result](ctx, m, kindGenerate, r, r.Token)
}

// Prepare makes the prompt without running the decoder. The tensors of the pictures stay in the worker.
func (m *Model) Prepare(ctx context.Context, r engine.Request) (*engine.Prepared, error) {
	return send[engine.Prepared](ctx, m, kindPrepare, r, nil)
}

// Score compares pictures with texts.
func (m *Model) Score(ctx context.Context, r engine.ScoreRequest) (*engine.ScoreResult, error) {
	return send[engine.ScoreResult](ctx, m, kindScore, r, nil)
}

// Embed embeds pictures and texts.
func (m *Model) Embed(ctx context.Context, r engine.EmbedRequest) (*engine.EmbedResult, error) {
	return send[engine.EmbedResult](ctx, m, kindEmbed, r, nil)
}

// Rerank orders documents by their fit to a text.
func (m *Model) Rerank(ctx context.Context, r engine.RerankRequest) (*engine.RerankResult, error) {
	return send[engine.RerankResult](ctx, m, kindRerank, r, nil)
}

// Info asks the worker about itself, and loads the model where it is not.
func (m *Model) Info(ctx context.Context) (*Info, error) {
	return send[Info](ctx, m, kindInfo, struct{}{}, nil)
}

// Stats asks the worker for its counters; nil where none runs. It loads no model.
func (m *Model) Stats(ctx context.Context) (*engine.Stats, error) {
	m.mu.Lock()
	c := m.current
	if c == nil || !c.alive() {
		m.mu.Unlock()
		return nil, nil
	}
	c.users++ // and no use of the model: what is asked for metrics does not keep it loaded
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.leave(c)
	}()
	var info Info
	if err := c.ask(ctx, kindInfo, struct{}{}, &info, nil); err != nil {
		return nil, err
	}
	return &info.Stats, nil
}

func send[R any](ctx context.Context, m *Model, k kind, request any, token func(engine.Token)) (*R, error) {
	c, err := m.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer m.release(c)
	reply := new(R)
	if err := c.ask(ctx, k, request, reply, token); err != nil {
		return nil, err
	}
	return reply, nil
}

// acquire returns a worker that takes requests, and loads the model where there is none. It must be released.
func (m *Model) acquire(ctx context.Context) (*child, error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, engine.ErrClosed
		}
		if m.current != nil && !m.current.alive() {
			m.lost(m.current)
		}
		if c := m.current; c != nil {
			c.users++
			m.lastUsed = time.Now()
			m.mu.Unlock()
			return c, nil
		}
		if wait := time.Until(m.retryAt); wait > 0 && (m.loadErr != nil || wait > patience) {
			err := m.loadErr
			m.mu.Unlock()
			return nil, &Unavailable{Message: "the model cannot be loaded now: try again later", After: wait, Err: err}
		}
		wait := m.load()
		m.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (m *Model) release(c *child) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastUsed = time.Now()
	m.leave(c)
}

// leave ends one use of a worker. m is locked.
func (m *Model) leave(c *child) {
	if c.users--; c.users == 0 && c.retiring && !m.closed { // Close ends all by itself
		m.end(c)
	}
}

// load makes sure that a load is under way and returns what is closed when it has ended. m is locked.
func (m *Model) load() <-chan struct{} {
	if m.loading == nil {
		done := make(chan struct{})
		m.loading = done
		m.tasks.Go(func() { m.run(done, time.Until(m.retryAt)) })
	}
	return m.loading
}

// run loads the model after a delay. Where that fails, or the new worker has died meanwhile, and the model is to be kept,
// the next load follows.
func (m *Model) run(done chan struct{}, delay time.Duration) {
	ctx := m.ctx
	select {
	case <-time.After(max(0, delay)):
	case <-ctx.Done():
	}
	c, read, err := m.open(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loading = nil
	defer close(done)
	m.loadErr = err
	if err != nil {
		m.failed()
		if m.closed {
			return
		}
		m.log.Error("cannot load the model", "error", err, "again", time.Until(m.retryAt))
		if m.keep && m.current == nil {
			m.load()
		}
		return
	}
	old := m.current
	m.current, m.lastUsed = c, time.Now()
	m.manifest.Store(read)
	if old != nil {
		m.retire(old)
	}
	if m.closed {
		m.current = nil
		m.retire(c)
		return
	}
	m.tasks.Go(func() {
		<-c.gone
		m.mu.Lock()
		defer m.mu.Unlock()
		m.lost(c)
	})
}

// open reads the folder and starts a worker, as soon as there is memory for it.
func (m *Model) open(ctx context.Context) (*child, *manifest.Manifest, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, engine.ErrClosed
	}
	read, err := manifest.Read(m.folder)
	if err != nil {
		return nil, nil, err
	}
	leave, err := m.pool.enter(ctx, m)
	if err != nil {
		return nil, nil, err
	}
	defer leave()
	c, err := startChild(ctx, m.pool.opts, m.folder, m.name)
	if err != nil {
		return nil, nil, err
	}
	bytes, err := residentBytes(c.cmd.Process.Pid)
	if err == nil {
		m.mu.Lock()
		m.size = bytes
		m.mu.Unlock()
	}
	m.log.Info("worker started", "worker", c.cmd.Process.Pid, "took", time.Since(c.born), "load", c.info.Load, "resident_bytes", bytes)
	return c, read, nil
}

// failed puts the next load off. m is locked.
func (m *Model) failed() {
	m.failures++
	delay := time.Duration(0)
	if m.failures > 1 || m.loadErr != nil {
		delay = min(firstBackoff<<min(m.failures-1, 16), lastBackoff)
	}
	m.retryAt = time.Now().Add(delay)
}

// lost notes that a worker's connection is over; once for each. m is locked.
func (m *Model) lost(c *child) {
	if m.current != c {
		return // it was retired, and ends as it should
	}
	m.current = nil
	if time.Since(c.born) > stable {
		m.failures = 0
	}
	m.failed()
	m.retired[c] = true
	users := c.users
	m.tasks.Go(func() {
		<-c.gone
		<-c.exited
		m.mu.Lock()
		delete(m.retired, c)
		m.mu.Unlock()
		c.log.Error("the worker died", "how", c.exit(), "connection", c.err, "in_flight", users, "lived", time.Since(c.born))
	})
	if m.keep && !m.closed {
		m.load()
	}
}

// retire takes no more requests for a worker and ends it when it has answered those it has. m is locked.
func (m *Model) retire(c *child) {
	c.retiring = true
	m.retired[c] = true
	if c.users == 0 {
		m.end(c)
	}
}

// end ends a retired worker. m is locked.
func (m *Model) end(c *child) {
	m.tasks.Go(func() {
		c.close()
		m.log.Info("worker ended", "worker", c.cmd.Process.Pid)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.retired, c)
	})
}

// Load loads the model and keeps it loaded: when its process dies, another is started without being asked for.
func (m *Model) Load(ctx context.Context) error {
	m.mu.Lock()
	m.keep = true
	m.mu.Unlock()
	c, err := m.acquire(ctx)
	if err != nil {
		var later *Unavailable
		if errors.As(err, &later) && later.Err != nil {
			return later.Err
		}
		return err
	}
	m.release(c)
	return nil
}

// Reload starts a worker with what the folder has now; when that is loaded it takes the requests, and the old one ends
// with those it has. Where loading fails the old one goes on. A model that is not loaded is left so.
func (m *Model) Reload(ctx context.Context) error {
	m.mu.Lock()
	for m.loading != nil { // it may have read the folder before it changed
		wait := m.loading
		m.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
		m.mu.Lock()
	}
	if m.closed {
		m.mu.Unlock()
		return engine.ErrClosed
	}
	m.failures, m.retryAt = 0, time.Time{}
	if m.current == nil && !m.keep {
		defer m.mu.Unlock()
		read, err := manifest.Read(m.folder)
		if err != nil {
			return err
		}
		m.manifest.Store(read)
		m.loadErr = nil
		return nil
	}
	wait := m.load()
	m.mu.Unlock()
	select {
	case <-wait:
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loadErr != nil {
		return fmt.Errorf("reload %s: %w", m.name, m.loadErr)
	}
	return nil
}

// Unload ends the worker once it has answered the requests it has; the next request loads the model again. What it
// returns is closed when the process has ended, and its memory is the system's.
func (m *Model) Unload() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep = false
	c := m.current
	if c == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	m.current = nil
	m.retire(c)
	return c.exited
}

// Close ends the model: requests in flight fail with engine.ErrClosed, and the process has ended when it returns. It is
// idempotent.
func (m *Model) Close() error {
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		m.cancel()
		if c := m.current; c != nil {
			m.current = nil
			m.retired[c] = true
		}
		for c := range m.retired {
			m.tasks.Go(c.close)
		}
	}
	m.mu.Unlock()
	m.pool.forget(m)
	m.tasks.Wait()
	return nil
}

// Package engine runs a model folder: a request's pictures go through the picture graphs, their rows take the places of
// the prompt's image tokens, and the decoder continues the prompt, many requests at once.
//
//	e, err := engine.Open(ctx, folder, engine.Options{Runtime: runtime})
//	result, err := e.Generate(ctx, engine.Request{Messages: …, MaxTokens: 64})
//	err = e.Close()
//
// An Engine is safe for many goroutines. What differs between model families is data in the manifest; nothing here asks
// which family a model has.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"glimpse/graphs"
	"glimpse/manifest"
)

// Defaults of Options, and of requests where the manifest says nothing.
const (
	defaultSlots        = 4
	defaultCapacity     = 4096
	defaultChunk        = 128
	defaultPictureBatch = 8
	defaultNewTokens    = 512
)

// Engine is an open model folder.
type Engine struct {
	manifest *manifest.Manifest
	name     string
	limit    int // tokens that prompt and answer may have together; with an encoder, start token and answer
	loadTime time.Duration
	logger   *slog.Logger

	sourceLimit int // tokens of a prompt that an encoder reads; 0 without one

	prompter    *prompter
	pictures    *pictures    // nil: the model takes none
	stages      *stages      // as pictures
	vision      *visionCache // nil: no feature rows are kept
	sounds      *sounds      // nil: the model takes none
	instruction *textInput   // nil: the picture stages read no text
	scorer      *scorer      // nil: the model compares no pictures with texts
	embeddings  *embeddingTable
	decoder     *decoder   // nil: the model generates no text
	scheduler   *scheduler // as decoder
	constraints constraints

	ctx     context.Context // ends when Close begins
	closing context.CancelCauseFunc
	mu      sync.Mutex // guards closed, and users against a Close that begins
	closed  bool
	users   sync.WaitGroup
	once    sync.Once
	err     error // of Close
}

// Open reads a model folder and loads its graphs.
func Open(ctx context.Context, folder string, opts Options) (*Engine, error) {
	start := time.Now()
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open model: %w", err)
	}
	m, err := manifest.Read(folder)
	if err != nil {
		return nil, err
	}
	e := &Engine{manifest: m, name: modelName(folder), logger: opts.Logger}
	e.ctx, e.closing = context.WithCancelCause(context.Background())
	if err := e.load(ctx, folder, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("open model %s: %w", folder, err), e.Close())
	}
	e.loadTime = time.Since(start)
	e.logger.Info("model loaded", "model", e.name, "precision", m.Precision, "slots", opts.Slots, "context", e.limit, "took", e.loadTime)
	return e, nil
}

func (o Options) withDefaults() (Options, error) {
	if o.Runtime == nil {
		return o, errors.New("Options.Runtime is nil")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.CacheDir == "" {
		if dir, err := os.UserCacheDir(); err == nil { // without one, nothing is kept
			o.CacheDir = filepath.Join(dir, "glimpse")
		}
	}
	var problems []error
	for _, v := range []struct {
		name  string
		value *int
		empty int
		most  int
	}{
		{"slots", &o.Slots, defaultSlots, 1 << 12},
		{"capacity", &o.Capacity, 0, 1 << 24},
		{"prefill chunk", &o.PrefillChunk, defaultChunk, 1 << 16},
		{"picture batch", &o.PictureBatch, defaultPictureBatch, 1 << 12},
		{"threads", &o.Threads, 0, 1 << 12},
		{"wide rows", &o.WideRows, 0, 1 << 20},
	} {
		if *v.value == 0 {
			*v.value = v.empty
		}
		if *v.value < 0 || *v.value > v.most {
			problems = append(problems, fmt.Errorf("%s is %d; it must lie in 1..%d, or be 0 for the default", v.name, *v.value, v.most))
		}
	}
	if o.Speculation < SpeculationAuto || o.Speculation > mostDrafts {
		problems = append(problems, fmt.Errorf("speculation is %d tokens; it must lie in 0..%d, or be %d for what is fastest", o.Speculation, mostDrafts, SpeculationAuto))
	}
	for name, bytes := range map[string]int64{"vision cache": o.VisionCache, "vision cache on disk": o.VisionCacheDisk} {
		if bytes < 0 {
			problems = append(problems, fmt.Errorf("%s is %d bytes; it must be 0 or more", name, bytes))
		}
	}
	return o, errors.Join(problems...)
}

// modelName is what the folder is called.
func modelName(folder string) string {
	if abs, err := filepath.Abs(folder); err == nil {
		folder = abs
	}
	return filepath.Base(folder)
}

// load opens the parts of the model; Close closes those that it got to.
func (e *Engine) load(ctx context.Context, folder string, opts Options) (err error) {
	m := e.manifest
	opts.preload = startPreload(ctx, folder, m, opts)
	defer func() { err = errors.Join(err, opts.preload.close()) }()
	if e.prompter, err = openPrompter(folder, m); err != nil {
		return err
	}
	if m.Picture != nil {
		if e.pictures, err = newPictures(m.Picture, opts.Limits); err != nil {
			return err
		}
		if e.stages, err = openStages(ctx, folder, m, opts); err != nil {
			return err
		}
		if err = e.openVisionCache(folder, opts); err != nil {
			return err
		}
	}
	if m.Audio != nil {
		if e.sounds, err = openSounds(ctx, folder, m, opts); err != nil {
			return err
		}
		e.pictures.soundTokens = m.Audio.Tokens
	}
	if m.Instruction != nil {
		if e.instruction, err = openTextInput(folder, *m.Instruction); err != nil {
			return err
		}
	}
	if m.Scoring != nil {
		if e.scorer, err = openScorer(ctx, folder, m, e.stages, opts); err != nil {
			return err
		}
	}
	if m.Decoder == nil {
		return nil
	}
	if e.embeddings, err = openEmbeddings(folder, m.Embeddings); err != nil {
		return err
	}
	return e.loadDecoder(ctx, folder, opts)
}

func (e *Engine) loadDecoder(ctx context.Context, folder string, opts Options) error {
	spec := *e.manifest.Decoder
	loaded, err := e.loadDecoderGraphs(ctx, folder, opts)
	if err != nil {
		return err
	}
	available, err := memoryFor(loaded.memory) // what the weights leave, and the encoder's keys and values
	if err != nil {
		return errors.Join(err, loaded.Close())
	}
	if available > 0 {
		available = max(1, available-crossBytes(spec, opts))
	}
	capacity, err := chooseCapacity(spec, opts, available, e.logger)
	if err != nil {
		return errors.Join(err, loaded.Close())
	}
	// A chunk of slack: where rows of different lengths share a step, the operator wants room for the longest in each slot.
	chunk := opts.PrefillChunk
	spans := hasInput(loaded.session, spanFirst)
	if spans && e.manifest.Picture != nil {
		chunk = max(chunk, e.manifest.Picture.TokensPerTile) // a picture goes into one step
	}
	chunk = min(chunk, capacity)
	e.compareTarget(loaded.session)
	e.decoder, err = newDecoder(opts.Runtime, loaded, spec, opts.Slots, capacity+chunk, chunk+opts.Slots)
	if err != nil {
		return err
	}
	if err := e.decoder.chooseWideRows(ctx, e.manifest, opts); err != nil {
		return err
	}
	e.limit = capacity
	cfg := schedulerConfig{
		slotCount: opts.Slots, chunk: chunk, hidden: spec.HiddenSize, vocab: spec.VocabSize,
		embed: e.embeddings.row, ropeLimit: ropeLimit(spec), logger: opts.Logger,
		spans: spans, ropeOfPrompt: spec.Rope != nil && spec.Rope.Type == manifest.RopePromptNTK,
	}
	cfg.speculation, cfg.wideRows = opts.Speculation, e.decoder.wideRows
	cfg.prefixCache = opts.PrefixCache && loaded.source == nil
	if source := loaded.source; source != nil {
		e.sourceLimit, cfg.encoder = source.capacity, source
	}
	e.scheduler = newScheduler(e.decoder, cfg)
	return nil
}

// compareTarget says when a model is computed by what it was not made for.
func (e *Engine) compareTarget(s *graphs.Session) {
	made, runs := cmp.Or(e.manifest.Target, string(graphs.CPU)), s.Device()
	switch {
	case made == runs:
	case runs == string(graphs.CPU):
		e.logger.Warn("this model was made for CUDA: the CPU gives the same answers, slowly; convert it without --target cuda", "model", e.name)
	default:
		e.logger.Warn("this model was made for the CPU: its attention and int8 layers are not computed by CUDA, and the cache stays outside; convert it with --target cuda", "model", e.name)
	}
}

// loadDecoderGraphs loads the decoder's graphs; after an error none is open.
func (e *Engine) loadDecoderGraphs(ctx context.Context, folder string, opts Options) (g decoderGraphs, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	spec := e.manifest.Decoder
	if g.session, err = loadComponent(ctx, folder, spec.Component, e.manifest, opts); err != nil {
		return g, err
	}
	if spec.Prefill != "" && !opts.LowMemory {
		if g.wide, err = loadComponent(ctx, folder, spec.Prefill, e.manifest, opts); err != nil {
			return g, err
		}
	}
	if e.manifest.Target == manifest.TargetCUDA { // otherwise attention is not computed where the device's memory is
		if g.memory, err = g.session.Memory(); err != nil {
			return g, err
		}
	}
	g.source, err = e.loadEncoder(ctx, folder, g.memory, opts)
	return g, err
}

// loadEncoder loads the encoder of an encoder-decoder model; nil for others.
func (e *Engine) loadEncoder(ctx context.Context, folder string, memory graphs.DeviceMemory, opts Options) (*encoder, error) {
	spec := *e.manifest.Decoder
	if spec.Encoder == nil {
		return nil, nil
	}
	session, err := loadComponent(ctx, folder, spec.Encoder.Component, e.manifest, opts)
	if err != nil {
		return nil, err
	}
	return newEncoder(opts.Runtime, memory, session, spec, opts)
}

// Manifest returns the model's manifest, which must not be changed.
func (e *Engine) Manifest() *manifest.Manifest { return e.manifest }

// Name returns the name of the model's folder.
func (e *Engine) Name() string { return e.name }

// LoadTime returns how long Open took.
func (e *Engine) LoadTime() time.Duration { return e.loadTime }

// Context returns how many tokens a prompt and its answer may have together, 0 for a model that generates no text. Where
// an encoder reads the prompt it bounds the answer alone, with one token to start from.
func (e *Engine) Context() int { return e.limit }

// enter counts a request in, so that Close waits for it; the returned context also ends when the engine closes. leave
// must be called.
func (e *Engine) enter(ctx context.Context) (_ context.Context, leave func(), _ error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, nil, ErrClosed
	}
	e.users.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		e.users.Done()
	}, nil
}

// Close ends the requests in flight with ErrClosed, waits for them, and gives everything back. It is idempotent.
func (e *Engine) Close() error {
	e.once.Do(func() {
		e.mu.Lock()
		e.closed = true
		e.mu.Unlock()
		e.closing(ErrClosed)
		if e.scheduler != nil {
			e.scheduler.close()
		}
		e.users.Wait()
		e.err = errors.Join(e.decoder.Close(), e.constraints.Close(), e.scorer.Close(), e.stages.Close(), e.sounds.Close(), e.instruction.Close(), e.embeddings.Close(), e.prompter.Close())
	})
	return e.err
}

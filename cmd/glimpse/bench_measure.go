// What bench measures, and how.

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"glimpse/batch"
	"glimpse/engine"
	"glimpse/graphs"
	"glimpse/preprocess"

	"golang.org/x/sync/errgroup"
)

// samples are the measurements as they are taken.
type samples struct {
	decodePicture, preprocess, vision, connector                    []float64
	prefillTokens, prefill, prefillTPS, ttft, request, second, load []float64
	decode                                                          map[int][]float64
	loaded                                                          float64 // MB
}

// benchRun is one run of bench.
type benchRun struct {
	app     *app
	rt      *graphs.Runtime
	folder  string
	o       BenchOptions
	picture []byte
	raw     bool // prompts go around the chat template, which knows no pictures
	scopes  int  // that requests have had
	s       samples
}

// apart gives a request a part of the caches that no other has used, so that it has to compute everything.
func (r *benchRun) apart(req engine.Request) engine.Request {
	r.scopes++
	req.CacheScope = "bench " + strconv.Itoa(r.scopes)
	return req
}

// open loads the model with a slot a request, and notes how long that took.
func (r *benchRun) open(ctx context.Context, rows int) (*engine.Engine, error) {
	e, err := r.app.openEngine(ctx, r.rt, r.folder, ModelOptions{
		Slots: rows, Context: r.o.Context, Memory: r.o.Memory,
		CacheOptions: CacheOptions{Vision: defaultVisionCache, Prefix: true, Speculation: r.o.Speculation},
	})
	if err != nil {
		return nil, err
	}
	r.s.load = append(r.s.load, ms(e.LoadTime()))
	if r.s.loaded == 0 {
		r.s.loaded = residentMB("VmRSS")
	}
	return e, nil
}

// rows measures an engine with so many slots. Stages are measured at one request only, where no other shares the
// machine; when one is not among the numbers, at the first. Loading is repeated at the first.
func (r *benchRun) rows(ctx context.Context, rows int, first bool) (err error) {
	e, err := r.open(ctx, rows)
	if err != nil {
		return err
	}
	for i := 1; i < r.o.Repeat && first; i++ {
		if err := e.Close(); err != nil {
			return err
		}
		if e, err = r.open(ctx, rows); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	req, err := r.request(ctx, e, r.picture, r.o.PromptTokens)
	if err != nil {
		return err
	}
	together := req
	if r.o.DecodePromptTokens > 0 {
		if together, err = r.request(ctx, e, nil, r.o.DecodePromptTokens); err != nil {
			return err
		}
	}
	stages := rows == 1 || (!slices.Contains(r.o.Parallel, 1) && first)
	warm := together
	if stages {
		warm = req
	}
	warm = r.apart(warm)
	warm.MaxTokens = 2
	if _, err := e.Generate(ctx, warm); err != nil {
		return err
	}
	for range r.o.Repeat {
		if stages {
			if err := r.stages(ctx, e, req, rows == 1); err != nil {
				return err
			}
		}
		if rows == 1 {
			continue // the request for the stages decoded alone
		}
		tps, err := r.decodeTogether(ctx, e, together, rows)
		if err != nil {
			return err
		}
		if tps == 0 {
			fmt.Fprintf(r.app.stderr, "bench: %d at once: an answer ended before all were decoding; nothing was measured\n", rows)
			continue
		}
		r.s.decode[rows] = append(r.s.decode[rows], tps)
	}
	return nil
}

// question asks about the picture, if there is one.
func (r *benchRun) question(e *engine.Engine, picture []byte, text string) engine.Request {
	m := e.Manifest()
	var pictures []engine.Picture
	if m.Picture != nil && picture != nil {
		pictures = []engine.Picture{{Data: picture, Source: firstOf(r.o.Image, "the drawn picture")}}
	}
	prompt := batch.CaptionPrompt(m) + text
	options := engine.PictureOptions{MaxTiles: r.o.MaxTiles}
	if r.raw {
		return engine.Request{Raw: true, Prompt: strings.Repeat(m.Prompt.Placeholder, len(pictures)) + prompt, Pictures: pictures, PictureOptions: options}
	}
	req := batch.Request(m, pictures, prompt)
	req.PictureOptions = options
	return req
}

// request lengthens the question until the prompt has the wanted length.
func (r *benchRun) request(ctx context.Context, e *engine.Engine, picture []byte, promptTokens int) (engine.Request, error) {
	ask := func(words int) engine.Request { return r.question(e, picture, strings.Repeat(" red", words)) }
	tokens := func(words int) (int, error) {
		p, err := e.Prepare(ctx, ask(words))
		if err != nil {
			return 0, err
		}
		return len(p.TokenIDs), nil
	}
	n, err := tokens(0)
	if err != nil && picture != nil && e.Manifest().Prompt.Placeholder != "" {
		// Some checkpoints come with the template of their language model.
		r.raw = true
		if n, err = tokens(0); err == nil {
			fmt.Fprintln(r.app.stderr, "bench: the chat template has no place for pictures; prompts go around it")
		}
	}
	if err != nil {
		return engine.Request{}, err
	}
	// A word is a token or more, so as many words as tokens are missing are enough; the fewest that do are searched for.
	words := sort.Search(max(0, promptTokens-n), func(words int) bool {
		if err == nil {
			n, err = tokens(words)
		}
		return err == nil && n >= promptTokens
	})
	return ask(words), err
}

// firstToken generates and returns how long the first token took.
func firstToken(ctx context.Context, e *engine.Engine, req engine.Request, newTokens int) (first time.Duration, _ *engine.Result, _ error) {
	start := time.Now()
	req.MaxTokens = newTokens
	req.Token = func(engine.Token) {
		if first == 0 {
			first = time.Since(start)
		}
	}
	answer, err := e.Generate(ctx, req)
	return first, answer, err
}

// stages times one request that has the machine for itself; with alone its decoding counts as that of one row.
func (r *benchRun) stages(ctx context.Context, e *engine.Engine, req engine.Request, alone bool) error {
	s := &r.s
	if e.Manifest().Picture != nil {
		start := time.Now()
		if _, err := preprocess.Decode(ctx, r.picture, preprocess.DecodeOptions{}); err != nil {
			return badInput(fmt.Errorf("decode %s: %w", firstOf(r.o.Image, "the drawn picture"), err))
		}
		s.decodePicture = append(s.decodePicture, ms(time.Since(start)))
	}
	req = r.apart(req)
	start := time.Now()
	first, answer, err := firstToken(ctx, e, req, r.o.NewTokens)
	if err != nil {
		return err
	}
	whole := time.Since(start)
	t := answer.Timings
	s.preprocess = append(s.preprocess, ms(t.Preprocess))
	s.vision = append(s.vision, ms(t.Vision))
	s.connector = append(s.connector, ms(t.Connector))
	s.prefillTokens = append(s.prefillTokens, float64(answer.Usage.PromptTokens))
	s.prefill = append(s.prefill, ms(t.Prefill))
	if t.Prefill > 0 {
		s.prefillTPS = append(s.prefillTPS, float64(answer.Usage.PromptTokens)/t.Prefill.Seconds())
	}
	s.ttft = append(s.ttft, ms(first))
	if e.Manifest().Picture != nil {
		other := r.question(e, r.picture, " Which colours are there?")
		other.CacheScope = req.CacheScope
		second, _, err := firstToken(ctx, e, other, 2)
		if err != nil {
			return err
		}
		s.second = append(s.second, ms(second))
	}
	if n := len(answer.TokenIDs); n < r.o.NewTokens {
		fmt.Fprintf(r.app.stderr, "bench: the answer ended after %d of %d tokens; its time is not counted\n", n, r.o.NewTokens)
		if n < 2 {
			return nil
		}
	} else {
		s.request = append(s.request, ms(whole))
	}
	if alone {
		s.decode[1] = append(s.decode[1], t.TokensPerSecond)
	}
	return nil
}

// decodeTogether runs requests at once until each has made NewTokens tokens since all of them decode, and returns the
// tokens a second of all together in that time. The first rows to start wait for nobody: their answers go on, to the end
// of the context if need be, while the others' prompts are read. 0 when the model ended an answer before that.
func (r *benchRun) decodeTogether(ctx context.Context, e *engine.Engine, req engine.Request, rows int) (float64, error) {
	rec := &decodeRecord{times: make([][]time.Time, rows), want: r.o.NewTokens}
	running, enough := context.WithCancel(ctx)
	defer enough()
	rec.enough = enough
	req.MaxTokens = math.MaxInt32
	g := new(errgroup.Group)
	for row := range rows {
		mine := r.apart(req)
		g.Go(func() error {
			mine.Token = func(engine.Token) { rec.add(row) }
			_, err := e.Generate(running, mine)
			if err != nil && running.Err() != nil && ctx.Err() == nil {
				return nil // stopped because there is enough
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return rateTogether(rec.times), nil
}

// decodeRecord notes when each row got its tokens. The engine calls it from its own goroutine.
type decodeRecord struct {
	mu      sync.Mutex
	times   [][]time.Time
	started int   // rows with a first token
	since   []int // tokens of each row since all had started
	want    int
	enough  context.CancelFunc
}

func (d *decodeRecord) add(row int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.times[row]) == 0 {
		d.started++
	}
	d.times[row] = append(d.times[row], time.Now())
	if d.started < len(d.times) {
		return
	}
	if d.since == nil {
		d.since = make([]int, len(d.times))
		return
	}
	d.since[row]++
	if slices.Min(d.since) >= d.want {
		d.enough()
	}
}

// rateTogether counts the tokens between the last row's first token and the first row's last one.
func rateTogether(times [][]time.Time) float64 {
	var from, to time.Time
	for i, t := range times {
		if len(t) == 0 {
			return 0
		}
		if i == 0 || t[0].After(from) {
			from = t[0]
		}
		if last := t[len(t)-1]; i == 0 || last.Before(to) {
			to = last
		}
	}
	if !to.After(from) {
		return 0
	}
	tokens := 0
	for _, t := range times {
		for _, at := range t {
			if at.After(from) && !at.After(to) {
				tokens++
			}
		}
	}
	return float64(tokens) / to.Sub(from).Seconds()
}

// residentMB is a memory figure of this process in MB (10⁶ bytes), VmRSS now or VmHWM at its highest; 0 where the kernel
// does not say.
func residentMB(field string) float64 { return kernelMB("/proc/self/status", field) }

// kernelMB reads a figure in kB from one of the kernel's files.
func kernelMB(path, field string) float64 {
	text, _ := kernelLine(path, field)
	kb, err := strconv.ParseFloat(strings.TrimSuffix(text, " kB"), 64)
	if err != nil {
		return 0
	}
	return rounded(kb*1024/1e6, 1)
}

// kernelLine returns what follows "field:" in one of the kernel's files.
func kernelLine(path, field string) (string, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(raw)) {
		name, rest, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(name) == field {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

// glimpse bench: how fast a model folder is on this machine.
//
// What is measured is what users get: whole requests through the engine, timed by the engine where a stage begins and
// ends. The first request of every engine is thrown away (ONNX Runtime allocates and packs weights on it). Decoding is
// measured while all the requests decode, so that one request's prompt does not count as another's slow decoding.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
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
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

// BenchOptions are the flags of bench.
type BenchOptions struct {
	Context      int
	Image        string
	PromptTokens int
	NewTokens    int
	Parallel     []int
	Repeat       int
	JSON         bool
}

// AddFlags adds the flags.
func (o *BenchOptions) AddFlags(f *pflag.FlagSet) {
	o.NewTokens, o.Parallel, o.Repeat = 64, []int{1, 4}, 3
	f.Var(&count{&o.Context, 0}, "context", "prompt and answer tokens of one request; 0: what the model allows, at most 4096")
	f.StringVar(&o.Image, "image", "", "picture `file` (default: a drawn one of 640×480)")
	f.Var(&count{&o.PromptTokens, 0}, "prompt-tokens", "tokens of the prompt at least, the picture's included; 0: the caption prompt")
	f.Var(&count{&o.NewTokens, 2}, "new-tokens", "tokens a request to measure decoding with")
	f.Var(&counts{&o.Parallel}, "parallel", "numbers of requests that decode together")
	f.Var(&count{&o.Repeat, 1}, "repeat", "timed requests a number")
	f.BoolVar(&o.JSON, "json", false, "print JSON")
}

func newBench(a *app) *cobra.Command {
	var o BenchOptions
	cmd := &cobra.Command{
		Use: "bench MODEL", Short: "Measures how fast a model is on this machine", Args: cobra.ExactArgs(1),
		Long: "Times whole requests by stage: picture to tensors, vision, connector, prompt, time to the first token, loading; and\ndecoding at every number of parallel requests.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBench(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

// benchmark is the JSON of bench; its keys are public.
type benchmark struct {
	PreprocessMS  *spread            `json:"preprocess_ms"`
	VisionMS      *spread            `json:"vision_ms"`
	ConnectorMS   *spread            `json:"connector_ms"`
	PrefillTokens *spread            `json:"prefill_tokens"`
	PrefillTPS    *spread            `json:"prefill_tps"`
	TTFTMS        *spread            `json:"ttft_ms"`
	LoadMS        *spread            `json:"load_ms"`
	DecodeTPS     map[string]*spread `json:"decode_tps"` // by number of parallel requests: tokens a second of all together
	RSSMB         float64            `json:"rss_mb"`     // the highest there was, of the process
	Threads       int                `json:"threads"`
	Device        string             `json:"device"`
	Precision     string             `json:"precision"`
	Versions      benchVersions      `json:"versions"`
}

type benchVersions struct {
	Glimpse     string `json:"glimpse"`
	ONNXRuntime string `json:"onnxruntime"`
	Go          string `json:"go"`
}

// spread is the least, the middle and the largest of some measurements; nil when there is none.
type spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) *spread {
	if len(values) == 0 {
		return nil
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	median := v[n/2]
	if n%2 == 0 {
		median = (v[n/2-1] + v[n/2]) / 2
	}
	return &spread{rounded(v[0], 3), rounded(median, 3), rounded(v[n-1], 3)}
}

// samples are the measurements as they are taken.
type samples struct {
	preprocess, vision, connector, prefillTokens, prefillTPS, ttft, load []float64
	decode                                                               map[int][]float64
}

func runBench(ctx context.Context, a *app, o BenchOptions, folder string) error {
	folder, err := a.modelFolder(folder)
	if err != nil {
		return err
	}
	m, err := manifest.Read(folder)
	if err != nil {
		return badInput(err)
	}
	picture, err := benchPicture(o.Image)
	if err != nil {
		return err
	}
	rt, err := a.openRuntime()
	if err != nil {
		return err
	}
	defer rt.Close()
	s := &samples{decode: map[int][]float64{}}
	for _, rows := range o.Parallel {
		fmt.Fprintf(a.stderr, "bench: %d at once\n", rows)
		if err := benchRows(ctx, a, rt, folder, o, rows, picture, s); err != nil {
			return err
		}
	}
	threads := a.global.Threads
	if threads == 0 {
		threads = graphs.DefaultThreads()
	}
	v := buildVersion()
	b := &benchmark{
		PreprocessMS: spreadOf(s.preprocess), VisionMS: spreadOf(s.vision), ConnectorMS: spreadOf(s.connector),
		PrefillTokens: spreadOf(s.prefillTokens), PrefillTPS: spreadOf(s.prefillTPS), TTFTMS: spreadOf(s.ttft), LoadMS: spreadOf(s.load),
		DecodeTPS: map[string]*spread{}, RSSMB: peakRSS(), Threads: threads, Device: a.global.Device, Precision: m.Precision,
		Versions: benchVersions{v.Version, rt.Version(), v.Go},
	}
	for rows, values := range s.decode {
		b.DecodeTPS[strconv.Itoa(rows)] = spreadOf(values)
	}
	if o.JSON {
		return writeJSON(a.stdout, b)
	}
	return printBench(a, b, o)
}

// benchRows opens an engine with a slot a request and measures. Stages are measured at one request only, where no other
// shares the machine; when one is not among the numbers, at the first.
func benchRows(ctx context.Context, a *app, rt *graphs.Runtime, folder string, o BenchOptions, rows int, picture []byte, s *samples) (err error) {
	e, err := a.openEngine(ctx, rt, folder, ModelOptions{Slots: rows, Context: o.Context})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	s.load = append(s.load, ms(e.LoadTime()))
	req, err := benchRequest(ctx, e, o, picture)
	if err != nil {
		return err
	}
	warm := req
	warm.MaxTokens = 2
	if _, err := e.Generate(ctx, warm); err != nil {
		return err
	}
	stages := rows == 1 || (!slices.Contains(o.Parallel, 1) && rows == o.Parallel[0])
	for range o.Repeat {
		if stages {
			if err := s.stages(ctx, e, req); err != nil {
				return err
			}
		}
		tps, err := decodeTogether(ctx, e, req, rows, o.NewTokens)
		if err != nil {
			return err
		}
		if tps == 0 {
			fmt.Fprintf(a.stderr, "bench: %d at once: an answer ended before all were decoding; nothing was measured\n", rows)
			continue
		}
		s.decode[rows] = append(s.decode[rows], tps)
	}
	return nil
}

// benchRequest asks about the picture with a text that brings the prompt to the wanted length.
func benchRequest(ctx context.Context, e *engine.Engine, o BenchOptions, picture []byte) (engine.Request, error) {
	m := e.Manifest()
	ask := func(text string) engine.Request {
		var pictures []engine.Picture
		if m.Picture != nil {
			pictures = []engine.Picture{{Data: picture, Source: firstOf(o.Image, "the drawn picture")}}
		}
		return batch.Request(m, pictures, batch.CaptionPrompt(m)+text)
	}
	tokens := func(words int) (int, error) {
		p, err := e.Prepare(ctx, ask(strings.Repeat(" red", words)))
		if err != nil {
			return 0, err
		}
		return len(p.TokenIDs), nil
	}
	n, err := tokens(0)
	if err != nil {
		return engine.Request{}, err
	}
	// A word is a token or more, so as many words as tokens are missing are enough; the fewest that do are searched for.
	words := sort.Search(max(0, o.PromptTokens-n), func(words int) bool {
		if err == nil {
			n, err = tokens(words)
		}
		return err == nil && n >= o.PromptTokens
	})
	return ask(strings.Repeat(" red", words)), err
}

// stages times one request that has the machine for itself.
func (s *samples) stages(ctx context.Context, e *engine.Engine, req engine.Request) error {
	var first time.Duration
	start := time.Now()
	req.MaxTokens = 2
	req.Token = func(engine.Token) {
		if first == 0 {
			first = time.Since(start)
		}
	}
	r, err := e.Generate(ctx, req)
	if err != nil {
		return err
	}
	t := r.Timings
	s.preprocess = append(s.preprocess, ms(t.Preprocess))
	s.vision = append(s.vision, ms(t.Vision))
	s.connector = append(s.connector, ms(t.Connector))
	s.prefillTokens = append(s.prefillTokens, float64(r.Usage.PromptTokens))
	if t.Prefill > 0 {
		s.prefillTPS = append(s.prefillTPS, float64(r.Usage.PromptTokens)/t.Prefill.Seconds())
	}
	s.ttft = append(s.ttft, ms(first))
	return nil
}

// decodeTogether runs requests at once until each has made newTokens tokens since all of them decode, and returns the
// tokens a second of all together in that time. The first rows to start wait for nobody: their answers go on, to the end
// of the context if need be, while the others' prompts are read. 0 when the model ended an answer before that.
func decodeTogether(ctx context.Context, e *engine.Engine, req engine.Request, rows, newTokens int) (float64, error) {
	rec := &decodeRecord{times: make([][]time.Time, rows), want: newTokens}
	running, enough := context.WithCancel(ctx)
	defer enough()
	rec.enough = enough
	req.MaxTokens = math.MaxInt32
	g := new(errgroup.Group)
	for row := range rows {
		g.Go(func() error {
			mine := req
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

// benchPicture is the file, or a drawn picture that does not compress away.
func benchPicture(path string) ([]byte, error) {
	if path != "" {
		data, err := readMedia(path)
		return data, badInput(err)
	}
	const width, height = 640, 480
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			img.SetRGBA(x, y, color.RGBA{uint8(x * 255 / width), uint8(y * 255 / height), uint8((x*x + y*y) >> 6), 255})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return nil, fmt.Errorf("draw the benchmark's picture: %w", err)
	}
	return b.Bytes(), nil
}

// peakRSS is the most memory the process has had, in MB (10⁶ bytes); 0 where the kernel does not say.
func peakRSS() float64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				return 0
			}
			return rounded(kb*1024/1e6, 1)
		}
	}
	return 0
}

func printBench(a *app, b *benchmark, o BenchOptions) error {
	t := newTable(a.stdout)
	t.row("", "min", "median", "max")
	line := func(name string, s *spread) {
		if s == nil {
			t.row(name, "-", "-", "-")
			return
		}
		t.row(name, s.Min, s.Median, s.Max)
	}
	line("load ms", b.LoadMS)
	line("preprocess ms", b.PreprocessMS)
	line("vision ms", b.VisionMS)
	line("connector ms", b.ConnectorMS)
	line("prompt tokens", b.PrefillTokens)
	line("prompt tokens/s", b.PrefillTPS)
	line("first token ms", b.TTFTMS)
	for _, rows := range o.Parallel {
		line(fmt.Sprintf("decode tokens/s, %d at once", rows), b.DecodeTPS[strconv.Itoa(rows)])
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "%.0f MB at most, %d threads, %s, precision %s, ONNX Runtime %s\n", b.RSSMB, b.Threads, b.Device, b.Precision, b.Versions.ONNXRuntime)
	return err
}

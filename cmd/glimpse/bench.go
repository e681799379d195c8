// glimpse bench: how fast a model folder is on this machine.
//
// What is measured is what users get: whole requests through the engine, timed by the engine where a stage begins and
// ends. The first request of every engine is thrown away (ONNX Runtime allocates and packs weights on it). Decoding is
// measured while all the requests decode, so that one request's prompt does not count as another's slow decoding.

package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"runtime"
	"slices"
	"strconv"

	"glimpse/graphs"
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// BenchOptions are the flags of bench.
type BenchOptions struct {
	Context            int
	Image              string
	PromptTokens       int
	DecodePromptTokens int
	NewTokens          int
	Parallel           []int
	Repeat             int
	JSON               bool
	HTML               string
	Memory             string
	Speculation        int
	MaxTiles           int
}

// AddFlags adds the flags.
func (o *BenchOptions) AddFlags(f *pflag.FlagSet) {
	o.NewTokens, o.Parallel, o.Repeat = 64, []int{1, 2, 4, 8, 16}, 3
	o.Memory = memoryNormal
	f.Var(&count{&o.Context, 0}, "context", "prompt and answer tokens of one request; 0: what the model allows, at most 4096")
	f.StringVar(&o.Image, "image", "", "picture `file` (default: a drawn one of 640×480)")
	f.Var(&count{&o.MaxTiles, 0}, "max-tiles", "tiles of the picture at most, the whole picture that some models add not counted; 0: the model's bound")
	f.Var(&count{&o.PromptTokens, 0}, "prompt-tokens", "tokens of the prompt at least, the picture's included; 0: the caption prompt")
	f.Var(&count{&o.DecodePromptTokens, 0}, "decode-prompt-tokens", "tokens at least of the text prompts that several requests decode behind; 0: the same prompt, with its picture")
	f.Var(&count{&o.NewTokens, 2}, "new-tokens", "tokens a request to measure decoding with")
	f.Var(&counts{&o.Parallel}, "parallel", "numbers of requests that decode together")
	f.Var(&count{&o.Repeat, 1}, "repeat", "timed requests a number")
	f.Var(&choice{&o.Memory, []string{memoryNormal, memoryLow}}, "memory", "low: without the graph that reads prompts faster, where the model has one")
	f.Var(&speculation{&o.Speculation}, "speculation", "tokens of an answer that are guessed from what came before: auto (where that is faster), off, or how many at once")
	f.BoolVar(&o.JSON, "json", false, "print JSON")
	f.StringVar(&o.HTML, "html", "", "draw the plots into this `file`, a page that needs nothing else")
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
	Model           string             `json:"model"`
	DecodePictureMS *spread            `json:"decode_picture_ms"` // file to pixels, part of preprocess_ms
	PreprocessMS    *spread            `json:"preprocess_ms"`
	VisionMS        *spread            `json:"vision_ms"`
	ConnectorMS     *spread            `json:"connector_ms"`
	PrefillTokens   *spread            `json:"prefill_tokens"`
	PrefillMS       *spread            `json:"prefill_ms"`
	PrefillTPS      *spread            `json:"prefill_tps"`
	TTFTMS          *spread            `json:"ttft_ms"`
	RequestMS       *spread            `json:"request_ms"`     // picture file to new_tokens tokens
	SecondTTFTMS    *spread            `json:"second_ttft_ms"` // another question about the same picture, by the caches
	NewTokens       int                `json:"new_tokens"`
	LoadMS          *spread            `json:"load_ms"`
	DecodeTPS       map[string]*spread `json:"decode_tps"`    // by number of parallel requests: tokens a second of all together
	RSSLoadedMB     float64            `json:"rss_loaded_mb"` // resident when the model was first open
	RSSMB           float64            `json:"rss_mb"`        // the highest there was, of the process
	Threads         int                `json:"threads"`
	Device          string             `json:"device"`
	Precision       string             `json:"precision"`
	Machine         benchMachine       `json:"machine"`
	Versions        benchVersions      `json:"versions"`
}

type benchVersions struct {
	Glimpse     string `json:"glimpse"`
	ONNXRuntime string `json:"onnxruntime"`
	Go          string `json:"go"`
}

// benchMachine says what the numbers were measured on.
type benchMachine struct {
	CPU        string  `json:"cpu"`        // the processor's own name; "" where the kernel does not say
	Processors int     `json:"processors"` // that this process may use
	MemoryMB   float64 `json:"memory_mb"`
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
	page, err := newBenchPage(o.HTML)
	if err != nil {
		return err
	}
	defer page.abandon()
	rt, err := a.openRuntime()
	if err != nil {
		return err
	}
	defer rt.Close()
	run := &benchRun{app: a, rt: rt, folder: folder, o: o, picture: picture, s: samples{decode: map[int][]float64{}}}
	for i, rows := range o.Parallel {
		fmt.Fprintf(a.stderr, "bench: %d at once\n", rows)
		if err := run.rows(ctx, rows, i == 0); err != nil {
			return err
		}
	}
	b := run.s.benchmark(m, o.NewTokens)
	b.Model, b.Device, b.Threads, b.Machine = folder, a.global.Device, a.global.Threads, thisMachine()
	if b.Threads == 0 {
		b.Threads = graphs.DefaultThreads()
	}
	v := buildVersion()
	b.Versions = benchVersions{v.Version, rt.Version(), v.Go}
	if err := page.write(b); err != nil {
		return err
	}
	if o.JSON {
		return writeJSON(a.stdout, b)
	}
	return printBench(a.stdout, b)
}

// benchmark sums the measurements up.
func (s *samples) benchmark(m *manifest.Manifest, newTokens int) *benchmark {
	b := &benchmark{
		DecodePictureMS: spreadOf(s.decodePicture), PreprocessMS: spreadOf(s.preprocess), VisionMS: spreadOf(s.vision),
		ConnectorMS: spreadOf(s.connector), PrefillTokens: spreadOf(s.prefillTokens), PrefillMS: spreadOf(s.prefill),
		PrefillTPS: spreadOf(s.prefillTPS), TTFTMS: spreadOf(s.ttft), RequestMS: spreadOf(s.request),
		SecondTTFTMS: spreadOf(s.second), NewTokens: newTokens,
		LoadMS: spreadOf(s.load), DecodeTPS: map[string]*spread{}, RSSLoadedMB: s.loaded, RSSMB: residentMB("VmHWM"), Precision: m.Precision,
	}
	for rows, values := range s.decode {
		b.DecodeTPS[strconv.Itoa(rows)] = spreadOf(values)
	}
	return b
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

// thisMachine reads what the kernel says; what it does not say stays empty.
func thisMachine() benchMachine {
	m := benchMachine{Processors: runtime.GOMAXPROCS(0), MemoryMB: kernelMB("/proc/meminfo", "MemTotal")}
	m.CPU, _ = kernelLine("/proc/cpuinfo", "model name")
	return m
}

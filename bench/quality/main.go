// Command quality measures what precisions cost a real language model: it converts a checkpoint to each of them, gives every
// decoder the same tokens of a text, and compares its logits with those of fp32, token by token.
//
//	go run ./bench/quality -checkpoint DIR -text 'docs/*.md' int8 int4 int4,budget=4.5,calibration=FILE
//
// Each argument is what to measure: a precision with options of convert, or the folder of a converted model. The text is cut
// into windows; each is a prompt of its own, so the first tokens of a window see little before them, in the reference too.
// checkpoint.py beside this file makes the checkpoint that docs/precision.md reports on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"glimpse/convert"
	"glimpse/convert/calibration"
	"glimpse/engine"
	"glimpse/engine/replay"
	"glimpse/graphs"
	"glimpse/manifest"
)

type options struct {
	checkpoint, text, graph, folder string
	tokens, window, threads         int
}

func main() {
	var o options
	flag.StringVar(&o.checkpoint, "checkpoint", "", "the checkpoint to convert")
	flag.StringVar(&o.text, "text", "", "text files, as a pattern or with commas between them")
	flag.StringVar(&o.graph, "graph", "decoder.onnx", "the graph of a model folder that is measured")
	flag.StringVar(&o.folder, "models", "", "keep converted models in this folder, and take what is there already; empty: a temporary one")
	flag.IntVar(&o.tokens, "tokens", 4096, "tokens of text")
	flag.IntVar(&o.window, "window", 512, "tokens of one window")
	flag.IntVar(&o.threads, "threads", 0, "threads of one operator; 0: the physical cores")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "quality:", err)
		os.Exit(1)
	}
}

// candidate is one precision with its decoder.
type candidate struct {
	name   string
	player *replay.Player
	bytes  int64 // of the decoder
	bits   float64
	result replay.Comparison
	took   time.Duration
}

func run(ctx context.Context, o options, names []string) (err error) {
	if o.checkpoint == "" || o.text == "" || len(names) == 0 {
		return errors.New("give -checkpoint, -text and what to measure")
	}
	if o.folder == "" {
		if o.folder, err = os.MkdirTemp("", "quality-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.folder)
	}
	reference, err := converted(ctx, o, "fp32")
	if err != nil {
		return err
	}
	recorder := &replay.Recorder{Graph: "decoder.onnx"}
	rt, err := graphs.Open(graphs.Options{Observe: recorder.Observe})
	if err != nil {
		return err
	}
	defer rt.Close()
	windows, err := record(ctx, rt, recorder, reference, o)
	if err != nil {
		return err
	}
	plain, err := graphs.Open(graphs.Options{})
	if err != nil {
		return err
	}
	defer plain.Close()
	var list []*candidate
	defer func() {
		for _, c := range list {
			err = errors.Join(err, c.player.Close())
		}
	}()
	for _, name := range append([]string{"fp32"}, names...) {
		c, err := open(ctx, plain, o, name)
		if err != nil {
			return err
		}
		list = append(list, c)
	}
	for _, w := range windows {
		if err := compare(ctx, list, w); err != nil {
			return err
		}
	}
	return print(list)
}

// converted returns the model folder of a precision, converted now if need be.
func converted(ctx context.Context, o options, name string) (string, error) {
	if _, err := os.Stat(filepath.Join(name, manifest.FileName)); err == nil {
		return name, nil
	}
	folder := filepath.Join(o.folder, strings.NewReplacer("/", "_", ",", "_").Replace(name))
	if _, err := os.Stat(folder); err == nil {
		return folder, nil
	}
	opts := convert.Options{Checkpoint: o.checkpoint, Out: folder}
	for i, part := range strings.Split(name, ",") {
		key, value, _ := strings.Cut(part, "=")
		if i == 0 {
			opts.Precision = part
			continue
		}
		if err := set(ctx, &opts, key, value); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	_, err := convert.Convert(ctx, opts)
	return folder, err
}

// set applies one option of a candidate's name.
func set(ctx context.Context, opts *convert.Options, key, value string) (err error) {
	switch key {
	case "calibration":
		opts.Statistics, err = calibration.Read(ctx, value)
	case "budget":
		opts.Budget, err = strconv.ParseFloat(value, 64)
	default:
		err = fmt.Errorf("option %q is not known", key)
	}
	return err
}

func open(ctx context.Context, rt *graphs.Runtime, o options, name string) (*candidate, error) {
	folder, err := converted(ctx, o, name)
	if err != nil {
		return nil, err
	}
	m, err := manifest.Read(folder)
	if err != nil {
		return nil, err
	}
	part := m.Components[strings.TrimSuffix(o.graph, ".onnx")]
	c := &candidate{name: name, bytes: part.Bytes, bits: 8 * float64(part.Bytes) / float64(max(part.Parameters, 1))}
	c.player, err = replay.Open(ctx, rt, filepath.Join(folder, o.graph), o.threads)
	return c, err
}

// window is one prompt of the text.
type window struct {
	steps []*replay.Step
	ids   []int32
}

// record runs the reference over the text and returns its decoder's steps.
func record(ctx context.Context, rt *graphs.Runtime, recorder *replay.Recorder, folder string, o options) ([]window, error) {
	text, err := readText(o.text)
	if err != nil {
		return nil, err
	}
	e, err := engine.Open(ctx, folder, engine.Options{Runtime: rt, Slots: 1, Capacity: o.window + 8, Threads: o.threads})
	if err != nil {
		return nil, err
	}
	defer e.Close()
	var windows []window
	for left := o.tokens; left > 0; {
		prompt, err := take(e, &text, min(left, o.window))
		if err != nil {
			return nil, err
		}
		res, err := e.Generate(ctx, engine.Request{Raw: true, Prompt: prompt, MaxTokens: 1})
		if err != nil {
			return nil, err
		}
		steps, err := recorder.Take()
		if err != nil {
			return nil, err
		}
		windows = append(windows, window{steps, res.PromptTokenIDs})
		left -= len(res.PromptTokenIDs)
	}
	return windows, nil
}

func readText(patterns string) (string, error) {
	var b strings.Builder
	for _, pattern := range strings.Split(patterns, ",") {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			b.Write(data)
		}
	}
	return b.String(), nil
}

// take cuts about n tokens off the text, at a word's end.
func take(e *engine.Engine, text *string, n int) (string, error) {
	low, high := 0, min(len(*text), 16*n) // low fits
	for high-low > 1 {
		middle := (low + high) / 2
		ids, err := e.Tokenize((*text)[:middle])
		if err != nil {
			return "", err
		}
		if len(ids) <= n {
			low = middle
		} else {
			high = middle
		}
	}
	if cut := strings.LastIndexAny((*text)[:low], " \n"); cut > 0 {
		low = cut
	}
	if low == 0 {
		return "", errors.New("the text is shorter than the tokens that are asked for")
	}
	prompt := (*text)[:low]
	*text = (*text)[low:]
	return prompt, nil
}

// compare gives a window's steps to every candidate; the first is the reference.
func compare(ctx context.Context, list []*candidate, w window) error {
	at := 0
	for _, s := range w.steps {
		next := make([]int32, s.Tokens)
		for i := range next {
			next[i] = -1
			if at+i+1 < len(w.ids) {
				next[i] = w.ids[at+i+1]
			}
		}
		at += s.Tokens
		var reference []float32
		for _, c := range list {
			start := time.Now()
			logits, vocab, err := c.player.Run(ctx, s)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			c.took += time.Since(start)
			if reference == nil {
				reference = logits
			}
			if err := c.result.Add(reference, logits, vocab, next); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

func print(list []*candidate) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "precision\tdecoder\tbits a weight\tperplexity\t\tKL\ttop-1\ttokens/s")
	for _, c := range list {
		ppl, ref := math.Exp(c.result.Loss), math.Exp(c.result.Reference)
		fmt.Fprintf(t, "%s\t%.1f MiB\t%.2f\t%.2f\t%+.1f %%\t%.4f\t%.1f %%\t%s\n", c.name, float64(c.bytes)/(1<<20), c.bits, ppl,
			100*(ppl/ref-1), c.result.KL, 100*c.result.Agreement, strconv.Itoa(int(float64(c.result.Tokens)/c.took.Seconds())))
	}
	fmt.Fprintf(t, "%d tokens\n", list[0].result.Tokens)
	return t.Flush()
}

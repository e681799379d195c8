// glimpse convert --calibrate: sample pictures and prompts run through the model at fp32, and what its layers are given there
// is summed up for quantization. The two halves meet here and nowhere else: convert makes a graph that reports, the engine runs it.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/batch"
	"glimpse/batch/source"
	"glimpse/convert"
	"glimpse/convert/blocks"
	"glimpse/convert/calibration"
	"glimpse/engine"
	"glimpse/engine/replay"
	"glimpse/graphs"
	"glimpse/preprocess"

	"github.com/spf13/pflag"
)

// CalibrationOptions are the flags about calibration.
type CalibrationOptions struct {
	Samples string
	File    string
	Tokens  int
	Answer  int
	Memory  int
}

// AddFlags adds the flags.
func (o *CalibrationOptions) AddFlags(f *pflag.FlagSet) {
	o.Tokens, o.Answer, o.Memory = 8192, 32, 1024
	f.StringVar(&o.Samples, "calibrate", "", "a `folder` of sample pictures, and prompts.txt with a prompt a line: the model answers them at fp32 to find out what its layers are given")
	f.StringVar(&o.File, "calibration", "", "the `file` that --calibrate writes its statistics to; without --calibrate, the file to take them from")
	f.Var(&count{&o.Tokens, 1}, "calibrate-tokens", "samples are answered until the decoder has seen this many tokens")
	f.Var(&count{&o.Answer, 1}, "calibrate-answer", "tokens of each answer at most; 1 where prompts.txt is text of the kind that the model is for, and reading it is enough")
	f.Var(&count{&o.Memory, 0}, "calibrate-memory", "MiB for second moments between the channels of a layer, which rounding makes up its errors with; layers get them in their order")
}

// Names and bounds of the samples.
const (
	promptsFile    = "prompts.txt"
	maxPromptsFile = 16 << 20
)

// sampleSet is what the model is asked.
type sampleSet struct {
	pictures []string // paths
	prompts  []string
}

// readSamples lists the pictures of a folder and the lines of its prompts.txt.
func readSamples(folder string) (*sampleSet, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, badInput(fmt.Errorf("samples for calibration: %w", err))
	}
	s := &sampleSet{}
	for _, e := range entries {
		if e.Type().IsRegular() && slices.Contains(source.Extensions, strings.ToLower(filepath.Ext(e.Name()))) {
			s.pictures = append(s.pictures, filepath.Join(folder, e.Name()))
		}
	}
	data, err := readBounded(filepath.Join(folder, promptsFile), maxPromptsFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, badInput(fmt.Errorf("samples for calibration: %w", err))
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" {
			s.prompts = append(s.prompts, line)
		}
	}
	if len(s.pictures)+len(s.prompts) == 0 {
		return nil, badInputf("samples for calibration: %s has no pictures and no %s", folder, promptsFile)
	}
	return s, nil
}

// sample returns the i-th picture and prompt: each is used once before the shorter list starts again.
func (s *sampleSet) sample(i int) (pictures []engine.Picture, prompt string, err error) {
	if n := len(s.prompts); n > 0 {
		prompt = s.prompts[i%n]
	}
	if n := len(s.pictures); n > 0 {
		path := s.pictures[i%n]
		data, err := readMedia(path)
		if err != nil {
			return nil, "", badInput(fmt.Errorf("samples for calibration: %w", err))
		}
		pictures = []engine.Picture{{Data: data, Source: path}}
	}
	return pictures, prompt, nil
}

// calibrateFor gives a conversion the statistics that the flags ask for.
func calibrateFor(ctx context.Context, a *app, o CalibrationOptions, opts *convert.Options) (err error) {
	switch {
	case o.Samples == "" && o.File == "":
		return nil
	case o.Samples == "":
		if opts.Statistics, err = calibration.Read(ctx, o.File); err != nil && ctx.Err() == nil {
			return badInput(err)
		}
		return err
	case opts.Plan:
		return badInputf("--plan reads no weights, and --calibrate runs the model: give one of them")
	}
	found, err := calibrate(ctx, a, o, *opts)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "calibrated on %d samples, %d tokens\n", found.samples, found.tokens)
	opts.Statistics = found.statistics
	if found.precision != "" {
		fmt.Fprintf(a.stderr, "precision %s: %s\n", found.precision, found.measured)
		opts.Precision = found.precision
		if opts.Precision != "int4" {
			opts.Budget = 0
		}
	}
	if o.File != "" {
		return found.statistics.Write(o.File)
	}
	return nil
}

// calibrated is what a calibration found.
type calibrated struct {
	statistics *calibration.Statistics
	steps      []*replay.Step // of the decoder; none for a model without one
	tokens     int            // of the steps
	samples    int            // answered

	precision, measured string // what auto chose, and why; empty where something else was asked for
}

// calibrate has the model answer the samples at fp32, and then lets a model that reports what its layers are given read
// prompts and answers. Both models are made beside the place of the new one, one after the other.
func calibrate(ctx context.Context, a *app, o CalibrationOptions, opts convert.Options) (_ *calibrated, err error) {
	list, err := readSamples(o.Samples)
	if err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(opts.Out)), ".calibrate-")
	if err != nil {
		return nil, badInput(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	precision, budget := opts.Precision, opts.Budget
	target := opts.Target
	opts.Precision, opts.Target, opts.Force, opts.Statistics, opts.Budget = "fp32", string(blocks.CPU), false, nil, 0
	opts.Out = filepath.Join(temp, "answers")
	requests, err := answered(ctx, a, o, opts, list)
	if err != nil {
		return nil, err
	}
	reference, asked := opts.Out, opts
	asked.Budget = budget
	opts.Out, opts.Gather, opts.Hessians = filepath.Join(temp, "reports"), true, int64(o.Memory)<<20
	found, err := observed(ctx, a, opts, requests)
	if err != nil || precision != string(blocks.Auto) || len(found.steps) == 0 || target == string(blocks.CUDA) {
		return found, err // what is measured are the CPU's graphs
	}
	if err := os.RemoveAll(opts.Out); err != nil {
		return nil, err
	}
	asked.Statistics = found.statistics
	found.precision, found.measured, err = choosePrecision(ctx, a, asked, reference, found.steps)
	return found, err
}

// converted makes a model and has f use it.
func converted(ctx context.Context, a *app, opts convert.Options, observe func(*graphs.Observation), f func(*engine.Engine) error) (err error) {
	if _, err := convert.Convert(ctx, opts); err != nil {
		return err
	}
	options := a.graphsOptions()
	options.Observe = observe
	rt, err := graphs.Open(options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	e, err := a.openEngine(ctx, rt, opts.Out, ModelOptions{Slots: 1, MaxPixels: preprocess.DefaultMaxPixels})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	return f(e)
}

// answered asks the model about the samples until their tokens are enough, and returns requests that hold the answers.
func answered(ctx context.Context, a *app, o CalibrationOptions, opts convert.Options, list *sampleSet) (requests []sampleRequest, err error) {
	m := a.newMeter("calibrate", unitPictures)
	defer m.close()
	err = converted(ctx, a, opts, nil, func(e *engine.Engine) error {
		all, tokens := max(len(list.pictures), len(list.prompts)), 0
		for i := 0; i < all && tokens < o.Tokens; i++ {
			pictures, prompt, err := list.sample(i)
			if err != nil {
				return err
			}
			r := sampleRequest{pictures: pictures, prompt: prompt}
			if e.Manifest().Decoder != nil {
				n, err := r.answer(ctx, e, o.Answer, uint64(i))
				if err != nil {
					return fmt.Errorf("samples for calibration: %w", err)
				}
				tokens += n
			} else if prompt == "" || len(pictures) == 0 {
				return badInputf("samples for calibration: a model that compares pictures with texts needs both pictures and %s", promptsFile)
			}
			requests = append(requests, r)
			m.update(int64(i+1), int64(all), 0, "answering")
		}
		return nil
	})
	return requests, err
}

// sampleRequest is a sample with its answer.
type sampleRequest struct {
	pictures []engine.Picture
	prompt   string
	request  engine.Request // with the answer in it
}

// answer draws an answer, each token as likely as the model finds it, so that answers are neither all the same nor far-fetched.
// It returns the tokens of prompt and answer.
func (r *sampleRequest) answer(ctx context.Context, e *engine.Engine, tokens int, seed uint64) (int, error) {
	req := batch.Request(e.Manifest(), r.pictures, r.prompt)
	req.Sampling = engine.Sampling{Temperature: 1, Seed: &seed}
	req.MaxTokens = tokens
	res, err := e.Generate(ctx, req)
	if err != nil {
		return 0, err
	}
	if e.Manifest().Decoder.Encoder != nil { // answers are read a token at a time
		r.request = req
		return res.Usage.PromptTokens + res.Usage.CompletionTokens, nil
	}
	req.MaxTokens, req.Sampling = 1, engine.Sampling{}
	if req.Raw {
		req.Prompt += res.Text
	} else {
		req.Messages = append(req.Messages, engine.Message{Role: "assistant", Content: []engine.Part{{Type: engine.PartText, Text: res.Text}}})
	}
	r.request = req
	return res.Usage.PromptTokens + res.Usage.CompletionTokens, nil
}

// observed lets a model that reports read the requests.
func observed(ctx context.Context, a *app, opts convert.Options, requests []sampleRequest) (*calibrated, error) {
	m := a.newMeter("calibrate", unitPictures)
	defer m.close()
	sums, recorder := calibration.NewAccumulator(), &replay.Recorder{Graph: "decoder.onnx"}
	observe := func(run *graphs.Observation) {
		recorder.Observe(run)
		for _, out := range run.Outputs {
			if strings.HasPrefix(out.Name, graphs.StatisticsPrefix) {
				sums.Add(strings.TrimSuffix(filepath.Base(run.Path), ".onnx"), out.Name, out.Tensor.Float32())
			}
		}
	}
	found := &calibrated{samples: len(requests)}
	err := converted(ctx, a, opts, observe, func(e *engine.Engine) (err error) {
		for i, r := range requests {
			if e.Manifest().Decoder == nil {
				_, err = e.Score(ctx, engine.ScoreRequest{Pictures: r.pictures, Texts: []string{r.prompt}})
			} else {
				_, err = e.Generate(ctx, r.request)
			}
			if err != nil {
				return fmt.Errorf("samples for calibration: %w", err)
			}
			m.update(int64(i+1), int64(len(requests)), 0, "reading")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if found.steps, err = recorder.Take(); err != nil {
		return nil, err
	}
	for _, s := range found.steps {
		found.tokens += s.Tokens
	}
	found.statistics, err = sums.Statistics()
	return found, err
}

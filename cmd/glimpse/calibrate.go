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
	Memory  int
}

// AddFlags adds the flags.
func (o *CalibrationOptions) AddFlags(f *pflag.FlagSet) {
	o.Tokens, o.Memory = 8192, 1024
	f.StringVar(&o.Samples, "calibrate", "", "a `folder` of sample pictures, and prompts.txt with a prompt a line: the model answers them at fp32 to find out what its layers are given")
	f.StringVar(&o.File, "calibration", "", "the `file` that --calibrate writes its statistics to; without --calibrate, the file to take them from")
	f.Var(&count{&o.Tokens, 1}, "calibrate-tokens", "samples are answered until the decoder has seen this many tokens")
	f.Var(&count{&o.Memory, 0}, "calibrate-memory", "MiB for second moments between the channels of a layer, which rounding makes up its errors with; layers get them in their order")
}

// Names and bounds of the samples.
const (
	promptsFile    = "prompts.txt"
	maxPromptsFile = 16 << 20
	sampleAnswer   = 64 // tokens of an answer at most
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
}

// calibrate converts the checkpoint to a model that reports, beside the place of the new one, and has it answer the samples.
func calibrate(ctx context.Context, a *app, o CalibrationOptions, checkpoint convert.Options) (_ *calibrated, err error) {
	list, err := readSamples(o.Samples)
	if err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(checkpoint.Out)), ".calibrate-")
	if err != nil {
		return nil, badInput(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	checkpoint.Out, checkpoint.Precision, checkpoint.Force = filepath.Join(temp, "fp32"), "fp32", false
	checkpoint.Gather, checkpoint.Hessians = true, int64(o.Memory)<<20
	if _, err := convert.Convert(ctx, checkpoint); err != nil {
		return nil, err
	}
	sums, recorder := calibration.NewAccumulator(), &replay.Recorder{Graph: "decoder.onnx"}
	rt, err := graphs.Open(graphs.Options{LibraryPath: a.global.OrtLib, Logger: a.log, Observe: func(run *graphs.Observation) {
		recorder.Observe(run)
		for _, out := range run.Outputs {
			if strings.HasPrefix(out.Name, graphs.StatisticsPrefix) {
				sums.Add(strings.TrimSuffix(filepath.Base(run.Path), ".onnx"), out.Name, out.Tensor.Float32())
			}
		}
	}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	e, err := a.openEngine(ctx, rt, checkpoint.Out, ModelOptions{Slots: 1, MaxPixels: preprocess.DefaultMaxPixels})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	found := &calibrated{}
	if err := found.answer(ctx, a, e, list, recorder, o.Tokens); err != nil {
		return nil, err
	}
	found.statistics, err = sums.Statistics()
	return found, err
}

// answer has the model answer samples until its decoder has seen enough tokens, or all samples were used.
func (c *calibrated) answer(ctx context.Context, a *app, e *engine.Engine, list *sampleSet, recorder *replay.Recorder, tokens int) error {
	m := a.newMeter("calibrate", unitPictures)
	defer m.close()
	all := max(len(list.pictures), len(list.prompts))
	for i := 0; i < all && c.tokens < tokens; i++ {
		pictures, prompt, err := list.sample(i)
		if err != nil {
			return err
		}
		if e.Manifest().Decoder == nil {
			if prompt == "" {
				return badInputf("samples for calibration: a model that compares pictures with texts needs %s", promptsFile)
			}
			if _, err := e.Score(ctx, engine.ScoreRequest{Pictures: pictures, Texts: []string{prompt}}); err != nil {
				return fmt.Errorf("samples for calibration: %w", err)
			}
		} else if err := c.generate(ctx, e, pictures, prompt, uint64(i)); err != nil {
			return fmt.Errorf("samples for calibration: %w", err)
		}
		steps, err := recorder.Take()
		if err != nil {
			return err
		}
		for _, s := range steps {
			c.tokens += s.Tokens
		}
		c.steps = append(c.steps, steps...)
		c.samples++
		m.update(int64(i+1), int64(all), 0, fmt.Sprintf("%d tokens", c.tokens))
	}
	return nil
}

// generate draws an answer as likely as the model finds it, so that what follows is neither the same nor far-fetched.
func (c *calibrated) generate(ctx context.Context, e *engine.Engine, pictures []engine.Picture, prompt string, seed uint64) error {
	req := batch.Request(e.Manifest(), pictures, prompt)
	req.Sampling = engine.Sampling{Temperature: 1, Seed: &seed}
	req.MaxTokens = sampleAnswer
	_, err := e.Generate(ctx, req)
	return err
}

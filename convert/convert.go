// Package convert turns a checkpoint as its authors released it into a model folder.
//
// Phases, each with its own input and output: open the release, plan symbolically, write by streaming. Planning reads no
// weights, so `--plan` works on a tensor list alone; writing keeps a few chunks in memory, so its peak does not grow with
// the model. The folder appears whole or not at all: it is written beside its place and renamed at the end.
package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"glimpse/convert/blocks"
	"glimpse/convert/calibration"
	"glimpse/convert/families"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

// ErrInput marks errors that are the input's: a checkpoint or an option that cannot be used as it is.
var ErrInput = errors.New("bad input")

// inputError carries ErrInput without changing the message.
type inputError struct{ err error }

func (e *inputError) Error() string        { return e.err.Error() }
func (e *inputError) Unwrap() error        { return e.err }
func (e *inputError) Is(target error) bool { return target == ErrInput }

func badInput(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &inputError{err}
}

// ProblemsError lists everything about a checkpoint that could not be placed.
type ProblemsError struct {
	Checkpoint string
	Problems   []blocks.Problem
}

// shownProblems bounds the list in the message; a wrong layer count alone makes hundreds.
const shownProblems = 20

func (e *ProblemsError) Error() string {
	shown := make([]string, 0, shownProblems)
	for i, p := range e.Problems {
		if i == shownProblems {
			shown = append(shown, fmt.Sprintf("and %d more", len(e.Problems)-shownProblems))
			break
		}
		shown = append(shown, p.String())
	}
	return fmt.Sprintf("convert %s: %s", e.Checkpoint, strings.Join(shown, "; "))
}

// Is makes every list of problems an input error.
func (e *ProblemsError) Is(target error) bool { return target == ErrInput }

// Options say what to convert and how.
type Options struct {
	Checkpoint string // a folder, a .toml that names the pieces of a release, or (with Plan) an inventory
	Out        string // the model folder; not needed with Plan
	Precision  string // auto, fp32, fp16, int8, int4; empty is auto
	Target     string // cpu, cuda; empty is cpu
	Plan       bool   // build everything, write nothing
	Force      bool   // replace Out when it exists
	Workers    int    // weights worked on at once; 0 for one a processor
	Version    string // of the converter, for the manifest

	// For a checkpoint that came from a hub, whose folder is named by its commit:
	Name       string            // of the release; empty: the folder's
	Repository string            // organisation/name on the hub, for the manifest
	Revision   string            // the commit there, for the manifest
	Parts      map[string]string // folders of the other checkpoints that the release names, as [parts] of a .toml; its entries win

	// Statistics of the layers' inputs, from a calibration; nil for none.
	Statistics *calibration.Statistics
	// Gather makes an fp32 model that reports such statistics when it runs (graphs.Options.Observe), and Hessians is how
	// many bytes of second moments between the channels of a layer it may report with them.
	Gather   bool
	Hessians int64
	// Budget is how many bits a weight of a 4-bit decoder's layers may take, scales included and the head left out; 0 leaves
	// the layers to the policy.
	Budget float64

	Progress func(Progress)
	Logger   *slog.Logger
}

// Progress is how far writing has come.
type Progress struct {
	Component string
	Done      int64 // bytes written
	Total     int64
}

// Summary says what was, or would be, written.
type Summary struct {
	Checkpoint   string             `json:"checkpoint"`
	Out          string             `json:"out,omitempty"`
	Family       string             `json:"family"`
	Architecture string             `json:"architecture"`
	Precision    string             `json:"precision"`
	Target       string             `json:"target"`
	Planned      bool               `json:"planned"` // true: nothing was written
	Components   []ComponentSummary `json:"components"`
	Parameters   int64              `json:"parameters"`
	Bytes        int64              `json:"bytes"`
	Seconds      float64            `json:"seconds"`
}

// ComponentSummary describes one graph.
type ComponentSummary struct {
	Name       string           `json:"name"`
	Parameters int64            `json:"parameters"`
	Bytes      int64            `json:"bytes"`
	Nodes      int              `json:"nodes"`
	Formats    map[string]int64 `json:"formats"` // parameters by storage format
	Policy     string           `json:"policy"`
}

// Convert converts a checkpoint. Errors that errors.Is calls ErrInput are the checkpoint's or the options'.
func Convert(ctx context.Context, opts Options) (*Summary, error) {
	start := time.Now()
	precision, err := blocks.ParsePrecision(opts.Precision)
	if err != nil {
		return nil, badInput(err)
	}
	if _, err := blocks.ParseTarget(opts.Target, precision); err != nil {
		return nil, badInput(err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if !opts.Plan {
		if err := checkOut(opts); err != nil {
			return nil, badInput(err)
		}
	}
	src, err := openSource(ctx, opts.Checkpoint, opts.Plan, opts.Parts)
	if err != nil {
		return nil, badInput(err)
	}
	defer src.Close()
	if opts.Name != "" {
		src.release.Name = opts.Name
	}
	plan, err := planned(ctx, src, precision, opts)
	if err != nil {
		return nil, badInput(err)
	}
	summary := summarize(src, plan, opts)
	if opts.Plan {
		summary.Planned = true
		summary.Seconds = time.Since(start).Seconds()
		return summary, nil
	}
	w := &writer{opts: opts, src: src, plan: plan, total: summary.Bytes}
	if err := w.write(ctx); err != nil {
		return nil, err
	}
	summary.Out = opts.Out
	summary.Bytes = w.bytes
	for i := range summary.Components {
		if c, ok := plan.Manifest.Components[summary.Components[i].Name]; ok {
			summary.Components[i].Bytes = c.Bytes
		}
	}
	summary.Seconds = time.Since(start).Seconds()
	return summary, nil
}

// checkOut refuses a place that is taken before anything is read.
func checkOut(opts Options) error {
	if opts.Out == "" {
		return fmt.Errorf("convert %s: no output folder is given (-o MODEL)", opts.Checkpoint)
	}
	if _, err := os.Lstat(opts.Out); err == nil {
		if !opts.Force {
			return fmt.Errorf("convert %s: %s exists: remove it, name another folder, or replace it with --force", opts.Checkpoint, opts.Out)
		}
		if err := replaceable(opts.Out); err != nil {
			return fmt.Errorf("convert %s: %w", opts.Checkpoint, err)
		}
	}
	parent := filepath.Dir(filepath.Clean(opts.Out))
	if info, err := os.Stat(parent); err != nil {
		return fmt.Errorf("convert %s: the folder that is to hold the model: %w", opts.Checkpoint, err)
	} else if !info.IsDir() {
		return fmt.Errorf("convert %s: %s is not a folder", opts.Checkpoint, parent)
	}
	return nil
}

// replaceable guards against a slip of the hand: what is replaced is removed, so only models and empty folders are.
func replaceable(out string) error {
	entries, err := os.ReadDir(out)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == manifest.FileName {
			return nil
		}
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s holds files and no %s: it is no model, and will not be replaced", out, manifest.FileName)
	}
	return nil
}

func summarize(src *source, plan *families.Plan, opts Options) *Summary {
	s := &Summary{Checkpoint: opts.Checkpoint, Family: plan.Manifest.Family, Architecture: src.architecture(), Precision: plan.Manifest.Precision,
		Target: cmp.Or(plan.Manifest.Target, string(blocks.CPU))}
	shared := onnx.NewShared()
	for _, c := range plan.Components {
		params, formats := c.Builder.Parameters()
		bytes := c.Builder.DataBytes(shared)
		s.Components = append(s.Components, ComponentSummary{Name: c.Name, Parameters: params, Bytes: bytes, Nodes: len(c.Builder.Nodes),
			Formats: formats, Policy: c.Builder.Describe()})
		s.Bytes += bytes
		if !c.Builder.Derived() {
			s.Parameters += params
		}
	}
	if e := plan.Embeddings; e != nil {
		info, _ := src.tensors.Inventory().Lookup(e.Tensor)
		s.Components = append(s.Components, ComponentSummary{Name: "embeddings", Parameters: info.Elements(), Bytes: info.Bytes(),
			Formats: map[string]int64{embeddingDType(info.DType): info.Elements()}, Policy: "as released"})
		s.Parameters += info.Elements()
		s.Bytes += info.Bytes()
	}
	return s
}

// ports turns a graph's ports into the manifest's form. Those that only an observer sees are none of the model's.
func ports(list []onnx.Port) []manifest.Port {
	out := make([]manifest.Port, 0, len(list))
	for _, p := range list {
		if calibration.IsPort(p.Value.Name()) {
			continue
		}
		shape := make([]string, len(p.Shape))
		for j, d := range p.Shape {
			shape[j] = d.String()
		}
		out = append(out, manifest.Port{Name: p.Value.Name(), DType: p.DType.String(), Shape: shape})
	}
	return out
}

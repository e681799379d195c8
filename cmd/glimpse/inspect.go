// glimpse inspect: what a model folder or a checkpoint holds.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/convert"
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// InspectOptions are the flags of inspect.
type InspectOptions struct {
	JSON bool
}

// AddFlags adds the flags.
func (o *InspectOptions) AddFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.JSON, "json", false, "print JSON")
}

func newInspect(a *app) *cobra.Command {
	var o InspectOptions
	cmd := &cobra.Command{
		Use:   "inspect MODEL|CHECKPOINT",
		Short: "Shows what a model folder or a checkpoint holds",
		Long:  "Shows the components, shapes, precision, sizes and prompt of a model folder, or the modules of a checkpoint and what it\nwould become. Exit status 1 when a checkpoint would not convert.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runInspect(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runInspect(ctx context.Context, a *app, o InspectOptions, path string) error {
	path, err := a.modelFolder(path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return badInput(err)
	}
	_, err = os.Stat(filepath.Join(path, manifest.FileName))
	if err == nil {
		return inspectModel(a, o, path)
	}
	in, err := convert.Inspect(ctx, path)
	if err != nil {
		return err
	}
	if o.JSON {
		err = writeJSON(a.stdout, in)
	} else {
		err = printCheckpoint(a, in)
	}
	if err == nil && len(in.Problems) > 0 {
		return errFound
	}
	return err
}

// inspection is the JSON of a model folder: sizes are of the files that are there.
type inspection struct {
	Path        string               `json:"path"`
	Family      string               `json:"family"`
	Precision   string               `json:"precision"`
	Target      string               `json:"target"`
	Converter   string               `json:"converter"`
	Source      inspectedSource      `json:"source"`
	Components  []inspectedComponent `json:"components"`
	Embeddings  *inspectedComponent  `json:"embeddings,omitempty"`
	Picture     *inspectedPicture    `json:"picture,omitempty"`
	Decoder     *inspectedDecoder    `json:"decoder,omitempty"`
	Prompt      inspectedPrompt      `json:"prompt"`
	Tokens      map[string]any       `json:"tokens"`
	Parameters  int64                `json:"parameters"`
	Bytes       int64                `json:"bytes"`
	MissingFile []string             `json:"missing_files,omitempty"`
}

type inspectedSource struct {
	Name         string `json:"name"`
	Architecture string `json:"architecture"`
	Files        int    `json:"files"`
}

type inspectedComponent struct {
	Name       string           `json:"name"`
	File       string           `json:"file"`
	Parameters int64            `json:"parameters"`
	Bytes      int64            `json:"bytes"`
	Stored     map[string]int64 `json:"stored_as,omitempty"` // parameters by storage format
	Inputs     []string         `json:"inputs,omitempty"`
	Outputs    []string         `json:"outputs,omitempty"`
}

type inspectedPicture struct {
	Recipe string   `json:"recipe"`
	Width  int      `json:"width"`
	Height int      `json:"height"`
	Tokens int      `json:"tokens_per_tile"`
	Stages []string `json:"stages"`
}

type inspectedDecoder struct {
	Layers       int    `json:"layers"`
	HiddenSize   int    `json:"hidden_size"`
	Heads        int    `json:"heads"`
	KVHeads      int    `json:"kv_heads"`
	HeadDim      int    `json:"head_dim"`
	VocabSize    int    `json:"vocab_size"`
	MaxPositions int    `json:"max_positions"`
	CacheDType   string `json:"cache_dtype"`
}

type inspectedPrompt struct {
	Template    string `json:"template,omitempty"`
	Placeholder string `json:"placeholder"`
	Caption     string `json:"caption"`
}

func inspectModel(a *app, o InspectOptions, path string) error {
	m, err := manifest.Read(path)
	if err != nil {
		return badInput(err)
	}
	in := inspect(path, m)
	if o.JSON {
		err = writeJSON(a.stdout, in)
	} else {
		err = printModel(a, in)
	}
	if err == nil && len(in.MissingFile) > 0 {
		return badInputf("%s lacks files that its %s names: %s", path, manifest.FileName, strings.Join(in.MissingFile, ", "))
	}
	return err
}

func inspect(path string, m *manifest.Manifest) *inspection {
	in := &inspection{
		Path: path, Family: m.Family, Precision: m.Precision, Target: targetOf(m), Converter: m.Converter,
		Source: inspectedSource{m.Source.Name, m.Source.Architecture, len(m.Source.Files)},
		Prompt: inspectedPrompt{m.Prompt.Template, m.Prompt.Placeholder, m.Prompt.Caption},
		Tokens: map[string]any{"image": m.Tokens.Image, "bos": m.Tokens.BOS, "eos": m.Tokens.EOS, "pad": m.Tokens.Pad},
	}
	for _, name := range componentOrder(m) {
		c := m.Components[name]
		in.Components = append(in.Components, inspectedComponent{
			Name: name, File: c.File, Parameters: c.Parameters, Bytes: in.size(path, c.File, c.Data), Stored: c.Precision,
			Inputs: portTexts(c.Inputs), Outputs: portTexts(c.Outputs),
		})
		in.Parameters += c.Parameters
	}
	if e := m.Embeddings; e != nil {
		elements := int64(e.Rows) * int64(e.HiddenSize)
		in.Embeddings = &inspectedComponent{Name: "embeddings", File: e.File, Parameters: elements, Bytes: in.size(path, e.File),
			Stored: map[string]int64{e.DType: elements}}
		in.Parameters += elements
	}
	if p := m.Picture; p != nil {
		in.Picture = &inspectedPicture{p.Recipe, p.Width, p.Height, p.TokensPerTile, p.Stages}
	}
	if d := m.Decoder; d != nil {
		in.Decoder = &inspectedDecoder{d.Layers, d.HiddenSize, d.Heads, d.KVHeads, d.HeadDim, d.VocabSize, d.MaxPositions, d.CacheDType}
	}
	return in
}

// size adds up the files and notes those that are missing.
func (in *inspection) size(folder string, names ...string) int64 {
	var total int64
	for _, name := range names {
		if name == "" {
			continue
		}
		info, err := os.Stat(filepath.Join(folder, name))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				name += " (" + err.Error() + ")"
			}
			in.MissingFile = append(in.MissingFile, name)
			continue
		}
		total += info.Size()
	}
	in.Bytes += total
	return total
}

// componentOrder is the order data flows in: the picture's stages, the decoder, then the rest by name.
func componentOrder(m *manifest.Manifest) []string {
	var order []string
	if m.Picture != nil {
		order = append(order, m.Picture.Stages...)
	}
	if m.Decoder != nil {
		order = append(order, m.Decoder.Component)
	}
	var rest []string
	for name := range m.Components {
		if !slices.Contains(order, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(order, rest...)
}

func portTexts(ports []manifest.Port) []string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = fmt.Sprintf("%s %s[%s]", p.Name, p.DType, strings.Join(p.Shape, ", "))
	}
	return texts
}

// shownPorts bounds the list of a decoder, which has two ports a layer.
const shownPorts = 10

func printModel(a *app, in *inspection) error {
	w := a.stdout
	fmt.Fprintf(w, "%s: %s, precision %s for %s, from %s (%s), by %s\n", in.Path, in.Family, in.Precision, in.Target, in.Source.Name, in.Source.Architecture, in.Converter)
	t := newTable(w)
	t.row("component", "file", "parameters", "size", "stored as")
	parts := in.Components
	if in.Embeddings != nil {
		parts = append(slices.Clone(parts), *in.Embeddings)
	}
	for _, c := range parts {
		t.row(c.Name, c.File, quantity(c.Parameters), byteSize(c.Bytes), shares(c.Stored))
	}
	t.row("total", "", quantity(in.Parameters), byteSize(in.Bytes), "")
	if err := t.flush(); err != nil {
		return err
	}
	for _, c := range in.Components {
		fmt.Fprintf(w, "\n%s\n", c.Name)
		printPorts(a, "in ", c.Inputs)
		printPorts(a, "out", c.Outputs)
	}
	fmt.Fprintln(w)
	if p := in.Picture; p != nil {
		fmt.Fprintf(w, "picture  %s, %d×%d, %d tokens a tile, stages %s\n", p.Recipe, p.Width, p.Height, p.Tokens, strings.Join(p.Stages, " → "))
	}
	if d := in.Decoder; d != nil {
		fmt.Fprintf(w, "decoder  %d layers, hidden size %d, %d heads (%d for keys and values) of %d, vocabulary %d, %d positions, cache %s\n",
			d.Layers, d.HiddenSize, d.Heads, d.KVHeads, d.HeadDim, d.VocabSize, d.MaxPositions, d.CacheDType)
	}
	_, err := fmt.Fprintf(w, "prompt   template %s, a picture is %q, caption prompt %q\n", firstOf(in.Prompt.Template, "none"), in.Prompt.Placeholder, in.Prompt.Caption)
	return err
}

func printPorts(a *app, label string, ports []string) {
	for i, p := range ports {
		if i == shownPorts && len(ports) > shownPorts+1 {
			fmt.Fprintf(a.stdout, "  %s …and %d more\n", label, len(ports)-shownPorts)
			return
		}
		fmt.Fprintf(a.stdout, "  %s %s\n", label, p)
	}
}

func printCheckpoint(a *app, in *convert.Inspection) error {
	w := a.stdout
	fmt.Fprintf(w, "%s: %s (%s), family %s\n", in.Path, in.Architecture, in.ModelType, in.Family)
	t := newTable(w)
	t.row("module", "tensors", "parameters", "size", "dtypes")
	for _, g := range in.Groups {
		t.row(oneLineText(g.Prefix), g.Tensors, quantity(g.Parameters), byteSize(g.Bytes), shares(g.DTypes))
	}
	t.row("total", in.Tensors, quantity(in.Parameters), byteSize(in.Bytes), "")
	if err := t.flush(); err != nil {
		return err
	}
	if in.Plan != nil {
		fmt.Fprintln(w, "\nConverted with --precision auto it becomes:")
		return printComponents(a, in.Plan)
	}
	fmt.Fprintf(w, "\nIt would not convert:\n")
	for _, p := range in.Problems {
		fmt.Fprintf(w, "  %s\n", oneLineText(p))
	}
	return nil
}

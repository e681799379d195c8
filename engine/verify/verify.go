// Package verify holds a model folder to a golden set: what upstream answered to each case, and the arrays on its way
// there (the format and the tolerances are those of testdata/goldens/README.md).
//
// Each case runs twice. From the files, where text, ids and pixels are compared; and from the stored pixel_values, so
// that graphs are judged without the differences between picture decoders. Everything that a case expects gives a row of
// the report: what cannot be compared is a row that is not ok, never a row that is missing, and a report without a
// single comparison is not ok either.
package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
	"glimpse/preprocess"
)

// Options of a Run. The zero value is fine.
type Options struct {
	Cases  []string // ids of the cases to run; nil: all
	Logger *slog.Logger
}

// Report is the outcome of a golden set.
type Report struct {
	Set   string       `json:"set"`
	Model string       `json:"model"`
	Cases []CaseReport `json:"cases"`
	OK    bool         `json:"ok"` // every case is, and something was compared
}

// CaseReport is the outcome of one case.
type CaseReport struct {
	ID   string `json:"id"`
	Rows []Row  `json:"rows"`
	OK   bool   `json:"ok"` // every row is, and there is one
}

// Row is one comparison. MaxAbsDiff and Tolerance are 0 where things are equal or not (ids, texts).
type Row struct {
	Array      string  `json:"array"`
	MaxAbsDiff float64 `json:"max_abs_diff"`
	Tolerance  float64 `json:"tolerance"`
	OK         bool    `json:"ok"`
	Note       string  `json:"note,omitempty"`
}

// Run runs the cases of the golden set in folder. The error is about the set or the context; what a case gets wrong,
// errors of the engine included, is in the report.
func Run(ctx context.Context, e *engine.Engine, folder string, opts Options) (*Report, error) {
	set, err := golden.Read(folder)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := knownCases(set, opts.Cases); err != nil {
		return nil, err
	}
	report := &Report{Set: set.Name, Model: e.Name()}
	for _, c := range set.Cases {
		if opts.Cases != nil && !slices.Contains(opts.Cases, c.ID) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		check := &checker{engine: e, set: set, c: c}
		check.run(ctx)
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		out := CaseReport{ID: c.ID, Rows: check.rows, OK: allOK(check.rows)}
		opts.Logger.Debug("case verified", "case", c.ID, "ok", out.OK)
		report.Cases = append(report.Cases, out)
	}
	report.OK = len(report.Cases) > 0
	for _, c := range report.Cases {
		report.OK = report.OK && c.OK
	}
	return report, nil
}

func knownCases(set *golden.Set, ids []string) error {
	var problems []error
	for _, id := range ids {
		if !slices.ContainsFunc(set.Cases, func(c golden.Case) bool { return c.ID == id }) {
			problems = append(problems, fmt.Errorf("golden set %s has no case %q", set.Name, id))
		}
	}
	return errors.Join(problems...)
}

func allOK(rows []Row) bool {
	return len(rows) > 0 && !slices.ContainsFunc(rows, func(r Row) bool { return !r.OK })
}

// checker runs one case.
type checker struct {
	engine *engine.Engine
	set    *golden.Set
	c      golden.Case
	rows   []Row
}

func (k *checker) row(r Row) { k.rows = append(k.rows, r) }

// fail adds a row that is not ok.
func (k *checker) fail(array, format string, args ...any) {
	k.row(Row{Array: array, Note: fmt.Sprintf(format, args...)})
}

// equal adds a row of things that must be the same.
func (k *checker) equal(array string, same bool, format string, args ...any) {
	r := Row{Array: array, OK: same}
	if !same {
		r.Note = fmt.Sprintf(format, args...)
	}
	k.row(r)
}

func (k *checker) run(ctx context.Context) {
	if !k.supported() {
		return
	}
	if len(k.c.Texts) > 0 {
		k.scores(ctx)
		return
	}
	req, err := k.request()
	if err != nil {
		k.fail("case", "%v", err)
		return
	}
	fromFile, err := k.engine.Trace(ctx, req, engine.TraceOptions{})
	if err != nil {
		k.fail("from the file", "%v", err)
		return
	}
	k.prompt(fromFile)
	given, ok := k.storedPixels(fromFile.Arrays)
	if !ok {
		return
	}
	stored := fromFile // text only: there is nothing to replace
	if given != nil {
		if stored, err = k.engine.Trace(ctx, req, engine.TraceOptions{Tensors: given}); err != nil {
			k.fail("from stored pixels", "%v", err)
			return
		}
	}
	k.arrays(stored.Arrays)
	k.answers(fromFile, stored, given != nil)
}

// supported names what a case asks for and this version does not do.
func (k *checker) supported() bool {
	before := len(k.rows)
	if k.c.Kind != "" && k.c.Kind != "generate" {
		k.fail("kind", "cases of kind %q are not verified by this version", k.c.Kind)
	}
	if len(k.c.Videos) > 0 {
		k.fail("videos", "the case has videos, which this version does not take")
	}
	if len(k.c.Audios) > 0 {
		k.fail("audios", "the case has sound, which this version does not take")
	}
	if s := strings.TrimSpace(string(k.c.ProcessorKwargs)); s != "" && s != "null" && s != "{}" {
		k.fail("processor_kwargs", "%s: options of the processor are not verified by this version", s)
	}
	return len(k.rows) == before
}

// request makes the case's request, with its pictures read from the media folder.
func (k *checker) request() (engine.Request, error) {
	req := engine.Request{MaxTokens: max(1, len(k.c.Expected.GeneratedIDs))}
	pictures, err := k.pictures()
	if err != nil {
		return req, err
	}
	if len(k.c.Messages) == 0 {
		req.Raw, req.Pictures = true, pictures
		if k.c.Prompt != nil { // null: the pictures alone
			req.Prompt = *k.c.Prompt
		}
		return req, nil
	}
	next := 0
	for _, m := range k.c.Messages {
		parts, err := m.Parts()
		if err != nil {
			return req, err
		}
		out := engine.Message{Role: m.Role}
		for _, p := range parts {
			switch p.Type {
			case "text":
				out.Content = append(out.Content, engine.Part{Type: engine.PartText, Text: p.Text})
			case "image":
				if next == len(pictures) {
					return req, fmt.Errorf("the messages have more images than the %d of the case", len(pictures))
				}
				out.Content = append(out.Content, engine.Part{Type: engine.PartImage, Picture: &pictures[next]})
				next++
			default:
				return req, fmt.Errorf("a message has a part of type %q, which this version does not take", p.Type)
			}
		}
		req.Messages = append(req.Messages, out)
	}
	if next != len(pictures) {
		return req, fmt.Errorf("the messages have %d images and the case %d", next, len(pictures))
	}
	return req, nil
}

// pictures reads the case's pictures from the media folder.
func (k *checker) pictures() ([]engine.Picture, error) {
	pictures := make([]engine.Picture, len(k.c.Images))
	for i, name := range k.c.Images {
		path := k.set.Media(name)
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("media: %w", err)
		}
		if info.Size() > preprocess.DefaultMaxBytes {
			return nil, fmt.Errorf("media %s: %d bytes", path, info.Size())
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("media: %w", err)
		}
		pictures[i] = engine.Picture{Data: data, Source: name, IgnoreEXIF: k.c.Options.EXIF != nil && !*k.c.Options.EXIF}
	}
	return pictures, nil
}

// prompt compares what is made from text and sizes.
func (k *checker) prompt(t *engine.Trace) {
	want, have := k.c.Expected, t.Prepared
	if want.PromptText != nil {
		k.equal("prompt_text", have.PromptText == *want.PromptText, "have %.200q, want %.200q", have.PromptText, *want.PromptText)
	}
	if want.InputIDs != nil {
		k.equal("input_ids", slices.Equal(have.TokenIDs, want.InputIDs), "%s", firstDifference(have.TokenIDs, want.InputIDs))
	}
	if want.NumImageTokens != nil {
		k.equal("num_image_tokens", have.ImageTokens == *want.NumImageTokens, "have %d, want %d", have.ImageTokens, *want.NumImageTokens)
	}
	if want.QFormerInputIDs != nil {
		k.instruction(t.Arrays, want.QFormerInputIDs)
	}
	if want.DecoderStartToken != nil {
		start := -1
		if d := k.engine.Manifest().Decoder; d != nil && d.Encoder != nil {
			start = d.Encoder.StartToken
		}
		k.equal("decoder_start_token_id", start == *want.DecoderStartToken, "have %d, want %d", start, *want.DecoderStartToken)
	}
}

// instruction compares the ids that the picture stages read, a row a picture.
func (k *checker) instruction(arrays map[string]engine.Array, want []int32) {
	const name = "qformer_input_ids"
	spec := k.engine.Manifest().Instruction
	if spec == nil {
		k.fail(name, "the model's picture stages read no text")
		return
	}
	have := arrays[spec.IDs]
	row := make([]int64, len(want))
	for i, id := range want {
		row[i] = int64(id)
	}
	same := len(have.Shape) == 2 && have.Shape[0] == int64(len(k.c.Images)) && slices.Equal(have.Int64, slices.Repeat(row, len(k.c.Images)))
	k.equal(name, same, "have %v of shape %v, want %v", have.Int64, have.Shape, want)
}

// storedPixels compares pixel_values from the file with the stored ones and returns the latter; nil for a case without.
func (k *checker) storedPixels(arrays map[string]engine.Array) (map[string]engine.Array, bool) {
	key, ok := k.c.Arrays[pixelValues]
	if !ok {
		if len(k.c.Images) > 0 {
			k.fail(pixelValues, "the case has pictures and no stored pixel_values")
			return nil, false
		}
		return nil, true
	}
	want, err := k.set.Arrays.Read(key)
	if err != nil {
		k.fail(pixelValues, "%v", err)
		return nil, false
	}
	have, ok := arrays[pixelValues]
	if !ok {
		k.fail(pixelValues, "the model's picture recipe makes no such tensor")
		return nil, false
	}
	k.row(k.comparePixels(have, want))
	return map[string]engine.Array{pixelValues: {Shape: want.Shape, Data: want.Data}}, true
}

// arrays compares every other array of the case, in the order that the model makes them.
func (k *checker) arrays(arrays map[string]engine.Array) {
	for _, name := range sortedArrays(k.c.Arrays) {
		want, err := k.set.Arrays.Read(k.c.Arrays[name])
		if err != nil {
			k.fail(name, "%v", err)
			continue
		}
		have, ok := arrays[name]
		if alias := aliases[name]; !ok && alias != "" {
			have, ok = arrays[alias]
		}
		if !ok {
			k.fail(name, "the model makes no such array")
			continue
		}
		k.row(compareArray(name, have, want, k.tolerance(name, want)))
	}
}

// answers compares the generated ids.
func (k *checker) answers(fromFile, stored *engine.Trace, replaced bool) {
	want := k.c.Expected.GeneratedIDs
	if want == nil {
		return
	}
	if stored.Result == nil {
		k.fail("generated_ids", "%v", engine.ErrNoDecoder)
		return
	}
	k.equal("generated_ids", slices.Equal(stored.Result.TokenIDs, want), "%s", firstDifference(stored.Result.TokenIDs, want))
	if text := k.c.Expected.Text; text != nil {
		k.equal("text", stored.Result.Text == *text, "have %.200q, want %.200q", stored.Result.Text, *text)
	}
	if finish := k.c.Expected.Finish; finish != "" {
		k.equal("finish", stored.Result.FinishReason == finish, "have %s, want %s", stored.Result.FinishReason, finish)
	}
	if replaced && k.c.Expected.IDsStable {
		k.equal("generated_ids from the file", slices.Equal(fromFile.Result.TokenIDs, want), "%s", firstDifference(fromFile.Result.TokenIDs, want))
	}
}

// firstDifference says where two lists of ids part.
func firstDifference(have, want []int32) string {
	for i := range min(len(have), len(want)) {
		if have[i] != want[i] {
			return fmt.Sprintf("at %d: have %d, want %d", i, have[i], want[i])
		}
	}
	return fmt.Sprintf("have %d ids, want %d", len(have), len(want))
}

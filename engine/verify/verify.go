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
	"slices"
	"strings"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
	"glimpse/manifest"
	"glimpse/media"
)

// Options of a Run. The zero value is fine.
type Options struct {
	Cases  []string      // ids of the cases to run; nil: all
	Media  *media.Reader // reads videos and sounds; nil: with FFmpeg from PATH
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
	if opts.Media == nil {
		opts.Media = media.New(media.Options{})
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
		check := &checker{engine: e, set: set, media: opts.Media, c: c, half: e.Manifest().Target == manifest.TargetCUDA}
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
	media  *media.Reader
	c      golden.Case
	frames []string // files of the case's videos
	half   bool     // the graphs compute in float16
	parted bool     // the answer is another one, and may be; see float16.go
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
	if check := textKinds[k.c.Kind]; check != nil {
		check(k)
		return
	}
	if k.c.Kind == kindSquash {
		k.squashed(ctx)
		return
	}
	if check := mediaKinds[k.c.Kind]; check != nil {
		check(k, ctx)
		return
	}
	req, err := k.request(ctx)
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
	k.sizes(fromFile)
	given, ok := k.storedPixels(fromFile.Arrays, fromFile.Prepared.Pictures)
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
	k.parted = k.mayPart(stored)
	k.arrays(stored.Arrays)
	k.answers(fromFile, stored, given != nil)
}

// supported names what a case asks for and this version does not do.
func (k *checker) supported() bool {
	before := len(k.rows)
	if k.c.Kind != "" && k.c.Kind != "generate" && !(k.c.Kind == "score" && len(k.c.Texts) > 0) && k.c.Kind != kindSquash && textKinds[k.c.Kind] == nil && mediaKinds[k.c.Kind] == nil {
		k.fail("kind", "cases of kind %q are not verified by this version", k.c.Kind)
	}
	if _, err := pictureOptions(k.c.ProcessorKwargs); err != nil {
		k.fail("processor_kwargs", "%v", err)
	}
	return len(k.rows) == before
}

// prompt compares what is made from text and sizes.
func (k *checker) prompt(t *engine.Trace) {
	want, have := k.c.Expected, t.Prepared
	if want.PromptText != nil {
		k.equal("prompt_text", k.samePrompt(have.PromptText, *want.PromptText), "have %.200q, want %.200q", have.PromptText, *want.PromptText)
	}
	if want.InputIDs != nil || want.SegmentIDs != nil {
		ids := k.inputIDs()
		k.equal("input_ids", slices.Equal(have.TokenIDs, ids), "%s", firstDifference(have.TokenIDs, ids))
	}
	if want.NumImageTokens != nil {
		k.equal("num_image_tokens", have.ImageTokens+have.AudioTokens == want.NumImageTokens.Total(), "have %d and %d of sound, want %v", have.ImageTokens, have.AudioTokens, *want.NumImageTokens)
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

// sizes compares the pictures' sizes, where the case has them.
func (k *checker) sizes(t *engine.Trace) {
	key, ok := k.c.Arrays[imageSizes]
	if !ok {
		return
	}
	want, err := k.set.Arrays.Read(key)
	if err != nil {
		k.fail(imageSizes, "%v", err)
		return
	}
	var have []float32
	for _, p := range t.Prepared.Pictures {
		have = append(have, float32(p.Height), float32(p.Width))
	}
	k.equal(imageSizes, slices.Equal(have, want.Data), "have %v, want %v", have, want.Data)
}

// storedPixels compares the pixels from the files with the stored ones and returns the latter; nil for a case without.
func (k *checker) storedPixels(arrays map[string]engine.Array, pictures []engine.PictureLayout) (map[string]engine.Array, bool) {
	name := pixelValues
	_, values := k.c.Arrays[pixelValues]
	if _, videos := k.c.Arrays[pixelVideos]; videos {
		if name = pixelVideos; values {
			name = pixelBoth
		}
	} else if _, rows := k.c.Arrays[pixelRows]; rows && !values {
		return nil, k.sampledPixels(arrays)
	} else if !values {
		if len(k.c.Images)+len(k.c.Videos) > 0 {
			k.fail(pixelValues, "the case has pictures and no stored pixel_values")
			return nil, false
		}
		return nil, true
	}
	want, err := k.storedArray(name)
	if err == nil {
		want, err = unpadded(want, pictures)
	}
	if err != nil {
		k.fail(name, "%v", err)
		return nil, false
	}
	have, ok := arrays[pixelValues]
	if !ok {
		k.fail(name, "the model's picture recipe makes no such tensor")
		return nil, false
	}
	r := k.comparePixels(have, want)
	r.Array = name
	k.row(r)
	return map[string]engine.Array{pixelValues: {Shape: want.Shape, Data: want.Data}}, true
}

// pixelBoth names the rows of a case with pictures and videos.
const pixelBoth = pixelValues + ", " + pixelVideos

// storedArray reads stored pixels. Of a case with pictures and videos it reads both, the pictures' first as in its prompt.
func (k *checker) storedArray(name string) (golden.Array, error) {
	if name != pixelBoth {
		return k.set.Arrays.Read(k.c.Arrays[name])
	}
	a, err := k.set.Arrays.Read(k.c.Arrays[pixelValues])
	if err != nil {
		return a, err
	}
	b, err := k.set.Arrays.Read(k.c.Arrays[pixelVideos])
	if err != nil {
		return b, err
	}
	if len(a.Shape) != 2 || len(b.Shape) != 2 || a.Shape[1] != b.Shape[1] {
		return a, fmt.Errorf("pictures of shape %v and videos of shape %v are no list of patches together", a.Shape, b.Shape)
	}
	return golden.Array{Shape: []int64{a.Shape[0] + b.Shape[0], a.Shape[1]}, Data: slices.Concat(a.Data, b.Data)}, nil
}

// unpadded turns [pictures, most tiles, 3, height, width], where some processors fill up with zeros, into the tiles that
// there are. A leading dimension of 1 holds all pictures of the prompt, and needs none.
func unpadded(a golden.Array, pictures []engine.PictureLayout) (golden.Array, error) {
	if len(a.Shape) != 5 {
		return a, nil
	}
	if a.Shape[0] == 1 {
		return golden.Array{Shape: a.Shape[1:], Data: a.Data}, nil
	}
	if int(a.Shape[0]) != len(pictures) {
		return a, fmt.Errorf("shape %v is of %d pictures, and the request has %d", a.Shape, a.Shape[0], len(pictures))
	}
	tile, most := int(a.Shape[2]*a.Shape[3]*a.Shape[4]), int(a.Shape[1])
	out := golden.Array{Shape: append([]int64{0}, a.Shape[2:]...)}
	for i, p := range pictures {
		own := a.Data[i*most*tile : (i+1)*most*tile]
		if p.Tiles > most || slices.ContainsFunc(own[p.Tiles*tile:], func(v float32) bool { return v != 0 }) {
			return a, fmt.Errorf("shape %v has at most %d tiles a picture, and picture %d has %d tiles by its size", a.Shape, most, i+1, p.Tiles)
		}
		out.Shape[0] += int64(p.Tiles)
		out.Data = append(out.Data, own[:p.Tiles*tile]...)
	}
	return out, nil
}

// arrays compares every other array of the case, in the order that the model makes them.
func (k *checker) arrays(arrays map[string]engine.Array) {
	for _, name := range sortedArrays(k.c.Arrays) {
		if name == engine.ArrayLastLogits && k.parted {
			continue // those of another token
		}
		want, err := k.set.Arrays.Read(k.c.Arrays[name])
		if err != nil {
			k.fail(name, "%v", err)
			continue
		}
		have, ok := arrays[name]
		if !ok {
			have, ok = firstOf(arrays, name, "_frame0")
		}
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
	if k.parted {
		k.row(Row{Array: "generated_ids", OK: true, Note: fmt.Sprintf("%s, which %s", firstDifference(stored.Result.TokenIDs, want), partedNote)})
		return
	}
	k.equal("generated_ids", slices.Equal(stored.Result.TokenIDs, want), "%s", firstDifference(stored.Result.TokenIDs, want))
	if text := k.c.Expected.TextRaw; text != nil {
		// What upstream returns is this text without its last token, whatever that was: nothing to be equal to.
		have := k.engine.Decode(stored.Result.TokenIDs)
		k.equal("text_raw", sameText(have, *text), "have %.200q, want %.200q", have, *text)
	} else if text := k.c.Expected.Text; text != nil {
		// Tokens of a NUL byte have no text here (tokenizer.Decode); that ids are equal is a row of its own.
		want := strings.ReplaceAll(*text, "\x00", "")
		k.equal("text", sameText(stored.Result.Text, want), "have %.200q, want %.200q", stored.Result.Text, want)
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

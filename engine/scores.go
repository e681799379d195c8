// Scores and embeddings: pictures against texts, for models with such heads. docs/scores.md says what the numbers mean.

package engine

import (
	"context"
	"fmt"
	"math"
	"strings"

	"glimpse/manifest"
)

// Bounds of one request: what is above them is refused before anything runs.
const (
	maxScorePairs    = 1 << 16 // pictures × texts
	maxScoreTexts    = 1 << 14
	maxScorePictures = 1 << 12
)

// ScoreRequest asks for every picture against every text.
type ScoreRequest struct {
	Pictures []Picture
	Texts    []string
}

// ScoreResult has a matrix for each score that the model's heads give, in the manifest's order.
type ScoreResult struct {
	Scores     []ScoreMatrix
	TextTokens int // of all texts, special tokens included
}

// ScoreMatrix is one score: Values[i][j] is that of picture i and text j.
type ScoreMatrix struct {
	Name   string // "itc", "itm", …
	Kind   string // manifest.KindSimilarity: a scaled cosine; manifest.KindPair: what the head says, a probability
	Values [][]float32
}

// EmbedRequest asks for embeddings of pictures, of texts, or of both.
type EmbedRequest struct {
	Pictures []Picture
	Texts    []string
	// Score names the similarity whose embeddings are wanted, for models that compare in several ways; empty: the model's own.
	Score string
}

// EmbedResult has an Embedding for each picture and each text, in the request's order.
type EmbedResult struct {
	Pictures, Texts []Embedding
	TextTokens      int
}

// Embedding is a vector of length 1 in the space that pictures and texts share.
type Embedding struct {
	// Vector is the embedding. For a picture with several rows it is their mean, scaled to length 1: an approximation.
	Vector []float32
	// Rows are a picture's own rows, each of length 1; a similarity is the largest over them. nil where there is one.
	Rows [][]float32
}

// Score compares pictures with texts. It is safe for many goroutines. Vision runs once a picture, text once a text, and
// pairs go through their head in chunks.
func (e *Engine) Score(ctx context.Context, req ScoreRequest) (*ScoreResult, error) {
	r, err := e.traceScores(ctx, req, TraceOptions{}, nil)
	if err != nil {
		return nil, err
	}
	return r.Result, nil
}

// ScoreTrace is a ScoreResult with all that was computed on its way.
type ScoreTrace struct {
	Result  *ScoreResult
	TextIDs [][]int32 // of each text, without padding
	// Arrays holds the recipe's tensors, the texts' ids and mask, each output of each stage, each output of each pair head
	// [pictures, texts, …], and each score [pictures, texts].
	Arrays map[string]Array
}

// TraceScores is Score with the arrays on its way. It holds all of them in memory.
func (e *Engine) TraceScores(ctx context.Context, req ScoreRequest, opts TraceOptions) (*ScoreTrace, error) {
	return e.traceScores(ctx, req, opts, keepAll)
}

func (e *Engine) traceScores(ctx context.Context, req ScoreRequest, opts TraceOptions, keep keeping) (*ScoreTrace, error) {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := e.checkScores(len(req.Pictures), len(req.Texts)); err != nil {
		return nil, err
	}
	s := e.scorer
	ids, err := s.encode("texts", req.Texts)
	if err != nil {
		return nil, err
	}
	tensors, err := e.scoredPictures(ctx, req.Pictures, opts.Tensors)
	if err != nil {
		return nil, err
	}
	t := &ScoreTrace{TextIDs: ids, Result: &ScoreResult{TextTokens: countTokens(ids)}, Arrays: map[string]Array{}}
	pictures, err := s.pictures(ctx, tensors, s.pictureTensors(true, true), keep)
	if err != nil {
		return nil, scoreError(ctx, err)
	}
	texts, err := s.texts(ctx, ids, s.textTensors(), keep)
	if err != nil {
		return nil, scoreError(ctx, err)
	}
	for _, score := range s.spec.Scores {
		values, err := s.matrix(ctx, score, pictures, texts, ids, t, keep)
		if err != nil {
			return nil, scoreError(ctx, fmt.Errorf("score %s: %w", score.Name, err))
		}
		t.Result.Scores = append(t.Result.Scores, ScoreMatrix{Name: score.Name, Kind: score.Kind, Values: values})
		t.keep(keep, score.Name, matrixArray(values))
	}
	for _, arrays := range []map[string]Array{pictures, texts} {
		for name, a := range arrays {
			t.keep(keep, name, a)
		}
	}
	return t, nil
}

func (t *ScoreTrace) keep(keep keeping, name string, a Array) {
	if keep != nil && keep(name) {
		t.Arrays[name] = a
	}
}

// checkScores refuses what the model cannot do and what is too much or nothing.
func (e *Engine) checkScores(pictures, texts int) error {
	switch {
	case e.scorer == nil:
		return e.noHeads("scoring")
	case pictures == 0:
		return badRequest("images", CodeInvalid, nil, "there are no pictures to score")
	case texts == 0:
		return badRequest("texts", CodeInvalid, nil, "there are no texts to score")
	case pictures > maxScorePairs/texts:
		return badRequest("images", CodeInvalid, nil, "%d pictures and %d texts are more than the %d pairs of one request", pictures, texts, maxScorePairs)
	}
	return boundHeads(pictures, texts)
}

func boundHeads(pictures, texts int) error {
	if pictures > maxScorePictures {
		return badRequest("images", CodeInvalid, nil, "%d pictures; one request may have %d", pictures, maxScorePictures)
	}
	if texts > maxScoreTexts {
		return badRequest("texts", CodeInvalid, nil, "%d texts; one request may have %d", texts, maxScoreTexts)
	}
	return nil
}

func (e *Engine) noHeads(what string) error {
	return badRequest("model", CodeUnsupported, ErrNoScores, "model %s has no %s heads", e.name, what)
}

// Embed returns the embeddings of pictures and texts in their common space. It is safe for many goroutines.
func (e *Engine) Embed(ctx context.Context, req EmbedRequest) (*EmbedResult, error) {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	s := e.scorer
	switch {
	case s == nil || s.spec.ImageEmbeds == "" || s.spec.TextEmbeds == "":
		return nil, e.noHeads("embedding")
	case len(req.Pictures)+len(req.Texts) == 0:
		return nil, badRequest("input", CodeInvalid, nil, "there is nothing to embed")
	}
	if err := boundHeads(len(req.Pictures), len(req.Texts)); err != nil {
		return nil, err
	}
	image, text, err := s.space(req.Score)
	if err != nil {
		return nil, err
	}
	ids, err := s.encode("input", req.Texts)
	if err != nil {
		return nil, err
	}
	r := &EmbedResult{TextTokens: countTokens(ids)}
	if len(req.Pictures) > 0 {
		tensors, err := e.scoredPictures(ctx, req.Pictures, nil)
		if err != nil {
			return nil, err
		}
		made, err := s.pictures(ctx, tensors, []string{image}, nil)
		if err == nil {
			r.Pictures, err = embeddings(made[image], len(req.Pictures))
		}
		if err != nil {
			return nil, scoreError(ctx, err)
		}
	}
	if len(ids) > 0 {
		made, err := s.texts(ctx, ids, []string{text}, nil)
		if err == nil {
			r.Texts, err = embeddings(made[text], len(ids))
		}
		if err != nil {
			return nil, scoreError(ctx, err)
		}
	}
	return r, nil
}

// scoredPictures makes the recipe's tensors of the pictures, or takes the given ones.
func (e *Engine) scoredPictures(ctx context.Context, list []Picture, given map[string]Array) (map[string]Array, error) {
	media := make([]medium, len(list))
	for i := range list {
		media[i].pictures = []*Picture{&list[i]}
	}
	placed, err := e.pictures.place(media, PictureOptions{})
	if err != nil || given != nil {
		return given, err
	}
	return e.pictures.prepare(ctx, placed)
}

// scoreError gives the reason why ctx ended in place of what that did to the graphs.
func scoreError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func countTokens(texts [][]int32) int {
	n := 0
	for _, ids := range texts {
		n += len(ids)
	}
	return n
}

// embeddings cuts [items, rows, width] or [items, width] into items.
func embeddings(a Array, items int) ([]Embedding, error) {
	rows, width, err := rowsOf(a, items)
	if err != nil {
		return nil, err
	}
	out := make([]Embedding, items)
	for i := range out {
		data := a.Data[i*rows*width : (i+1)*rows*width]
		for at := 0; at < len(data); at += width {
			normalize(data[at : at+width]) // a score's own embeddings may carry its scale
		}
		if rows == 1 {
			out[i].Vector = data
			continue
		}
		for r := range rows {
			out[i].Rows = append(out[i].Rows, data[r*width:(r+1)*width])
		}
		out[i].Vector = meanDirection(out[i].Rows)
	}
	return out, nil
}

// space returns the embeddings that a similarity compares; of no name, the model's own.
func (s *scorer) space(score string) (image, text string, err error) {
	if score == "" {
		return s.spec.ImageEmbeds, s.spec.TextEmbeds, nil
	}
	var known []string
	for _, have := range s.spec.Scores {
		if have.Kind != manifest.KindSimilarity {
			continue
		}
		if have.Name == score {
			image, text = s.spec.Embeds(have)
			return image, text, nil
		}
		known = append(known, have.Name)
	}
	return "", "", badRequest("score", CodeInvalid, nil, "the model has no similarity %.40q; known are %s", score, strings.Join(known, ", "))
}

// rowsOf checks that an array holds rows of embeddings for so many items.
func rowsOf(a Array, items int) (rows, width int, err error) {
	n := len(a.Shape)
	if n != 2 && n != 3 || a.Shape[0] != int64(items) || a.size() == 0 || len(a.Data) != a.size() {
		return 0, 0, fmt.Errorf("embeddings of %d items have the shape %v", items, a.Shape)
	}
	if n == 2 {
		return 1, int(a.Shape[1]), nil
	}
	return int(a.Shape[1]), int(a.Shape[2]), nil
}

// meanDirection is the mean of rows, scaled to length 1.
func meanDirection(rows [][]float32) []float32 {
	sum := make([]float32, len(rows[0]))
	for _, row := range rows {
		for i, v := range row {
			sum[i] += v
		}
	}
	normalize(sum)
	return sum
}

// normalize scales a vector to length 1; false when it has none.
func normalize(v []float32) bool {
	length := math.Sqrt(dot(v, v))
	if !(length > 0) || math.IsInf(length, 0) {
		return false
	}
	for i := range v {
		v[i] = float32(float64(v[i]) / length)
	}
	return true
}

func dot(a, b []float32) float64 {
	sum := 0.0
	for i, v := range a {
		sum += float64(v) * float64(b[i])
	}
	return sum
}

// similarity is scale times the largest dot product of a picture's rows with a text.
func similarity(rows []float32, text []float32, scale float64) float32 {
	best := math.Inf(-1)
	for at := 0; at < len(rows); at += len(text) {
		best = max(best, dot(rows[at:at+len(text)], text))
	}
	return float32(scale * best)
}

// similarities compares embeddings [pictures, (rows,) width] with [texts, width].
func similarities(score manifest.Score, pictures, texts Array, n, m int) ([][]float32, error) {
	rows, width, err := rowsOf(pictures, n)
	if err != nil {
		return nil, err
	}
	if one, textWidth, err := rowsOf(texts, m); err != nil || one != 1 || textWidth != width {
		return nil, fmt.Errorf("embeddings of pictures are %v and those of texts %v", pictures.Shape, texts.Shape)
	}
	values := newMatrix(n, m)
	for i := range values {
		for j := range values[i] {
			values[i][j] = similarity(pictures.Data[i*rows*width:(i+1)*rows*width], texts.Data[j*width:(j+1)*width], score.Scale)
		}
	}
	return values, nil
}

func newMatrix(n, m int) [][]float32 {
	all := make([]float32, n*m)
	values := make([][]float32, n)
	for i := range values {
		values[i] = all[i*m : (i+1)*m : (i+1)*m]
	}
	return values
}

func matrixArray(values [][]float32) Array {
	a := Array{Shape: []int64{int64(len(values)), int64(len(values[0]))}}
	for _, row := range values {
		a.Data = append(a.Data, row...)
	}
	return a
}

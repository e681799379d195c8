// Cases of models that compare pictures with texts: ids of the texts, embeddings, scores.

package verify

import (
	"context"
	"fmt"
	"math"
	"slices"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
	"glimpse/manifest"
)

// exactTolerance is that of cosines, probabilities and normalised embeddings, absolute.
const exactTolerance = 1e-5

// aliases are names under which golden sets store an array a second time: what enters the Q-Former is what the vision
// model gives.
var aliases = map[string]string{"qformer_image": "vision_features", "logits_per_image_c": "logits_c", "logits_per_image_g": "logits_g"}

// scores runs a case with texts.
func (k *checker) scores(ctx context.Context) {
	if k.engine.Manifest().Scoring == nil {
		k.fail("texts", "%v", engine.ErrNoScores)
		return
	}
	pictures, err := k.read(k.c.Images)
	if err != nil {
		k.fail("case", "%v", err)
		return
	}
	req := engine.ScoreRequest{Pictures: pictures, Texts: k.c.Texts}
	fromFile, err := k.engine.TraceScores(ctx, req, engine.TraceOptions{})
	if err != nil {
		k.fail("from the file", "%v", err)
		return
	}
	k.textIDs(fromFile)
	given, ok := k.storedPixels(fromFile.Arrays, nil)
	if !ok {
		return
	}
	stored := fromFile
	if given != nil {
		if stored, err = k.engine.TraceScores(ctx, req, engine.TraceOptions{Tensors: given}); err != nil {
			k.fail("from stored pixels", "%v", err)
			return
		}
	}
	k.arrays(stored.Arrays)
	k.matrix("itc", stored, k.c.Expected.ITC)
	k.matrix("itm_prob", stored, k.c.Expected.ITMProb)
}

// textIDs compares the ids of the texts, alone and padded. Padded rows are stored with the picture's placeholders in front,
// which upstream's model cuts off again.
func (k *checker) textIDs(t *engine.ScoreTrace) {
	want := k.c.Expected
	if want.TextInputIDs != nil {
		same := len(want.TextInputIDs) == len(t.TextIDs)
		for i := 0; same && i < len(t.TextIDs); i++ {
			same = slices.Equal(t.TextIDs[i], want.TextInputIDs[i])
		}
		k.equal("text_input_ids", same, "have %v, want %v", t.TextIDs, want.TextInputIDs)
	}
	placeholders := 0
	if n := want.NumImageTokens; n != nil {
		placeholders = n.Total()
		have := k.engine.Manifest().Picture.TokensPerTile
		k.equal("num_image_tokens", have == placeholders, "have %d, want %d", have, placeholders)
	}
	text := k.engine.Manifest().Scoring.Text
	k.padded("padded_input_ids", t.Arrays[text.IDs], want.PaddedInputIDs, placeholders)
	k.padded("padded_attention_mask", t.Arrays[text.Mask], want.PaddedAttentionMask, placeholders)
}

func (k *checker) padded(name string, have engine.Array, want [][]int64, placeholders int) {
	if want == nil {
		return
	}
	var flat []int64
	for _, row := range want {
		if len(row) < placeholders {
			k.fail(name, "a stored row has %d values, fewer than the %d of a picture", len(row), placeholders)
			return
		}
		flat = append(flat, row[placeholders:]...)
	}
	same := len(have.Shape) == 2 && have.Shape[0] == int64(len(want)) && slices.Equal(have.Int64, flat)
	k.equal(name, same, "have %v of shape %v, want %v", have.Int64, have.Shape, flat)
}

// matrix compares a matrix of cases.json.
func (k *checker) matrix(name string, t *engine.ScoreTrace, want [][]float64) {
	if want == nil {
		return
	}
	row := Row{Array: name + " in cases.json", Tolerance: exactTolerance, OK: true}
	if k.half {
		row.Tolerance = halfExact
	}
	have := t.Arrays[name]
	i := 0
	for _, values := range want {
		for _, v := range values {
			if i >= len(have.Data) {
				k.fail(row.Array, "have shape %v, want %d rows of %d", have.Shape, len(want), len(values))
				return
			}
			d := math.Abs(float64(have.Data[i]) - v)
			i++
			if !(d <= row.Tolerance) {
				row.OK, row.Note = false, fmt.Sprintf("value %d: have %g, want %g", i-1, have.Data[i-1], v)
			}
			row.MaxAbsDiff = max(row.MaxAbsDiff, d)
		}
	}
	if i != len(have.Data) {
		row.OK, row.Note = false, fmt.Sprintf("have %d values, want %d", len(have.Data), i)
	}
	k.row(row)
}

// exact reports whether an array is a score or an embedding of the model's heads.
func exact(s *manifest.Scoring, name string) bool {
	if s == nil {
		return false
	}
	if name == s.ImageEmbeds || name == s.TextEmbeds {
		return true
	}
	return slices.ContainsFunc(s.Scores, func(score manifest.Score) bool {
		image, text := s.Embeds(score)
		return name == score.Name || name == score.Output || score.Kind == manifest.KindSimilarity && (name == image || name == text)
	})
}

// tolerance returns what an array may be off, absolute.
func (k *checker) tolerance(name string, want golden.Array) float64 {
	isExact := exact(k.engine.Manifest().Scoring, name)
	switch {
	case k.half:
		return halfTolerance(name, want, isExact)
	case isExact:
		return exactTolerance
	}
	return tolerance(name, want)
}

// Ranking pictures for a text as retrieval does it: similarities of embeddings, which are cheap and can be stored, pick a
// shortlist; a pair head, which looks at picture and text together, orders it.

package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"glimpse/manifest"
)

// Document is one thing to be ranked: a picture, its stored embedding, or both.
type Document struct {
	Picture *Picture
	// Embedding is what Embed gave for the picture: its rows, or its vector as the only one. With it the picture goes
	// through the graphs only when it comes on the shortlist.
	Embedding [][]float32
}

// RerankRequest asks for the documents that fit the query best.
type RerankRequest struct {
	Query     string
	Documents []Document
	Top       int // documents wanted; 0: all
	Shortlist int // documents that the pair head looks at, at least Top; 0: 4 × Top
}

// RerankResult has the best documents, best first.
type RerankResult struct {
	Ranked     []Ranked
	Reordered  int // pictures that the pair head looked at
	TextTokens int
}

// Ranked is a document's place.
type Ranked struct {
	Index     int                // in the request
	Relevance float32            // the pair head's score where it looked at the picture, the similarity elsewhere
	Scores    map[string]float32 // by the scores' names
}

// defaultShortlist is how many times Top documents the pair head looks at.
const defaultShortlist = 4

// Rerank orders documents by their fit to a text. It is safe for many goroutines.
//
// The first similarity of the manifest ranks all documents. Of the shortlist, those with pictures are scored by the first
// pair head and come first, by that score; those with an embedding alone follow, by similarity. A model without pair
// heads ranks by similarity.
func (e *Engine) Rerank(ctx context.Context, req RerankRequest) (*RerankResult, error) {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	r, err := e.newRanking(req)
	if err != nil {
		return nil, err
	}
	if err := r.similarities(ctx); err != nil {
		return nil, scoreError(ctx, err)
	}
	if r.pair != nil {
		if err := r.pairs(ctx); err != nil {
			return nil, scoreError(ctx, err)
		}
	}
	return r.result(), nil
}

// ranking is a request on its way.
type ranking struct {
	engine        *Engine
	req           RerankRequest
	similar, pair *manifest.Score
	ids           [][]int32 // the query's
	ranked        []Ranked  // by similarity, best first
	fresh         []int     // documents whose embedding is computed here
	freshTensors  map[string]Array
	reordered     map[int]bool
}

func (e *Engine) newRanking(req RerankRequest) (*ranking, error) {
	r := &ranking{engine: e, req: req, reordered: map[int]bool{}}
	if e.scorer == nil {
		return nil, e.noHeads("scoring")
	}
	for i := range e.scorer.spec.Scores {
		switch score := &e.scorer.spec.Scores[i]; {
		case score.Kind == manifest.KindSimilarity && r.similar == nil:
			r.similar = score
		case score.Kind == manifest.KindPair && r.pair == nil:
			r.pair = score
		}
	}
	if r.similar == nil {
		return nil, badRequest("model", CodeUnsupported, ErrNoScores, "model %s has no embeddings to make a shortlist with", e.name)
	}
	n := len(req.Documents)
	switch {
	case n == 0:
		return nil, badRequest("documents", CodeInvalid, nil, "there are no documents to rank")
	case n > maxScorePairs:
		return nil, badRequest("documents", CodeInvalid, nil, "%d documents; one request may have %d", n, maxScorePairs)
	case req.Top < 0 || req.Shortlist < 0 || req.Shortlist > 0 && req.Shortlist < req.Top:
		return nil, badRequest("top_n", CodeInvalid, nil, "%d documents are wanted from a shortlist of %d", req.Top, req.Shortlist)
	}
	if r.req.Top == 0 || r.req.Top > n {
		r.req.Top = n
	}
	if r.req.Shortlist == 0 {
		r.req.Shortlist = defaultShortlist * r.req.Top
	}
	r.req.Shortlist = min(max(r.req.Shortlist, r.req.Top), n)
	var pictures int
	for i, d := range req.Documents {
		if d.Picture != nil {
			pictures++
		}
		switch {
		case d.Picture == nil && d.Embedding == nil:
			return nil, badRequest(fmt.Sprintf("documents[%d]", i), CodeInvalid, nil, "document %d has neither a picture nor an embedding", i)
		case d.Embedding == nil:
			r.fresh = append(r.fresh, i)
		}
	}
	if pictures > maxScorePictures {
		return nil, badRequest("documents", CodeInvalid, nil, "%d pictures; one request may have %d", pictures, maxScorePictures)
	}
	ids, err := e.scorer.text.encode("query", req.Query, false)
	r.ids = [][]int32{ids}
	return r, err
}

// similarities ranks every document by the similarity of its embedding.
func (r *ranking) similarities(ctx context.Context) error {
	s := r.engine.scorer
	imageName, textName := s.spec.Embeds(*r.similar)
	texts, err := s.texts(ctx, r.ids, []string{textName}, nil)
	if err != nil {
		return err
	}
	text := texts[textName].Data
	values := make([]float32, len(r.req.Documents))
	for i, d := range r.req.Documents {
		if d.Embedding == nil {
			continue
		}
		rows, err := storedRows(d.Embedding, len(text))
		if err != nil {
			return badRequest(fmt.Sprintf("documents[%d].embedding", i), CodeInvalid, err, "the embedding of document %d: %v", i, err)
		}
		values[i] = similarity(rows, text, r.similar.Scale)
	}
	if len(r.fresh) > 0 {
		wanted := []string{imageName}
		if r.pair != nil {
			wanted = s.pictureTensors(true, true)
		}
		if r.freshTensors, err = r.run(ctx, r.fresh, wanted); err != nil {
			return err
		}
		made, err := similarities(*r.similar, r.freshTensors[imageName], texts[textName], len(r.fresh), 1)
		if err != nil {
			return err
		}
		for i, at := range r.fresh {
			values[at] = made[i][0]
		}
	}
	for i, v := range values {
		r.ranked = append(r.ranked, Ranked{Index: i, Relevance: v, Scores: map[string]float32{r.similar.Name: v}})
	}
	byRelevance(r.ranked)
	return nil
}

// byRelevance sorts best first, equals in the request's order.
func byRelevance(list []Ranked) {
	slices.SortFunc(list, func(a, b Ranked) int {
		return cmp.Or(cmp.Compare(b.Relevance, a.Relevance), cmp.Compare(a.Index, b.Index))
	})
}

// storedRows checks a stored embedding and returns its rows one after the other, each of length 1 again: what was written
// with few digits is not quite.
func storedRows(rows [][]float32, width int) ([]float32, error) {
	if len(rows) == 0 {
		return nil, fmt.Errorf("it has no rows")
	}
	out := make([]float32, 0, len(rows)*width)
	for i, row := range rows {
		if len(row) != width {
			return nil, fmt.Errorf("row %d has %d values; this model's have %d", i, len(row), width)
		}
		out = append(out, row...)
		if !normalize(out[i*width:]) {
			return nil, fmt.Errorf("row %d has no direction", i)
		}
	}
	return out, nil
}

// run prepares the pictures of some documents and runs the picture graphs on them.
func (r *ranking) run(ctx context.Context, documents []int, wanted []string) (map[string]Array, error) {
	pictures := make([]Picture, len(documents))
	for i, at := range documents {
		pictures[i] = *r.req.Documents[at].Picture
	}
	tensors, err := r.engine.scoredPictures(ctx, pictures, nil)
	if err != nil {
		return nil, err
	}
	return r.engine.scorer.pictures(ctx, tensors, wanted, nil)
}

// pairs lets the pair head score the pictures of the shortlist. Those whose tensors are there already and those that had
// a stored embedding are two lots.
func (r *ranking) pairs(ctx context.Context) error {
	s := r.engine.scorer
	place := map[int]int{} // document → its row among the fresh
	for i, at := range r.fresh {
		place[at] = i
	}
	var known, stored []int
	var rows []int
	for _, d := range r.ranked[:r.req.Shortlist] {
		if row, ok := place[d.Index]; ok {
			known, rows = append(known, d.Index), append(rows, row)
		} else if r.req.Documents[d.Index].Picture != nil {
			stored = append(stored, d.Index)
		}
	}
	scores := map[int]float32{}
	score := func(documents []int, tensors map[string]Array) error {
		out, _, err := s.pairs(ctx, *r.pair, tensors, r.ids, nil)
		if err != nil {
			return err
		}
		for i, at := range documents {
			scores[at] = out[r.pair.Output].Data[i]
		}
		return nil
	}
	if len(known) > 0 {
		picked := map[string]Array{}
		for _, name := range s.pictureTensors(false, true) {
			picked[name] = r.freshTensors[name].pick(rows)
		}
		if err := score(known, picked); err != nil {
			return err
		}
	}
	if len(stored) > 0 {
		tensors, err := r.run(ctx, stored, s.pictureTensors(false, true))
		if err != nil {
			return err
		}
		if err := score(stored, tensors); err != nil {
			return err
		}
	}
	for i := range r.ranked {
		d := &r.ranked[i]
		if v, ok := scores[d.Index]; ok {
			d.Relevance, d.Scores[r.pair.Name], r.reordered[d.Index] = v, v, true
		}
	}
	return nil
}

// pick returns the named rows of the leading dimension.
func (a Array) pick(rows []int) Array {
	width := a.size() / int(a.Shape[0])
	out := Array{Shape: append([]int64{int64(len(rows))}, a.Shape[1:]...), Data: make([]float32, 0, len(rows)*width)}
	for _, row := range rows {
		out.Data = append(out.Data, a.Data[row*width:(row+1)*width]...)
	}
	return out
}

// result puts what the pair head looked at first.
func (r *ranking) result() *RerankResult {
	var first, rest []Ranked
	for _, d := range r.ranked[:r.req.Shortlist] {
		if r.reordered[d.Index] {
			first = append(first, d)
		} else {
			rest = append(rest, d)
		}
	}
	byRelevance(first)
	return &RerankResult{Ranked: slices.Concat(first, rest)[:r.req.Top], Reordered: len(first), TextTokens: countTokens(r.ids)}
}

package batch

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/batch/sink"
	"glimpse/engine"
	"glimpse/manifest"
)

// headed is a fake with embedding and scoring heads.
type headed struct {
	fake
	scores string
}

func (h *headed) Manifest() *manifest.Manifest {
	m := h.fake.Manifest()
	m.Scoring = &manifest.Scoring{}
	return m
}

func (h *headed) Embed(_ context.Context, req engine.EmbedRequest) (*engine.EmbedResult, error) {
	return &engine.EmbedResult{Pictures: []engine.Embedding{{Vector: []float32{0.6, 0.8}}}}, nil
}

func (h *headed) Score(_ context.Context, req engine.ScoreRequest) (*engine.ScoreResult, error) {
	if !strings.HasPrefix(req.Texts[0], "<"+string(req.Pictures[0].Data)+">") {
		return nil, errors.New("another picture's caption")
	}
	return &engine.ScoreResult{Scores: []engine.ScoreMatrix{{Name: "itc", Values: [][]float32{{0.1}}}, {Name: h.scores, Values: [][]float32{{0.75}}}}}, nil
}

func TestEmbeddingAndScore(t *testing.T) {
	dir := pictures(t, "a cat", "corrupt")
	out := filepath.Join(t.TempDir(), "out.jsonl")
	o := Options{Inputs: []string{dir}, Ask: Ask{Embedding: true, ITM: true}, Sink: sink.Options{Out: out}}
	mustCaption(t, &headed{scores: "itm"}, o)
	rows := readFile(t, out)
	if r := rows[0]; r.ITM == nil || *r.ITM != 0.75 || len(r.Embedding) != 2 {
		t.Errorf("%+v", r)
	}
	if rows[1].Error == nil || rows[1].ITM != nil || rows[1].Embedding != nil {
		t.Errorf("%+v", rows[1])
	}
	if _, err := Caption(context.Background(), &fake{}, o); !errors.Is(err, ErrInput) {
		t.Errorf("a model without heads: %v", err)
	}
	o.Sink.Out = filepath.Join(t.TempDir(), "other.jsonl")
	if _, err := Caption(context.Background(), &headed{scores: "other"}, o); !errors.Is(err, engine.ErrNoScores) {
		t.Errorf("a model without this score: %v", err)
	}
}

// pointing is a fake whose answers hold boxes.
type pointing struct{ fake }

func (p *pointing) Manifest() *manifest.Manifest {
	m := p.fake.Manifest()
	m.Boxes = &manifest.Boxes{}
	return m
}

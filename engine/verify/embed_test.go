package verify_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/engine"
)

// A model that compares in two ways gives the embeddings of either: their cosine is the score without its scale.
func TestEmbeddingsOfANamedScore(t *testing.T) {
	e := openSet(t, "internvl14b-tiny")
	data, err := os.ReadFile(filepath.Join(goldens, "media", "cat.png"))
	if err != nil {
		t.Fatal(err)
	}
	pictures, texts := []engine.Picture{{Data: data}}, []string{"a cat", "a rocket"}
	scores, err := e.Score(t.Context(), engine.ScoreRequest{Pictures: pictures, Texts: texts})
	if err != nil {
		t.Fatal(err)
	}
	const scale = 15.888967514038086 // of the golden set's cases.json
	for i, name := range []string{"logits_c", "logits_g"} {
		r, err := e.Embed(t.Context(), engine.EmbedRequest{Pictures: pictures, Texts: texts, Score: name})
		if err != nil {
			t.Fatal(err)
		}
		for j, text := range r.Texts {
			var dot, length float64
			for k, v := range r.Pictures[0].Vector {
				dot += float64(v) * float64(text.Vector[k])
				length += float64(v) * float64(v)
			}
			want := float64(scores.Scores[i].Values[0][j])
			if scores.Scores[i].Name != name || math.Abs(scale*dot-want) > 1e-4 || math.Abs(length-1) > 1e-5 {
				t.Errorf("%s with text %d: %v, want %v; length² %v", name, j, scale*dot, want, length)
			}
		}
	}
	_, err = e.Embed(t.Context(), engine.EmbedRequest{Texts: texts, Score: "itm"})
	var bad *engine.RequestError
	if !errors.As(err, &bad) || !strings.Contains(err.Error(), "logits_c, logits_g") {
		t.Errorf("an unknown score: %v", err)
	}
}

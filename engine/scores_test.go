package engine_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"glimpse/engine"
)

var (
	scorePictures = []string{"cat.png", "rocket_wide.png", "coffee.png", "logo_rgba.png", "camera_gray.png", "tiny_40x30.png", "astronaut_portrait.png"}
	scoreTexts    = []string{"a photo of a cat", "A rocket on the launch pad in the evening, café style.", "a cup of coffee", "", "x",
		"Two people are drinking coffee at a wooden table next to a spoon", "[SEP]"}
)

func loadPictures(t testing.TB, names ...string) []engine.Picture {
	var out []engine.Picture
	for _, name := range names {
		out = append(out, *media(t, name))
	}
	return out
}

// Many pictures and texts in batches of any size score as each pair alone: padding and company change rounding only.
func TestScoresOfBatchesEqualPairs(t *testing.T) {
	var all *engine.ScoreResult
	texts := slices.Concat(scoreTexts, slices.Repeat([]string{"one more"}, 20)) // more pairs than one run takes
	for _, batch := range []int{1, 3, 8} {
		e := openGolden(t, "blip2-itm-tiny", engine.Options{PictureBatch: batch})
		r, err := e.Score(t.Context(), engine.ScoreRequest{Pictures: loadPictures(t, scorePictures...), Texts: texts})
		if err != nil {
			t.Fatal(err)
		}
		if all == nil {
			all = r
			continue
		}
		if diff := cmp.Diff(all.Scores, r.Scores, cmpopts.EquateApprox(0, 1e-5)); diff != "" {
			t.Errorf("batches of %d: %s", batch, diff)
		}
	}
	if len(all.Scores) != 2 || all.Scores[0].Name != "itc" || all.Scores[1].Name != "itm" || len(all.Scores[1].Values) != len(scorePictures) {
		t.Fatalf("%+v", all.Scores)
	}
	e := openGolden(t, "blip2-itm-tiny", engine.Options{})
	var wg sync.WaitGroup
	for i, name := range scorePictures {
		for j, text := range scoreTexts {
			wg.Go(func() {
				r, err := e.Score(t.Context(), engine.ScoreRequest{Pictures: loadPictures(t, name), Texts: []string{text}})
				if err != nil {
					t.Error(err)
					return
				}
				for k, s := range r.Scores {
					if d := math.Abs(float64(s.Values[0][0] - all.Scores[k].Values[i][j])); !(d < 1e-5) {
						t.Errorf("%s of %s and %q: %v alone, %v in company", s.Name, name, text, s.Values[0][0], all.Scores[k].Values[i][j])
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestEmbed(t *testing.T) {
	e := openGolden(t, "blip2-itm-tiny", engine.Options{PictureBatch: 2})
	pictures := loadPictures(t, scorePictures...)
	both, err := e.Embed(t.Context(), engine.EmbedRequest{Pictures: pictures, Texts: scoreTexts})
	if err != nil {
		t.Fatal(err)
	}
	length := func(v []float32) (n float64) {
		for _, x := range v {
			n += float64(x) * float64(x)
		}
		return math.Sqrt(n)
	}
	for i, v := range slices.Concat(both.Pictures, both.Texts) {
		for _, row := range slices.Concat([][]float32{v.Vector}, v.Rows) {
			if len(row) != 24 || math.Abs(length(row)-1) > 1e-5 {
				t.Errorf("embedding %d has length %v in %d dimensions", i, length(row), len(row))
			}
		}
		if rows := len(v.Rows); rows != 8 && i < len(pictures) || rows != 0 && i >= len(pictures) {
			t.Errorf("embedding %d has %d rows", i, rows)
		}
	}
	texts, err := e.Embed(t.Context(), engine.EmbedRequest{Texts: scoreTexts})
	if err != nil || texts.Pictures != nil {
		t.Fatalf("%v, %v", texts, err)
	}
	if diff := cmp.Diff(both.Texts, texts.Texts, cmpopts.EquateApprox(0, 1e-6)); diff != "" || texts.TextTokens != both.TextTokens {
		t.Error(diff)
	}
}

// Stored embeddings, pictures and both rank alike; the pair head orders what it can look at.
func TestRerank(t *testing.T) {
	e := openGolden(t, "blip2-itm-tiny", engine.Options{})
	pictures := loadPictures(t, scorePictures...)
	const query = "a photo of a cat"
	scores, err := e.Score(t.Context(), engine.ScoreRequest{Pictures: pictures, Texts: []string{query}})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := e.Embed(t.Context(), engine.EmbedRequest{Pictures: pictures})
	if err != nil {
		t.Fatal(err)
	}
	var bySimilarity, byPair []int
	for i := range pictures {
		bySimilarity, byPair = append(bySimilarity, i), append(byPair, i)
	}
	descending := func(k int) func(a, b int) int {
		return func(a, b int) int {
			return int(math.Copysign(1, float64(scores.Scores[k].Values[b][0]-scores.Scores[k].Values[a][0])))
		}
	}
	slices.SortFunc(bySimilarity, descending(0))
	slices.SortFunc(byPair, descending(1))
	shortlisted := slices.Clone(bySimilarity[:4])
	slices.SortFunc(shortlisted, descending(1))
	documents := func(picture, embedding func(i int) bool) []engine.Document {
		docs := make([]engine.Document, len(pictures))
		for i := range docs {
			if picture(i) {
				docs[i].Picture = &pictures[i]
			}
			if embedding(i) {
				docs[i].Embedding = stored.Pictures[i].Rows
			}
		}
		return docs
	}
	yes, no, odd := func(int) bool { return true }, func(int) bool { return false }, func(i int) bool { return i%2 == 1 }
	for _, c := range []struct {
		name           string
		docs           []engine.Document
		top, shortlist int
		want           []int
		looked         int
	}{
		{"pictures", documents(yes, no), 0, 0, byPair, len(pictures)},
		{"stored and pictures", documents(yes, yes), 0, 0, byPair, len(pictures)},
		{"some stored", documents(yes, odd), 0, 0, byPair, len(pictures)},
		{"stored only", documents(no, yes), 0, 0, bySimilarity, 0},
		{"a shortlist", documents(yes, odd), 2, 4, shortlisted[:2], 4},
		{"the default shortlist", documents(yes, yes), 1, 0, shortlisted[:1], 4},
	} {
		r, err := e.Rerank(t.Context(), engine.RerankRequest{Query: query, Documents: c.docs, Top: c.top, Shortlist: c.shortlist})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var order []int
		for _, d := range r.Ranked {
			order = append(order, d.Index)
			if s := d.Scores["itc"]; math.Abs(float64(s-scores.Scores[0].Values[d.Index][0])) > 1e-5 {
				t.Errorf("%s: document %d has itc %v", c.name, d.Index, s)
			}
		}
		if diff := cmp.Diff(c.want, order); diff != "" || r.Reordered != c.looked {
			t.Errorf("%s: %d looked at, %s", c.name, r.Reordered, diff)
		}
	}
}

func TestScoreRequestsAreChecked(t *testing.T) {
	e := openGolden(t, "blip2-itm-tiny", engine.Options{})
	cat := loadPictures(t, "cat.png")
	broken := []engine.Picture{{Data: []byte("no picture"), Source: "broken.png"}}
	score := func(pictures []engine.Picture, texts ...string) func() error {
		return func() error {
			_, err := e.Score(t.Context(), engine.ScoreRequest{Pictures: pictures, Texts: texts})
			return err
		}
	}
	rank := func(top, short int, docs ...engine.Document) func() error {
		return func() error {
			_, err := e.Rerank(t.Context(), engine.RerankRequest{Query: "a", Documents: docs, Top: top, Shortlist: short})
			return err
		}
	}
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		run   func() error
		param string
		says  string
	}{
		"no pictures":     {score(nil, "a"), "images", "no pictures"},
		"no texts":        {score(cat), "texts", "no texts"},
		"long text":       {score(cat, "a", strings.Repeat("cat ", 70)), "texts[1]", "72 tokens"},
		"endless text":    {score(cat, strings.Repeat("cat", 1<<20)), "texts[0]", "bytes"},
		"NUL":             {score(cat, "a\x00"), "texts[0]", "NUL"},
		"broken picture":  {score(broken, "a"), "image", "broken.png"},
		"too many pairs":  {score(slices.Repeat(cat, 300), slices.Repeat([]string{"a"}, 300)...), "images", "65536"},
		"no documents":    {rank(0, 0), "documents", "no documents"},
		"empty document":  {rank(0, 0, engine.Document{}), "documents[0]", "neither"},
		"short shortlist": {rank(3, 2, engine.Document{Picture: &cat[0]}), "top_n", "shortlist"},
		"no rows":         {rank(0, 0, engine.Document{Embedding: [][]float32{}}), "documents[0].embedding", "no rows"},
		"not a number":    {rank(0, 0, engine.Document{Embedding: [][]float32{slices.Repeat([]float32{nan}, 24)}}), "documents[0].embedding", "direction"},
		"nothing":         {func() error { _, err := e.Embed(t.Context(), engine.EmbedRequest{}); return err }, "input", "nothing"},
	} {
		err := c.run()
		var bad *engine.RequestError
		if !errors.As(err, &bad) || bad.Param != c.param || !strings.Contains(bad.Message, c.says) {
			t.Errorf("%s: %v (%+v)", name, err, bad)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Score(ctx, engine.ScoreRequest{Pictures: cat, Texts: []string{"a"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := e.Generate(t.Context(), about("a", &cat[0])); !errors.Is(err, engine.ErrNoDecoder) {
		t.Errorf("a model without decoder: %v", err)
	}
}

package engine

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func seed(v uint64) *uint64 { return &v }

// support returns which ids can be drawn: the candidates after every filter.
func support(s Sampling, logits []float32) []int32 {
	w := newSamplerScratch(len(logits))
	q := newSampler(s, len(logits), 0)
	best, err := argmax(logits)
	if err != nil {
		panic(err)
	}
	var ids []int32
	for _, c := range q.filter(logits, logits[best], w) {
		ids = append(ids, c.id)
	}
	return ids
}

// ofProbabilities returns logits whose softmax is p.
func ofProbabilities(p ...float64) []float32 {
	logits := make([]float32, len(p))
	for i, v := range p {
		logits[i] = float32(math.Log(v))
	}
	return logits
}

// The expected sets were worked out by hand from the definitions in transformers' logits_process.py.
func TestFilters(t *testing.T) {
	p := ofProbabilities(0.1, 0.4, 0.05, 0.25, 0.2)
	for _, c := range []struct {
		name   string
		s      Sampling
		logits []float32
		want   []int32
	}{
		{"temperature alone keeps all", Sampling{Temperature: 1}, p, []int32{0, 1, 2, 3, 4}},
		{"top-k 2", Sampling{Temperature: 1, TopK: 2}, p, []int32{1, 3}},
		{"top-k beyond the vocabulary", Sampling{Temperature: 1, TopK: 9}, p, []int32{0, 1, 2, 3, 4}},
		{"top-k keeps what equals the k-th", Sampling{Temperature: 1, TopK: 2}, []float32{1, 3, 2, 2, 0}, []int32{1, 2, 3}},
		// Ascending sums 0.05 0.15 0.35 0.6 1: those at most 0.3 go.
		{"top-p 0.7", Sampling{Temperature: 1, TopP: 0.7}, p, []int32{1, 3, 4}},
		{"top-p 0.5", Sampling{Temperature: 1, TopP: 0.5}, p, []int32{1, 3}},
		{"top-p tiny keeps the best", Sampling{Temperature: 1, TopP: 1e-20}, p, []int32{1}},
		{"top-p 1 is off", Sampling{Temperature: 1, TopP: 1}, p, []int32{0, 1, 2, 3, 4}},
		{"min-p 0.45", Sampling{Temperature: 1, MinP: 0.45}, p, []int32{1, 3, 4}},
		{"min-p 1 keeps the best", Sampling{Temperature: 1, MinP: 1}, p, []int32{1}},
		// Temperature comes first: at 0.5 probabilities are squared, 0.01 0.16 0.0025 0.0625 0.04 of 0.275, and the
		// ascending sums are 0.009 0.045 0.19 0.418 1.
		{"top-p after temperature", Sampling{Temperature: 0.5, TopP: 0.7}, p, []int32{1, 3}},
		{"min-p after temperature", Sampling{Temperature: 0.5, MinP: 0.3}, p, []int32{1, 3}},
		// Top-p works on what top-k left: 0.4 and 0.25 are 0.615 and 0.385 then.
		{"top-p after top-k", Sampling{Temperature: 1, TopK: 2, TopP: 0.6}, p, []int32{1}},
		{"ties go to the lower id", Sampling{Temperature: 1, TopP: 0.3}, []float32{2, 2, 2, 2}, []int32{0, 1}},
		{"masked tokens never come", Sampling{Temperature: 1}, []float32{0, float32(math.Inf(-1)), 0}, []int32{0, 2}},
		{"nearly no temperature", Sampling{Temperature: 1e-300}, p, []int32{1}},
	} {
		if diff := cmp.Diff(c.want, support(c.s, c.logits)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestGreedy(t *testing.T) {
	for _, c := range []struct {
		logits []float32
		want   int32
	}{
		{[]float32{0, 2, 1}, 1},
		{[]float32{3, 1, 3}, 0},
		{[]float32{-5, float32(math.Inf(-1)), -4}, 2},
	} {
		got, err := newSampler(Sampling{}, 3, 0).next(c.logits, newSamplerScratch(3))
		if err != nil || got != c.want {
			t.Errorf("greedy of %v is %d, %v; want %d", c.logits, got, err, c.want)
		}
	}
}

func TestBadLogits(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, logits := range [][]float32{{0, nan}, {nan, 0}, {inf, 0}, {-inf, -inf}, {}} {
		for _, s := range []Sampling{{}, {Temperature: 1}, {Temperature: 1, TopK: 1, TopP: 0.5}, {RepetitionPenalty: 2}} {
			if _, err := newSampler(s, 2, 0).next(logits, newSamplerScratch(2)); !errors.Is(err, ErrBadLogits) {
				t.Errorf("logits %v with %+v: %v", logits, s, err)
			}
		}
	}
}

// Positive scores are divided and negative ones multiplied, once for each distinct id.
func TestRepetitionPenalty(t *testing.T) {
	s := newSampler(Sampling{RepetitionPenalty: 2}, 4, 8)
	for _, id := range []int32{0, 1, 1, 0, 3, 700, -1} {
		s.observe(id)
	}
	logits := []float32{4, -1, 1.5, 0}
	w := newSamplerScratch(4)
	if diff := cmp.Diff([]float32{2, -2, 1.5, 0}, s.adjusted(logits, w)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]float32{4, -1, 1.5, 0}, logits); diff != "" {
		t.Errorf("the logits themselves were changed: %s", diff)
	}
	if id, _ := s.next([]float32{2, 0, 1.5, 0}, w); id != 2 {
		t.Errorf("greedy with a penalty draws %d, want 2", id)
	}
}

// Ten thousand draws: each token comes as often as its probability says, within five standard deviations.
func TestDistribution(t *testing.T) {
	const draws = 10_000
	p := []float64{0.1, 0.4, 0.05, 0.25, 0.2}
	s, w := newSampler(Sampling{Temperature: 1, Seed: seed(7)}, 5, 0), newSamplerScratch(5)
	var counts [5]float64
	for range draws {
		id, err := s.next(ofProbabilities(p...), w)
		if err != nil {
			t.Fatal(err)
		}
		counts[id]++
	}
	for i, n := range counts {
		if sd := math.Sqrt(draws * p[i] * (1 - p[i])); math.Abs(n-draws*p[i]) > 5*sd {
			t.Errorf("token %d came %v times of %d; its probability is %v", i, n, draws, p[i])
		}
	}
}

// referenceSupport follows transformers line by line: full sorts, cumulative sums, no shortcuts.
func referenceSupport(s Sampling, logits []float32) []int32 {
	type tok struct {
		id int32
		p  float64
	}
	high := slices.Max(logits)
	var list []tok
	sorted := slices.Sorted(slices.Values(logits))
	for i, v := range logits {
		if s.TopK > 0 && s.TopK < len(logits) && v < sorted[len(sorted)-s.TopK] {
			continue
		}
		list = append(list, tok{int32(i), math.Exp((float64(v) - float64(high)) / s.Temperature)})
	}
	if s.TopP > 0 && s.TopP < 1 {
		var total, sum float64
		for _, c := range list {
			total += c.p
		}
		slices.SortStableFunc(list, func(a, b tok) int {
			return worseFirst(candidate{a.id, a.p}, candidate{b.id, b.p})
		})
		for len(list) > 1 {
			if sum += list[0].p; sum > (1-s.TopP)*total {
				break
			}
			list = list[1:]
		}
	}
	var ids []int32
	for _, c := range list {
		if c.p >= s.MinP {
			ids = append(ids, c.id)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestFiltersEqualTheReference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		logits := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) float32 {
			return float32(rapid.IntRange(-16, 16).Draw(t, "quarter")) / 4 // many ties, no borderline sums
		}), 1, 200).Draw(t, "logits")
		s := Sampling{
			Temperature: rapid.Float64Range(0.1, 3).Draw(t, "temperature"),
			TopK:        rapid.IntRange(0, 60).Draw(t, "k"),
			TopP:        rapid.Float64Range(0, 1).Draw(t, "p"),
			MinP:        rapid.SampledFrom([]float64{0, 0.01, 0.1, 0.5}).Draw(t, "minp"),
		}
		if diff := cmp.Diff(referenceSupport(s, logits), support(s, logits)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// The same seed gives the same draws, and every draw comes from the filtered set.
func TestSeeds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		settings := Sampling{Temperature: 0.8, TopP: 0.9, Seed: seed(rapid.Uint64().Draw(t, "seed"))}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "logits"), 1))
		a, b := newSampler(settings, 50, 0), newSampler(settings, 50, 0)
		w, x := newSamplerScratch(50), newSamplerScratch(50)
		for range 20 {
			logits := make([]float32, 50)
			for i := range logits {
				logits[i] = float32(r.NormFloat64() * 3)
			}
			allowed := support(settings, logits)
			p, err := a.next(logits, w)
			q, _ := b.next(logits, x)
			if err != nil || p != q || !slices.Contains(allowed, p) {
				t.Fatalf("drew %d and %d (%v) from %v", p, q, err, allowed)
			}
		}
	})
}

func TestLogprobs(t *testing.T) {
	p := ofProbabilities(0.1, 0.4, 0.05, 0.25, 0.2)
	for i := range p {
		p[i] += 3 // a constant does not matter
	}
	own, top := logprobs(p, 4, 3)
	near := func(a float32, b float64) bool { return math.Abs(float64(a)-math.Log(b)) < 1e-6 }
	if !near(own, 0.2) {
		t.Errorf("logprob %v", own)
	}
	for i, want := range []struct {
		id int32
		p  float64
	}{{1, 0.4}, {3, 0.25}, {4, 0.2}} {
		if top[i].ID != want.id || !near(top[i].Logprob, want.p) {
			t.Errorf("alternative %d is %+v, want %+v", i, top[i], want)
		}
	}
	if _, top := logprobs([]float32{1, 2}, 0, 5); len(top) != 2 || top[0].ID != 1 {
		t.Errorf("more alternatives than tokens: %v", top)
	}
	if _, top := logprobs([]float32{1, 2, 2}, 0, 1); len(top) != 1 || top[0].ID != 1 {
		t.Errorf("ties: %v", top)
	}
}

func TestSamplingCheck(t *testing.T) {
	for _, s := range []Sampling{
		{Temperature: -1}, {Temperature: math.NaN()}, {Temperature: math.Inf(1)}, {TopP: -0.1}, {TopP: 1.1}, {TopP: math.NaN()},
		{MinP: 2}, {MinP: math.NaN()}, {RepetitionPenalty: -1}, {RepetitionPenalty: math.Inf(1)}, {TopK: -1},
	} {
		var bad *RequestError
		if !errors.As(s.check(), &bad) || bad.Param == "" {
			t.Errorf("%+v was accepted: %v", s, s.check())
		}
	}
	if err := (Sampling{Temperature: 1, TopP: 0.9, MinP: 0.1, RepetitionPenalty: 1.2, TopK: 40}).check(); err != nil {
		t.Error(err)
	}
}

func TestDrawingAllocatesNothing(t *testing.T) {
	logits := make([]float32, 5000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range logits {
		logits[i] = float32(r.NormFloat64())
	}
	w := newSamplerScratch(len(logits))
	for _, s := range []Sampling{{}, {Temperature: 1}, {Temperature: 0.7, TopK: 40, TopP: 0.9, MinP: 0.01, RepetitionPenalty: 1.1}} {
		q := newSampler(s, len(logits), 10)
		q.observe(3)
		if n := testing.AllocsPerRun(20, func() { q.next(logits, w) }); n != 0 {
			t.Errorf("%+v: %v allocations a token", s, n)
		}
	}
}

// What transformers' own processors leave of rows of logits, and with which probabilities (testdata/sampling.py).
func TestFiltersEqualTransformers(t *testing.T) {
	raw, err := os.ReadFile("testdata/sampling.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Settings struct {
				Temperature       float64 `json:"temperature"`
				TopP              float64 `json:"top_p"`
				MinP              float64 `json:"min_p"`
				RepetitionPenalty float64 `json:"repetition_penalty"`
				TopK              int     `json:"top_k"`
			} `json:"settings"`
			Logits        []float32 `json:"logits"`
			History       []int32   `json:"history"`
			IDs           []int32   `json:"ids"`
			Probabilities []float64 `json:"probabilities"`
		} `json:"cases"`
	}
	if err := json.Unmarshal(raw, &file); err != nil || len(file.Cases) == 0 {
		t.Fatalf("%d cases: %v", len(file.Cases), err)
	}
	for i, c := range file.Cases {
		v := c.Settings
		s := newSampler(Sampling{Temperature: v.Temperature, TopP: v.TopP, MinP: v.MinP, RepetitionPenalty: v.RepetitionPenalty, TopK: v.TopK},
			len(c.Logits), len(c.History))
		for _, id := range c.History {
			s.observe(id)
		}
		w := newSamplerScratch(len(c.Logits))
		var ids []int32
		var probabilities []float64
		total := 0.0
		scores := s.adjusted(c.Logits, w)
		for _, k := range s.filter(scores, slices.Max(scores), w) {
			ids, probabilities, total = append(ids, k.id), append(probabilities, k.weight), total+k.weight
		}
		if diff := cmp.Diff(c.IDs, ids); diff != "" {
			t.Errorf("case %d, %+v: %s", i, v, diff)
			continue
		}
		for j := range ids {
			if p := probabilities[j] / total; math.Abs(p-c.Probabilities[j]) > 1e-6 {
				t.Errorf("case %d, %+v: token %d has probability %v, want %v", i, v, ids[j], p, c.Probabilities[j])
			}
		}
	}
}

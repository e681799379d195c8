package replay_test

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/engine/replay"
	"glimpse/graphs"
)

func model(t *testing.T, checkpoint, precision string) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "model")
	if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder, Precision: precision}); err != nil {
		t.Fatal(err)
	}
	return folder
}

// recorded answers a prompt and returns the steps of the decoder.
func recorded(t *testing.T, folder, prompt string, maxTokens int) ([]*replay.Step, *engine.Result) {
	t.Helper()
	recorder := &replay.Recorder{Graph: "decoder.onnx"}
	rt, err := graphs.Open(graphs.Options{Observe: recorder.Observe})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Slots: 1, Capacity: 128, Threads: 1, PrefillChunk: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	res, err := e.Generate(t.Context(), engine.Request{Raw: true, Prompt: prompt, MaxTokens: maxTokens})
	if err != nil {
		t.Fatal(err)
	}
	steps, err := recorder.Take()
	if err != nil {
		t.Fatal(err)
	}
	return steps, res
}

// compared gives the steps to two graphs.
func compared(t *testing.T, steps []*replay.Step, reference, other string, next []int32) replay.Comparison {
	t.Helper()
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	open := func(folder string) *replay.Player {
		p, err := replay.Open(t.Context(), rt, filepath.Join(folder, "decoder.onnx"), 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	a, b := open(reference), open(other)
	var c replay.Comparison
	at := 0
	for _, s := range steps {
		want, vocab, err := a.Run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := b.Run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Add(want, got, vocab, next[at:][:s.Tokens]); err != nil {
			t.Fatal(err)
		}
		at += s.Tokens
	}
	return c
}

const scenes = "../../testdata/models/scenes-llava"

// A graph that is given its own steps answers as it did: the greedy answer is the most probable token of each row.
func TestReplayRepeatsTheAnswer(t *testing.T) {
	folder := model(t, scenes, "fp32")
	steps, res := recorded(t, folder, "Describe the image in one sentence, with a circle and a square.", 12)
	ids := slices.Concat(res.PromptTokenIDs, res.TokenIDs)
	tokens := 0
	for _, s := range steps {
		tokens += s.Tokens
	}
	if tokens != len(ids)-1 || len(steps) < 3 {
		t.Fatalf("%d tokens in %d steps for %d of prompt and answer", tokens, len(steps), len(ids))
	}
	c := compared(t, steps, folder, folder, ids[1:])
	if math.Abs(c.KL) > 1e-12 || c.Agreement != 1 || c.Loss != c.Reference || c.Tokens != tokens {
		t.Fatalf("%+v", c)
	}
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	p, err := replay.Open(context.Background(), rt, filepath.Join(folder, "decoder.onnx"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	at := 0
	for _, s := range steps {
		logits, vocab, err := p.Run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		for row := range s.Tokens {
			at++
			if at < len(res.PromptTokenIDs) {
				continue
			}
			values := logits[row*vocab:][:vocab]
			if top := slices.Index(values, slices.Max(values)); int32(top) != ids[at] {
				t.Fatalf("token %d is %d, and replayed %d", at, ids[at], top)
			}
		}
	}
}

// Coarser weights are further away.
func TestPrecisionsAreOrdered(t *testing.T) {
	reference := model(t, scenes, "fp32")
	steps, res := recorded(t, reference, "Describe the image in one sentence, with a circle and a square.", 12)
	next := slices.Concat(res.PromptTokenIDs, res.TokenIDs)[1:]
	fp16 := compared(t, steps, reference, model(t, scenes, "fp16"), next)
	int4 := compared(t, steps, reference, model(t, scenes, "int4"), next)
	if !(fp16.KL < 1e-4 && int4.KL > 10*fp16.KL && int4.KL < 1) {
		t.Errorf("KL %v of fp16 and %v of int4", fp16.KL, int4.KL)
	}
}

func TestCompare(t *testing.T) {
	logits := func(p ...float64) []float32 {
		var out []float32
		for _, v := range p {
			out = append(out, float32(math.Log(v)+3))
		}
		return out
	}
	var c replay.Comparison
	if err := c.Add(logits(0.5, 0.25, 0.25), logits(0.25, 0.25, 0.5), 3, []int32{2}); err != nil {
		t.Fatal(err)
	}
	if want := 0.5*math.Log(2) - 0.25*math.Log(2); math.Abs(c.KL-want) > 1e-6 {
		t.Errorf("KL %v, want %v", c.KL, want)
	}
	if c.Agreement != 0 || math.Abs(c.Loss-math.Log(2)) > 1e-6 || math.Abs(c.Reference-math.Log(4)) > 1e-6 {
		t.Errorf("%+v", c)
	}
	if err := c.Add(make([]float32, 3), []float32{0, float32(math.NaN()), 0}, 3, nil); err == nil {
		t.Error("logits that are no numbers were compared")
	}
	if err := c.Add(make([]float32, 3), make([]float32, 4), 3, nil); err == nil {
		t.Error("rows of two widths were compared")
	}
}

package engine

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// OpenAI's formula: mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the answer's tokens alone.
func TestFrequencyAndPresence(t *testing.T) {
	s := newSampler(Sampling{FrequencyPenalty: 0.5, PresencePenalty: 0.25}, 4, 8)
	s.observe(3) // of the prompt: does not count
	for _, id := range []int32{0, 1, 0, 0} {
		s.observe(id)
		s.drawn(id)
	}
	w := newSamplerScratch(4)
	logits := []float32{4, -1, 1.5, 0}
	if diff := cmp.Diff([]float32{4 - 3*0.5 - 0.25, -1 - 0.5 - 0.25, 1.5, 0}, s.adjusted(logits, w)); diff != "" {
		t.Error(diff)
	}
	if logits[0] != 4 {
		t.Error("the logits themselves were changed")
	}
}

func TestLogitBias(t *testing.T) {
	w := newSamplerScratch(3)
	logits := []float32{3, 2, 1}
	for _, c := range []struct {
		bias map[int32]float64
		want int32
	}{{nil, 0}, {map[int32]float64{0: -100}, 1}, {map[int32]float64{2: 100}, 2}, {map[int32]float64{1: 0.5}, 0}} {
		if id, err := newSampler(Sampling{LogitBias: c.bias}, 3, 8).next(logits, w); id != c.want || err != nil {
			t.Errorf("bias %v draws %d, %v; want %d", c.bias, id, err, c.want)
		}
	}
	// Bias, then the repetition penalty, then the additive penalties.
	s := newSampler(Sampling{LogitBias: map[int32]float64{0: -4}, RepetitionPenalty: 2, PresencePenalty: 1}, 3, 8)
	s.observe(0)
	s.drawn(0)
	if diff := cmp.Diff([]float32{(3-4)*2 - 1, 2, 1}, s.adjusted(logits, w)); diff != "" {
		t.Error(diff)
	}
}

func TestMask(t *testing.T) {
	w := newSamplerScratch(3)
	for _, temperature := range []float64{0, 2} {
		s := newSampler(Sampling{Temperature: temperature, LogitBias: map[int32]float64{0: 100}}, 3, 8)
		s.allowed = []uint32{0b100}
		for range 20 {
			if id, err := s.next([]float32{9, 8, -30}, w); id != 2 || err != nil {
				t.Fatalf("temperature %v: %d, %v", temperature, id, err)
			}
		}
		if _, err := s.next([]float32{float32(math.NaN()), 0, 0}, w); !errors.Is(err, ErrBadLogits) {
			t.Errorf("NaN behind the mask: %v", err)
		}
	}
}

func TestPenaltiesAreChecked(t *testing.T) {
	for param, s := range map[string]Sampling{
		"frequency_penalty": {FrequencyPenalty: math.NaN()},
		"presence_penalty":  {PresencePenalty: -2.1},
		"logit_bias":        {LogitBias: map[int32]float64{8: 1}},
	} {
		var bad *RequestError
		if err := s.checkPenalties(8); !errors.As(err, &bad) || bad.Param != param {
			t.Errorf("%s: %v", param, err)
		}
	}
	if err := (Sampling{FrequencyPenalty: 2, PresencePenalty: -2, LogitBias: map[int32]float64{7: -100}}).checkPenalties(8); err != nil {
		t.Error(err)
	}
}

// What changes a row of scores before anything is drawn from it: logit_bias, the penalties, and a constraint's mask.
//
// The order is that of the field (transformers' sequence bias comes before its repetition penalty, OpenAI's additive
// penalties go on top): bias, repetition, frequency and presence, mask.

package engine

import (
	"maps"
	"math"
	"slices"
)

// Bounds of OpenAI's API on its own settings.
const (
	maxPenalty = 2   // |frequency_penalty|, |presence_penalty|
	maxBias    = 100 // |logit_bias|; ±100 forbids or forces a token in practice
	maxBiases  = 1024
)

// checkPenalties returns what is wrong with the settings that change scores; vocab is the width of the logits.
func (s Sampling) checkPenalties(vocab int) error {
	for _, p := range []struct {
		name  string
		value float64
	}{{"frequency_penalty", s.FrequencyPenalty}, {"presence_penalty", s.PresencePenalty}} {
		if !(math.Abs(p.value) <= maxPenalty) {
			return badRequest(p.name, CodeInvalid, nil, "%s is %v; it must lie in -2..2", p.name, p.value)
		}
	}
	if len(s.LogitBias) > maxBiases {
		return badRequest("logit_bias", CodeInvalid, nil, "logit_bias has %d tokens; at most %d are allowed", len(s.LogitBias), maxBiases)
	}
	for _, id := range slices.Sorted(maps.Keys(s.LogitBias)) {
		if id < 0 || int(id) >= vocab {
			return badRequest("logit_bias", CodeInvalid, nil, "logit_bias names token %d; the model has tokens 0 to %d", id, vocab-1)
		}
		if bias := s.LogitBias[id]; !(math.Abs(bias) <= maxBias) {
			return badRequest("logit_bias", CodeInvalid, nil, "logit_bias of token %d is %v; it must lie in -100..100", id, bias)
		}
	}
	return nil
}

// counted is a token of the answer and how often it was drawn.
type counted struct {
	id    int32
	times int32
}

// counts says that tokens of the answer have to be counted.
func (s Sampling) counts() bool { return s.FrequencyPenalty != 0 || s.PresencePenalty != 0 }

// drawn counts a token of the answer for the frequency and presence penalties, which OpenAI defines on generated tokens
// alone.
func (s *sampler) drawn(id int32) {
	if !s.counts() {
		return
	}
	if i, ok := s.placeOf[id]; ok {
		s.answered[i].times++
		return
	}
	if s.placeOf == nil {
		s.placeOf = map[int32]int{}
	}
	s.placeOf[id] = len(s.answered)
	s.answered = append(s.answered, counted{id, 1})
}

// adjusted returns the scores to draw from: the logits themselves, or a copy in w.scores where a setting changes them.
func (s *sampler) adjusted(logits []float32, w *samplerScratch) []float32 {
	if len(s.list) == 0 && len(s.answered) == 0 && len(s.LogitBias) == 0 && s.allowed == nil {
		return logits
	}
	scores := w.scores[:len(logits)]
	copy(scores, logits)
	for id, bias := range s.LogitBias {
		if int(id) < len(scores) {
			scores[id] += float32(bias)
		}
	}
	s.repeat(scores)
	for _, c := range s.answered {
		if int(c.id) < len(scores) {
			scores[c.id] -= float32(s.PresencePenalty + float64(c.times)*s.FrequencyPenalty)
		}
	}
	if s.allowed != nil {
		maskScores(scores, s.allowed)
	}
	return scores
}

// repeat applies the repetition penalty.
func (s *sampler) repeat(scores []float32) {
	penalty := float32(s.RepetitionPenalty)
	for _, id := range s.list {
		if int(id) >= len(scores) {
			continue
		}
		if scores[id] < 0 {
			scores[id] *= penalty
		} else {
			scores[id] /= penalty
		}
	}
}

// maskScores makes the tokens whose bit is not set impossible. NaN stays: it says that the model is broken.
func maskScores(scores []float32, allowed []uint32) {
	never := float32(math.Inf(-1))
	for i, v := range scores {
		word := i / 32
		if (word >= len(allowed) || allowed[word]&(1<<(i%32)) == 0) && v == v {
			scores[i] = never
		}
	}
}

// allows says whether a mask has a token's bit set.
func allows(mask []uint32, id int32) bool {
	word := int(id) / 32
	return id >= 0 && word < len(mask) && mask[word]&(1<<(id%32)) != 0
}

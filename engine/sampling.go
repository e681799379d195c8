// Drawing the next token from a row of logits.
//
// The order and the meaning of each filter are those of transformers' logits processors (RepetitionPenaltyLogitsProcessor,
// TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper), so that settings carry over. All
// filters keep at least one token. The logits themselves are never written to: log-probabilities are of the model's own
// distribution, and a trace may still look at the row.

package engine

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// pcgStream is the second half of the generator's state, so that one number is a whole seed.
const pcgStream = 0x9e3779b97f4a7c15

// maxLogprobs bounds Request.Logprobs, as OpenAI's API does.
const maxLogprobs = 20

// sampler draws the tokens of one request.
type sampler struct {
	Sampling
	rng *rand.Rand // nil when greedy

	// The ids that the repetition penalty has seen, as a set over the vocabulary and as a list. Unused without a penalty.
	seen []uint64
	list []int32

	// The answer's tokens, for the penalties that count them; placeOf is a token's place in answered.
	answered []counted
	placeOf  map[int32]int

	// allowed is the mask of the next token, a bit an id; nil: all.
	allowed []uint32
}

// samplerScratch is what drawing needs beside the sampler; the samplers of one loop share it.
type samplerScratch struct {
	scores     []float32   // logits after the penalty
	candidates []candidate // in order of id
	sorted     []candidate
	heap       []float32
}

type candidate struct {
	id     int32
	weight float64 // probability times a constant
}

func newSamplerScratch(vocab int) *samplerScratch {
	return &samplerScratch{
		scores:     make([]float32, vocab),
		candidates: make([]candidate, 0, vocab),
		sorted:     make([]candidate, 0, vocab),
		heap:       make([]float32, 0, vocab),
	}
}

// check returns what is wrong with the settings, nil when nothing is.
func (s Sampling) check() error {
	finite := func(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
	switch {
	case !finite(s.Temperature) || s.Temperature < 0:
		return badRequest("temperature", CodeInvalid, nil, "temperature is %v; it must be 0 (greedy) or more", s.Temperature)
	case !(s.TopP >= 0 && s.TopP <= 1):
		return badRequest("top_p", CodeInvalid, nil, "top_p is %v; it must lie in 0..1", s.TopP)
	case !(s.MinP >= 0 && s.MinP <= 1):
		return badRequest("min_p", CodeInvalid, nil, "min_p is %v; it must lie in 0..1", s.MinP)
	case !finite(s.RepetitionPenalty) || s.RepetitionPenalty < 0:
		return badRequest("repetition_penalty", CodeInvalid, nil, "repetition_penalty is %v; it must be above 0 (1 is none)", s.RepetitionPenalty)
	case s.TopK < 0:
		return badRequest("top_k", CodeInvalid, nil, "top_k is %d; it must be 0 (off) or more", s.TopK)
	}
	return nil
}

func (s Sampling) penalizes() bool { return s.RepetitionPenalty != 0 && s.RepetitionPenalty != 1 }

// newSampler returns the sampler of one request over a vocabulary; capacity is how many ids it will ever see.
func newSampler(settings Sampling, vocab, capacity int) *sampler {
	s := &sampler{Sampling: settings}
	if settings.Temperature > 0 {
		seed := rand.Uint64()
		if settings.Seed != nil {
			seed = *settings.Seed
		}
		s.rng = rand.New(rand.NewPCG(seed, pcgStream))
	}
	if settings.penalizes() {
		s.seen = make([]uint64, (vocab+63)/64)
		s.list = make([]int32, 0, min(vocab, capacity))
	}
	return s
}

// observe tells the repetition penalty about an id of the prompt or the answer. Ids without a column of logits do not
// count.
func (s *sampler) observe(id int32) {
	word := int(id) / 64
	if id < 0 || word >= len(s.seen) || s.seen[word]&(1<<(id%64)) != 0 {
		return
	}
	s.seen[word] |= 1 << (id % 64)
	s.list = append(s.list, id)
}

// next draws a token. NaN or +Inf among the logits, or nothing but -Inf, is ErrBadLogits.
func (s *sampler) next(logits []float32, w *samplerScratch) (int32, error) {
	scores := s.adjusted(logits, w)
	best, err := argmax(scores)
	if err != nil || s.rng == nil {
		return best, err
	}
	list := s.filter(scores, scores[best], w)
	var total float64
	for _, c := range list {
		total += c.weight
	}
	// By id and not by probability: with nearly equal logits a change in the last bit (another batch around this row)
	// then moves the borders a little instead of swapping whole intervals.
	left := s.rng.Float64() * total
	for _, c := range list {
		if left -= c.weight; left < 0 {
			return c.id, nil
		}
	}
	return best, nil // rounding left a crumb beyond the last interval
}

// filter returns the candidates that top-k, top-p and min-p leave at this temperature, by id. high is the best score.
func (s *sampler) filter(scores []float32, high float32, w *samplerScratch) []candidate {
	return s.minP(s.topP(s.topK(scores, high, w), w))
}

// argmax returns the largest score's index, the lowest one of equals.
func argmax(scores []float32) (int32, error) {
	best, high := -1, float32(math.Inf(-1))
	for i, v := range scores {
		if v > high {
			best, high = i, v
		} else if v != v {
			return 0, fmt.Errorf("%w: NaN at token %d", ErrBadLogits, i)
		}
	}
	if best < 0 || math.IsInf(float64(high), 1) {
		return 0, fmt.Errorf("%w: the largest is %v", ErrBadLogits, high)
	}
	return int32(best), nil
}

// topK applies top-k and temperature: the candidates with their weights exp((score − high) / temperature), by id.
// Tokens equal to the k-th stay, as upstream keeps them.
func (s *sampler) topK(scores []float32, high float32, w *samplerScratch) []candidate {
	threshold := float32(math.Inf(-1))
	if s.TopK > 0 && s.TopK < len(scores) {
		threshold = kthLargest(scores, s.TopK, w.heap)
	}
	list := w.candidates[:0]
	for i, v := range scores {
		if v < threshold {
			continue
		}
		if weight := math.Exp((float64(v) - float64(high)) / s.Temperature); weight > 0 {
			list = append(list, candidate{int32(i), weight})
		}
	}
	return list
}

// kthLargest returns the k-th largest value, counting equals, in a min-heap of k values.
func kthLargest(values []float32, k int, heap []float32) float32 {
	heap = heap[:0]
	for _, v := range values {
		if len(heap) < k {
			heap = append(heap, v)
			for i := len(heap) - 1; i > 0 && heap[i] < heap[(i-1)/2]; i = (i - 1) / 2 {
				heap[i], heap[(i-1)/2] = heap[(i-1)/2], heap[i]
			}
			continue
		}
		if v > heap[0] {
			heap[0] = v
			siftDown(heap)
		}
	}
	return heap[0]
}

func siftDown(heap []float32) {
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(heap); c++ {
			if heap[c] < heap[least] {
				least = c
			}
		}
		if least == i {
			return
		}
		heap[i], heap[least] = heap[least], heap[i]
		i = least
	}
}

// topP keeps the smallest set of the most probable tokens whose probabilities reach TopP: from the least probable
// upwards, tokens go while their sum is at most 1 − TopP.
func (s *sampler) topP(list []candidate, w *samplerScratch) []candidate {
	if s.TopP <= 0 || s.TopP >= 1 {
		return list
	}
	var total float64
	for _, c := range list {
		total += c.weight
	}
	budget := (1 - s.TopP) * total
	// Tokens below an even share of the budget cannot exceed it together, so they go without being sorted: that is
	// nearly the whole vocabulary.
	share := budget / float64(len(list))
	var sum float64
	sorted := w.sorted[:0]
	for _, c := range list {
		if c.weight < share {
			sum += c.weight
		} else {
			sorted = append(sorted, c)
		}
	}
	slices.SortFunc(sorted, worseFirst)
	cut := 0
	for ; cut < len(sorted)-1; cut++ { // the best token always stays
		if sum += sorted[cut].weight; sum > budget {
			break
		}
	}
	keep := sorted[cut]
	return slices.DeleteFunc(list, func(c candidate) bool { return worseFirst(c, keep) < 0 })
}

// worseFirst orders by weight; of equals the higher id comes first, so that ties go to the lower id as in argmax.
func worseFirst(a, b candidate) int {
	if c := cmp.Compare(a.weight, b.weight); c != 0 {
		return c
	}
	return cmp.Compare(b.id, a.id)
}

// minP drops the tokens less probable than MinP times the most probable one, whose weight is 1.
func (s *sampler) minP(list []candidate) []candidate {
	if s.MinP <= 0 {
		return list
	}
	return slices.DeleteFunc(list, func(c candidate) bool { return c.weight < s.MinP })
}

// logprobs returns the log-probability of id and the n most probable tokens, best first, ties to the lower id.
func logprobs(logits []float32, id int32, n int) (float32, []Alternative) {
	high := float32(math.Inf(-1))
	for _, v := range logits {
		high = max(high, v)
	}
	var sum float64
	top := make([]Alternative, 0, n+1)
	for i, v := range logits {
		sum += math.Exp(float64(v) - float64(high))
		if len(top) == n && v <= top[n-1].Logprob {
			continue
		}
		at := len(top)
		for at > 0 && v > top[at-1].Logprob {
			at--
		}
		top = slices.Insert(top, at, Alternative{ID: int32(i), Logprob: v})
		top = top[:min(n, len(top))]
	}
	norm := float64(high) + math.Log(sum)
	for i := range top {
		top[i].Logprob = float32(float64(top[i].Logprob) - norm)
	}
	return float32(float64(logits[id]) - norm), top
}

// Tolerances of graphs that compute in float16 (models for CUDA). The golden sets are float32, so what is compared is what
// float16 costs.
//
// They were chosen by upstream's own float16: transformers 5.23 in torch.float16 on the CPU, given the stored pixels, has
// logits_first off by up to 0.058 on LLaVA, BLIP-2, InternVL3, SmolVLM, Gemma 3 and LLaVA-NeXT, 0.112 on LLaVA-OneVision and 0.132
// on Qwen2.5-VL (of values that reach 15 to 25). Ours must not be worse than upstream's worst. Features are held to eight times
// float16's unit roundoff 2⁻¹¹ of the largest value, and what is normalised or a probability to four times.

package verify

import (
	"fmt"
	"math"
	"slices"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
)

const (
	halfRoundoff = 1.0 / (1 << 11)
	halfRelative = 8 * halfRoundoff // of the largest value of the reference
	halfExact    = 4 * halfRoundoff
	halfLogits   = 0.132
)

// partedNote says why another answer is right.
var partedNote = fmt.Sprintf("float16 may: two logits of the answer are nearer than the %g that they may be off", halfLogits)

// halfTolerance is tolerance for graphs in float16.
func halfTolerance(name string, want golden.Array, exact bool) float64 {
	switch {
	case name == engine.ArrayFirstLogits || name == engine.ArrayLastLogits:
		return halfLogits
	case exact && !slices.ContainsFunc(want.Data, func(v float32) bool { return math.Abs(float64(v)) > 1 }):
		return halfExact
	}
	largest := 0.0
	for _, v := range want.Data {
		largest = max(largest, math.Abs(float64(v)))
	}
	return halfRelative * largest
}

// mayPart reports whether the answer differs from the reference's where float16 cannot tell: the case says how near its two best
// tokens come.
func (k *checker) mayPart(t *engine.Trace) bool {
	want := k.c.Expected
	return k.half && t.Result != nil && want.GeneratedIDs != nil && !slices.Equal(t.Result.TokenIDs, want.GeneratedIDs) &&
		want.MinMargin != nil && *want.MinMargin <= halfLogits
}

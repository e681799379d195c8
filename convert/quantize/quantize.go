// Package quantize turns rows of float32 weights into the storage formats of ONNX Runtime's operators: half precision,
// int8 with a scale for each output channel (MatMulIntegerToFloat), and int4 or int8 with a scale for each block of the
// input dimension (MatMulNBits, com.microsoft).
//
// Weights are row-major [n, k] with n output channels, as PyTorch's Linear keeps them. All functions are pure and work on
// any run of rows, so that a caller streams a matrix through them in pieces, on as many cores as it likes; the result does
// not depend on how it was cut. Rounding is to nearest, ties to even, and the same on every architecture: products are
// rounded before they are added (the float32 conversions below forbid fusing).
//
// A weight that is NaN or infinite cannot be quantized; the error names its row.
package quantize

import (
	"fmt"
	"math"
)

// NonFiniteError names a weight that is no number. Row counts from the start of the slice that was given.
type NonFiniteError struct {
	Row, Column int
	Value       float32
}

func (e *NonFiniteError) Error() string {
	return fmt.Sprintf("row %d, column %d is %v: only finite weights can be quantized", e.Row, e.Column, e.Value)
}

// findNonFinite makes the error for a row that is known to hold such a value.
func findNonFinite(row []float32, r int) error {
	for i, v := range row {
		if math.Float32bits(v)&exponentBits == exponentBits {
			return &NonFiniteError{Row: r, Column: i, Value: v}
		}
	}
	return nil
}

const (
	signBit      = 0x80000000
	exponentBits = 0x7f800000
)

// extremes returns the largest value above and the smallest below 0, both 0 when there is none, and false when a value is
// not finite. Floats of one sign order like their bits, and integers compare without branches.
func extremes(values []float32) (low, high float32, finite bool) {
	var top int32             // as signed numbers, floats above zero win
	bottom := uint32(signBit) // as unsigned numbers, floats below zero win, the most negative first
	for _, v := range values {
		b := math.Float32bits(v)
		top = max(top, int32(b))
		bottom = max(bottom, b)
	}
	finite = top < exponentBits && bottom < signBit|exponentBits
	return math.Float32frombits(bottom), math.Float32frombits(uint32(top)), finite
}

// negligible is where a scale would become subnormal and its reciprocal infinite: values below are stored as 0.
const negligible = 0x1p-100

// roundMagic moves a float32 of magnitude below 2²² to where its last bit is worth 1: adding it rounds to the nearest
// integer, ties to even, and leaves the integer in the low bits.
const (
	roundMagic     = float32(0x1.8p23)
	roundMagicBits = 0x4b400000
)

// roundToInt rounds a float32 of magnitude below 2²².
func roundToInt(v float32) int32 {
	return int32(math.Float32bits(v+roundMagic)) - roundMagicBits
}

package checkpoint

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// DType is an element type, spelled as in a safetensors header.
type DType string

const (
	F64  DType = "F64"
	F32  DType = "F32"
	F16  DType = "F16"
	BF16 DType = "BF16"
	I64  DType = "I64"
	I32  DType = "I32"
	I16  DType = "I16"
	I8   DType = "I8"
	U64  DType = "U64"
	U32  DType = "U32"
	U16  DType = "U16"
	U8   DType = "U8"
	Bool DType = "BOOL"
)

var dtypes = []DType{F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, Bool}

// Size is the bytes of one element; 0 for a dtype that is not known.
func (d DType) Size() int64 {
	switch d {
	case F64, I64, U64:
		return 8
	case F32, I32, U32:
		return 4
	case F16, BF16, I16, U16:
		return 2
	case I8, U8, Bool:
		return 1
	}
	return 0
}

// IsFloat is true of the floating point dtypes.
func (d DType) IsFloat() bool { return slices.Contains([]DType{F64, F32, F16, BF16}, d) }

func unknownDType(name string) string {
	known := make([]string, len(dtypes))
	for i, d := range dtypes {
		known[i] = string(d)
	}
	return fmt.Sprintf("dtype %s is not known (known: %s)", quoted(name), strings.Join(known, ", "))
}

// maxRank bounds the dimensions of a tensor; torch itself stops at 64.
const maxRank = 64

// byteSize multiplies a shape out without overflow.
func byteSize(d DType, shape []int64) (int64, error) {
	if len(shape) > maxRank {
		return 0, fmt.Errorf("shape has %d dimensions, more than %d", len(shape), maxRank)
	}
	n := d.Size()
	for _, dim := range shape {
		if dim < 0 {
			return 0, fmt.Errorf("shape %v has a negative dimension", shape)
		}
		var ok bool
		if n, ok = multiply(n, dim); !ok {
			return 0, fmt.Errorf("shape %v of %s overflows", shape, d)
		}
	}
	return n, nil
}

// multiply is a·b of non-negative numbers, false when it does not fit.
func multiply(a, b int64) (int64, bool) {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	return int64(lo), hi == 0 && lo <= 1<<63-1
}

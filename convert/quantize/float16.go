package quantize

import (
	"encoding/binary"
	"math"
)

// Float16 stores src as IEEE half precision, little-endian, in dst (2 bytes an element), rounded to nearest even. It
// returns how many finite values were too large (65520 and above) and became infinite: a caller that gets more than 0 must
// keep the tensor in another precision.
func Float16(dst []byte, src []float32) (overflows int) {
	dst = dst[:2*len(src)]
	for i, v := range src {
		h := halfBits(math.Float32bits(v))
		binary.LittleEndian.PutUint16(dst[2*i:], h)
		if h&0x7fff == 0x7c00 && math.Float32bits(v)&^signBit != exponentBits {
			overflows++
		}
	}
	return overflows
}

// halfBits converts one float32, given as its bits.
func halfBits(b uint32) uint16 {
	const (
		infinity  = 0x47800000       // 2¹⁶: the first value whose exponent a half cannot hold
		normal    = 0x38800000       // 2⁻¹⁴: the first normal half
		rebias    = (15 - 127) << 23 // from float32's exponent to the half's
		roundHalf = 1<<12 - 1        // a bit less than half of the last kept bit; the bit itself breaks ties
		subnormal = float32(0.5)     // its last bit is worth 2⁻²⁴, as that of a subnormal half
	)
	sign := uint16(b >> 16 & 0x8000)
	a := b &^ signBit
	switch {
	case a >= infinity:
		if a > exponentBits { // NaN: quiet, as much of the payload as fits
			return sign | 0x7e00 | uint16(a>>13&0x3ff)
		}
		return sign | 0x7c00
	case a < normal:
		return sign | uint16(math.Float32bits(math.Float32frombits(a)+subnormal)-math.Float32bits(subnormal))
	default: // the carry of rounding runs into the exponent, up to infinity
		bias := int32(rebias)
		return sign | uint16((a+uint32(bias)+roundHalf+(a>>13&1))>>13)
	}
}

// BFloat16 stores src as bfloat16, little-endian, in dst (2 bytes an element), rounded to nearest even. It returns how many
// finite values became infinite.
func BFloat16(dst []byte, src []float32) (overflows int) {
	dst = dst[:2*len(src)]
	for i, v := range src {
		b := math.Float32bits(v)
		h := uint16((b + 0x7fff + b>>16&1) >> 16)
		if a := b &^ signBit; a > exponentBits { // NaN: rounding could carry it into infinity or around to zero
			h = uint16(b>>16) | 0x40
		} else if a < exponentBits && h&0x7fff == 0x7f80 {
			overflows++
		}
		binary.LittleEndian.PutUint16(dst[2*i:], h)
	}
	return overflows
}

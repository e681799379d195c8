package checkpoint

// Stored elements as float32. The loops are the reader's hot path (a 7B checkpoint is 7·10⁹ turns), hence one loop a
// dtype, without calls in it.

import (
	"encoding/binary"
	"math"
	"sync"
	"unsafe"
)

// littleEndian says whether the host stores numbers as the files do, so that bytes may be taken for numbers.
var littleEndian = func() bool {
	one := uint16(1)
	return *(*byte)(unsafe.Pointer(&one)) == 1
}()

// bytesOf is the memory of a float32 slice.
func bytesOf(s []float32) []byte {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), 4*len(s))
}

// widen converts len(dst) elements; raw holds at least as many.
func widen(d DType, dst []float32, raw []byte) {
	raw = raw[:int64(len(dst))*d.Size()]
	le := binary.LittleEndian
	switch d {
	case F32:
		for i := range dst {
			dst[i] = math.Float32frombits(le.Uint32(raw[4*i:]))
		}
	case F16:
		widenF16(dst, raw)
	case BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(le.Uint16(raw[2*i:])) << 16)
		}
	case F64:
		for i := range dst {
			dst[i] = float32(math.Float64frombits(le.Uint64(raw[8*i:])))
		}
	default:
		widenInteger(d, dst, raw)
	}
}

// widenF16 looks all 65536 values up: the part of the table that weights use stays in the core's own cache, and it takes
// half the time of computing them.
func widenF16(dst []float32, raw []byte) {
	table := halfTable()
	for i := range dst {
		dst[i] = table[binary.LittleEndian.Uint16(raw[2*i:])]
	}
}

var halfTable = sync.OnceValue(func() *[1 << 16]float32 {
	var table [1 << 16]float32
	for h := range uint32(1 << 16) {
		magnitude := h & 0x7fff << 13
		switch h & 0x7c00 {
		case 0: // subnormal
			magnitude = math.Float32bits(float32(h&0x3ff) * 0x1p-24)
		case 0x7c00: // infinity or NaN
			magnitude |= 0x7f800000
		default:
			magnitude += (127 - 15) << 23
		}
		table[h] = math.Float32frombits(h&0x8000<<16 | magnitude)
	}
	return &table
})

func widenInteger(d DType, dst []float32, raw []byte) {
	le := binary.LittleEndian
	switch d {
	case I64:
		for i := range dst {
			dst[i] = float32(int64(le.Uint64(raw[8*i:])))
		}
	case U64:
		for i := range dst {
			dst[i] = float32(le.Uint64(raw[8*i:]))
		}
	case I32:
		for i := range dst {
			dst[i] = float32(int32(le.Uint32(raw[4*i:])))
		}
	case U32:
		for i := range dst {
			dst[i] = float32(le.Uint32(raw[4*i:]))
		}
	case I16:
		for i := range dst {
			dst[i] = float32(int16(le.Uint16(raw[2*i:])))
		}
	case U16:
		for i := range dst {
			dst[i] = float32(le.Uint16(raw[2*i:]))
		}
	case I8:
		for i := range dst {
			dst[i] = float32(int8(raw[i]))
		}
	case U8:
		for i := range dst {
			dst[i] = float32(raw[i])
		}
	case Bool: // any byte but 0 is true, as numpy has it
		for i := range dst {
			dst[i] = 0
			if raw[i] != 0 {
				dst[i] = 1
			}
		}
	}
}

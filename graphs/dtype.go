package graphs

import (
	"fmt"
	"strings"
)

// DType is a tensor's element type. The zero value is no type.
type DType uint8

// The element types that graphs exchange.
const (
	Float32 DType = iota + 1
	Float16
	BFloat16
	Int64
	Int32
	Int8
	Uint8
	Bool
)

// dtypes holds, by DType, the name, the bytes an element takes and ONNX's
// number (TensorProto.DataType, which ONNX Runtime's enum repeats).
var dtypes = [...]struct {
	name   string
	size   int
	native int
}{
	Float32:  {"float32", 4, 1},
	Float16:  {"float16", 2, 10},
	BFloat16: {"bfloat16", 2, 16},
	Int64:    {"int64", 8, 7},
	Int32:    {"int32", 4, 6},
	Int8:     {"int8", 1, 3},
	Uint8:    {"uint8", 1, 2},
	Bool:     {"bool", 1, 9},
}

func (d DType) valid() bool { return d >= Float32 && int(d) < len(dtypes) }

// Size is the number of bytes an element takes; 0 for no type.
func (d DType) Size() int {
	if !d.valid() {
		return 0
	}
	return dtypes[d].size
}

func (d DType) String() string {
	if !d.valid() {
		return fmt.Sprintf("DType(%d)", uint8(d))
	}
	return dtypes[d].name
}

func (d DType) native() int {
	if !d.valid() {
		return 0
	}
	return dtypes[d].native
}

func dtypeOfNative(native int) (DType, bool) {
	for d := Float32; d.valid(); d++ {
		if dtypes[d].native == native {
			return d, true
		}
	}
	return 0, false
}

// ParseDType reads the names that String writes, and the short forms used in
// checkpoints and configurations (f32, fp16, bf16, i64 …), in any case.
func ParseDType(name string) (DType, error) {
	switch strings.ToLower(name) {
	case "float32", "f32", "fp32", "float":
		return Float32, nil
	case "float16", "f16", "fp16", "half":
		return Float16, nil
	case "bfloat16", "bf16":
		return BFloat16, nil
	case "int64", "i64":
		return Int64, nil
	case "int32", "i32":
		return Int32, nil
	case "int8", "i8":
		return Int8, nil
	case "uint8", "u8":
		return Uint8, nil
	case "bool":
		return Bool, nil
	}
	return 0, fmt.Errorf("unknown element type %q: want float32, float16, bfloat16, int64, int32, int8, uint8 or bool", name)
}

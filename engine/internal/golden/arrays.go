// The safetensors file of a golden set. The running half does not import the converter's reader, and needs far less of
// it: float32 and integer arrays by name.

package golden

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// maxHeaderBytes bounds the header; the format itself says 100 MB.
const maxHeaderBytes = 100 << 20

// Arrays is an open safetensors file.
type Arrays struct {
	source  io.ReaderAt
	closer  io.Closer
	base    int64 // where the data begins
	entries map[string]entry
}

type entry struct {
	DType   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// Array is a row-major array of float32 values; integers of the file are converted.
type Array struct {
	Shape []int64
	Data  []float32
}

var elementBytes = map[string]int64{"F32": 4, "F64": 8, "I64": 8, "I32": 4, "BOOL": 1, "U8": 1}

// OpenArrays opens a file and checks its header.
func OpenArrays(path string) (*Arrays, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		var a *Arrays
		if a, err = readHeader(f, info.Size()); err == nil {
			a.closer = f
			return a, nil
		}
		err = fmt.Errorf("%s: %w", path, err)
	}
	f.Close()
	return nil, err
}

// readHeader reads the header of a file of the given size: 8 bytes of length, then JSON.
func readHeader(r io.ReaderAt, size int64) (*Arrays, error) {
	var head [8]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("not a safetensors file: it has %d bytes", size)
	}
	n := binary.LittleEndian.Uint64(head[:])
	if n > maxHeaderBytes || int64(n) > size-8 {
		return nil, fmt.Errorf("its header claims %d bytes, and the file has %d", n, size)
	}
	raw := make([]byte, n)
	if _, err := r.ReadAt(raw, 8); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read its header: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	a := &Arrays{source: r, base: 8 + int64(n), entries: make(map[string]entry, len(fields))}
	for name, field := range fields {
		if name == "__metadata__" {
			continue
		}
		var e entry
		if err := json.Unmarshal(field, &e); err != nil {
			return nil, fmt.Errorf("its header: %s: %w", name, err)
		}
		if err := e.check(size - a.base); err != nil {
			return nil, fmt.Errorf("its header: %s: %w", name, err)
		}
		a.entries[name] = e
	}
	return a, nil
}

// check compares shape, dtype and place with the size of the data.
func (e entry) check(size int64) error {
	width, ok := elementBytes[e.DType]
	if !ok {
		return fmt.Errorf("dtype %q is not read here", e.DType)
	}
	bytes := width
	for _, d := range e.Shape {
		if d < 0 || d > 0 && bytes > math.MaxInt64/d {
			return fmt.Errorf("shape %v is impossible", e.Shape)
		}
		bytes *= d
	}
	begin, end := e.Offsets[0], e.Offsets[1]
	if begin < 0 || end < begin || end > size || end-begin != bytes {
		return fmt.Errorf("offsets %v do not fit shape %v of %s in %d bytes", e.Offsets, e.Shape, e.DType, size)
	}
	return nil
}

// Len returns how many arrays there are.
func (a *Arrays) Len() int { return len(a.entries) }

// Read returns an array.
func (a *Arrays) Read(key string) (Array, error) {
	e, ok := a.entries[key]
	if !ok {
		return Array{}, fmt.Errorf("golden.safetensors has no array %q", key)
	}
	raw := make([]byte, e.Offsets[1]-e.Offsets[0])
	if _, err := a.source.ReadAt(raw, a.base+e.Offsets[0]); err != nil && !errors.Is(err, io.EOF) {
		return Array{}, fmt.Errorf("read array %q: %w", key, err)
	}
	width := int(elementBytes[e.DType])
	data := make([]float32, len(raw)/width)
	for i := range data {
		data[i] = element(e.DType, raw[i*width:])
	}
	return Array{Shape: e.Shape, Data: data}, nil
}

func element(dtype string, b []byte) float32 {
	switch dtype {
	case "F32":
		return math.Float32frombits(binary.LittleEndian.Uint32(b))
	case "F64":
		return float32(math.Float64frombits(binary.LittleEndian.Uint64(b)))
	case "I64":
		return float32(int64(binary.LittleEndian.Uint64(b)))
	case "I32":
		return float32(int32(binary.LittleEndian.Uint32(b)))
	}
	return float32(b[0])
}

// Close closes the file. It is idempotent.
func (a *Arrays) Close() error {
	if a == nil || a.closer == nil {
		return nil
	}
	c := a.closer
	a.closer = nil
	return c.Close()
}

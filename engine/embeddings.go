// The token embedding table: memory-mapped as the checkpoint stored it, widened to float32 row by row.

package engine

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"glimpse/manifest"
)

// embeddingTable is Rows × HiddenSize values in a file. The map is private to its owner, who closes it once.
type embeddingTable struct {
	path   string
	data   []byte // the mapped file
	rows   int
	hidden int
	dtype  string
	scale  float32 // 0 where rows are used as they are
}

// openEmbeddings maps folder's table; its size must be exactly what the manifest says.
func openEmbeddings(folder string, m *manifest.Embeddings) (*embeddingTable, error) {
	width := map[string]int64{"float32": 4, "float16": 2, "bfloat16": 2}[m.DType]
	if width == 0 {
		return nil, fmt.Errorf("open embeddings: dtype %q is unknown", m.DType)
	}
	path := filepath.Join(folder, m.File)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open embeddings: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open embeddings: %w", err)
	}
	if want := int64(m.Rows) * int64(m.HiddenSize) * width; info.Size() != want {
		return nil, fmt.Errorf("open embeddings: %s has %d bytes; %d rows of %d %s values are %d: the file is damaged, convert again",
			path, info.Size(), m.Rows, m.HiddenSize, m.DType, want)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map embeddings %s: %w", path, err)
	}
	t := &embeddingTable{path: path, data: data, rows: m.Rows, hidden: m.HiddenSize, dtype: m.DType}
	if m.Scale != 0 && m.Scale != 1 {
		t.scale = float32(m.Scale)
	}
	return t, nil
}

// row writes the embedding of id to dst, hidden_size values.
func (t *embeddingTable) row(dst []float32, id int32) error {
	if id < 0 || int(id) >= t.rows {
		return fmt.Errorf("token %d has no embedding: %s has %d rows", id, t.path, t.rows)
	}
	dst = dst[:t.hidden]
	switch t.dtype {
	case "float32":
		src := t.data[int(id)*t.hidden*4:]
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case "bfloat16":
		src := t.data[int(id)*t.hidden*2:]
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	default:
		src := t.data[int(id)*t.hidden*2:]
		for i := range dst {
			dst[i] = float16(binary.LittleEndian.Uint16(src[2*i:]))
		}
	}
	if t.scale != 0 {
		for i := range dst {
			dst[i] *= t.scale
		}
	}
	return nil
}

// float16 widens an IEEE 754 half.
func float16(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exponent, fraction := uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch exponent {
	case 0: // zero and subnormals: fraction · 2⁻²⁴
		v := float32(fraction) * (1.0 / (1 << 24))
		return math.Float32frombits(sign | math.Float32bits(v))
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}

// Close unmaps the table. It is idempotent; row must not be called after it.
func (t *embeddingTable) Close() error {
	if t == nil || t.data == nil {
		return nil
	}
	data := t.data
	t.data = nil
	if err := unix.Munmap(data); err != nil {
		return fmt.Errorf("unmap embeddings: %w", err)
	}
	return nil
}

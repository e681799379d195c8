package families

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
)

// wqkv holds, for each key-value group, its queries, its key and its value; the graph wants all queries, all keys, all values.
func TestInternLM2TakesGroupsApart(t *testing.T) {
	const heads, groups, dim, width = 4, 2, 2, 3
	kv := int64(groups)
	c := llamaConfig{HiddenSize: heads * dim, Heads: heads, KVHeads: &kv}
	rows := int64((heads + 2*groups) * dim)
	raw := make([]byte, 4*rows*width)
	for i := range rows * width {
		binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(float32(i/width))) // each row holds its own number
	}
	path := filepath.Join(t.TempDir(), "model.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	err = checkpoint.WriteSafetensors(f, []checkpoint.TensorData{{TensorInfo: checkpoint.TensorInfo{Name: "layers.0.attention.wqkv.weight", DType: "F32", Shape: []int64{rows, width}}, Data: raw}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cp, err := checkpoint.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	tensors := blocks.NewTensors(cp)
	tensors.Bind(cp)
	w := internLM2{}.layout(c, "", "output").layer(0).qkv(tensors, ".weight", width)
	values, err := w.Float32s(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var order []int
	for i := 0; i < len(values); i += width {
		order = append(order, int(values[i]))
	}
	// Group 0 is rows 0 to 7 (two queries, key, value, two rows each), group 1 rows 8 to 15.
	want := []int{0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15}
	if diff := cmp.Diff(want, order); diff != "" || len(tensors.Problems()) > 0 {
		t.Errorf("rows (-want +have): %v\n%s", tensors.Problems(), diff)
	}
}

package graphs_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"unsafe"

	"glimpse/graphs"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func tensor(t testing.TB, rt *graphs.Runtime, dtype graphs.DType, shape ...int64) *graphs.Tensor {
	t.Helper()
	made, err := rt.NewTensor(dtype, shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

func TestTensorMemory(t *testing.T) {
	rt := open(t)
	for _, dtype := range []graphs.DType{graphs.Float32, graphs.Float16, graphs.BFloat16, graphs.Int64, graphs.Int32, graphs.Int8, graphs.Uint8, graphs.Bool} {
		x := tensor(t, rt, dtype, 3, 5)
		data := x.Bytes()
		if len(data) != 15*dtype.Size() || x.Len() != 15 || x.DType() != dtype {
			t.Errorf("%v: %d bytes, %d elements", x, len(data), x.Len())
		}
		if address := uintptr(unsafe.Pointer(&data[0])); address%64 != 0 {
			t.Errorf("%v starts at %#x, which is not aligned to 64 bytes", x, address)
		}
		for i, b := range data {
			if b != 0 {
				t.Fatalf("%v: byte %d is %d, want 0", x, i, b)
			}
		}
	}
}

func TestTensorViewsAreTyped(t *testing.T) {
	rt := open(t)
	x := tensor(t, rt, graphs.Float32, 2)
	if x.Int64() != nil || x.Int32() != nil || x.Uint16() != nil {
		t.Error("a float32 tensor can be read as another type")
	}
	if len(x.Float32()) != 2 {
		t.Error("a float32 tensor cannot be read")
	}
	for _, dtype := range []graphs.DType{graphs.Float16, graphs.BFloat16} {
		if got := len(tensor(t, rt, dtype, 3).Uint16()); got != 3 {
			t.Errorf("%v: %d bit patterns, want 3", dtype, got)
		}
	}
}

func TestFromSlices(t *testing.T) {
	rt := open(t)
	f, err := rt.FromFloat32([]float32{1, 2, 3, 4}, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	i, err := rt.FromInt64([]int64{5}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	j, err := rt.FromInt32([]int32{6})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if diff := cmp.Diff([]any{f.Float32(), f.Shape(), i.Int64(), j.Int32(), len(j.Shape())},
		[]any{[]float32{1, 2, 3, 4}, []int64{2, 2}, []int64{5}, []int32{6}, 0}); diff != "" {
		t.Error(diff)
	}
	for _, shape := range [][]int64{{3}, {2, 2, 2}, {0}, {}} {
		if _, err := rt.FromFloat32([]float32{1, 2, 3, 4}, shape...); err == nil {
			t.Errorf("4 elements made a tensor %v", shape)
		}
	}
}

// Shapes that cannot be allocated are refused before anything is.
func TestTensorBounds(t *testing.T) {
	rt := open(t)
	for _, test := range []struct {
		dtype graphs.DType
		shape []int64
		want  string
	}{
		{graphs.Float32, []int64{-1}, "negative"},
		{graphs.Float32, []int64{0, -1}, "negative"},
		{graphs.Float32, []int64{math.MaxInt64}, "more bytes than"},
		{graphs.Float32, []int64{1 << 32, 1 << 32}, "more bytes than"},
		{graphs.Uint8, []int64{1 << 31, 1 << 32}, "more bytes than"},
		{graphs.Float32, []int64{1, 1, 1, 1, 1, 1, 1, 1, 1}, "9 dimensions"},
		{graphs.Float32, []int64{1 << 50}, "the system refused"},
		{graphs.DType(0), []int64{1}, "no element type"},
		{graphs.DType(200), []int64{1}, "no element type"},
	} {
		if made, err := rt.NewTensor(test.dtype, test.shape...); err == nil || !strings.Contains(err.Error(), test.want) {
			made.Close()
			t.Errorf("%v %v: error %v, want one with %q", test.dtype, test.shape, err, test.want)
		}
	}
}

func TestReshape(t *testing.T) {
	rt := open(t)
	x := tensor(t, rt, graphs.Float32, 4, 3)
	for i := range x.Float32() {
		x.Float32()[i] = float32(i)
	}
	address := &x.Float32()[0]
	rapid.Check(t, func(r *rapid.T) {
		shape := rapid.SliceOfN(rapid.Int64Range(0, 5), 0, 5).Draw(r, "shape")
		elements := int64(1)
		for _, d := range shape {
			elements *= d
		}
		before := x.Shape()
		err := x.Reshape(shape...)
		if fits := elements <= 12; fits != (err == nil) {
			r.Fatalf("reshape of 12 elements to %v: %v", shape, err)
		}
		want := shape
		if err != nil {
			want = before
		}
		if diff := cmp.Diff(append([]int64{}, want...), append([]int64{}, x.Shape()...)); diff != "" {
			r.Fatal(diff)
		}
		for i, v := range x.Float32() {
			if v != float32(i) {
				r.Fatalf("element %d is %v", i, v)
			}
		}
		if x.Len() > 0 && &x.Float32()[0] != address {
			r.Fatal("the memory moved")
		}
	})
	if err := x.Reshape(-1); err == nil {
		t.Error("a negative dimension was taken")
	}
}

func TestTensorClose(t *testing.T) {
	rt := open(t)
	x := tensor(t, rt, graphs.Float32, 2)
	for range 2 {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	}
	if x.Float32() != nil || x.Bytes() != nil {
		t.Error("a closed tensor hands out memory")
	}
	if err := x.Reshape(1); !errors.Is(err, graphs.ErrClosed) {
		t.Errorf("reshape of a closed tensor: %v", err)
	}
	var none *graphs.Tensor
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}

func TestParseDType(t *testing.T) {
	for _, dtype := range []graphs.DType{graphs.Float32, graphs.Float16, graphs.BFloat16, graphs.Int64, graphs.Int32, graphs.Int8, graphs.Uint8, graphs.Bool} {
		if got, err := graphs.ParseDType(dtype.String()); err != nil || got != dtype {
			t.Errorf("ParseDType(%q) = %v, %v", dtype, got, err)
		}
	}
	if got, err := graphs.ParseDType("BF16"); err != nil || got != graphs.BFloat16 {
		t.Errorf("ParseDType(BF16) = %v, %v", got, err)
	}
	if _, err := graphs.ParseDType("float8"); err == nil || !strings.Contains(err.Error(), "float8") {
		t.Errorf("ParseDType(float8): %v", err)
	}
}

func TestArenaGeometry(t *testing.T) {
	rt := open(t)
	spec := graphs.ArenaSpec{Layers: 2, Slots: 3, KVHeads: 2, Capacity: 5, HeadDim: 8, DType: graphs.Float16}
	arena, err := rt.NewArena(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	all, err := arena.View(0, 3)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{3, 2, 5, 8}, all.Keys[1].Shape()); diff != "" || len(all.Keys) != 2 || len(all.Values) != 2 {
		t.Errorf("%d keys, %d values: %s", len(all.Keys), len(all.Values), diff)
	}
	// Each byte of each plane gets its own mark, seen through the views of slots.
	mark := byte(0)
	for layer := range 2 {
		for _, plane := range []*graphs.Tensor{all.Keys[layer], all.Values[layer]} {
			slot := len(plane.Bytes()) / 3
			for i := range plane.Bytes() {
				plane.Bytes()[i] = mark + byte(i/slot)
			}
			mark += 3
		}
	}
	for first := range 3 {
		for n := 1; first+n <= 3; n++ {
			view, err := arena.View(first, n)
			if err != nil {
				t.Fatal(err)
			}
			if again, _ := arena.View(first, n); again != view {
				t.Error("a view was made twice")
			}
			for layer := range 2 {
				for kind, tensor := range []*graphs.Tensor{view.Keys[layer], view.Values[layer]} {
					data := tensor.Bytes()
					if want := byte(6*layer + 3*kind + first); data[0] != want || data[len(data)-1] != want+byte(n-1) {
						t.Errorf("slots %d..%d of layer %d: marks %d..%d, want %d..%d", first, first+n-1, layer, data[0], data[len(data)-1], want, want+byte(n-1))
					}
				}
			}
		}
	}
	if want := int64(2 * 2 * 3 * 2 * 5 * 8 * 2); arena.Bytes() < want || arena.Bytes() > want+4*64 {
		t.Errorf("the arena has %d bytes, want about %d", arena.Bytes(), want)
	}
	for _, bad := range [][2]int{{-1, 1}, {0, 0}, {0, 4}, {3, 1}, {2, 2}, {1, math.MaxInt}} {
		if _, err := arena.View(bad[0], bad[1]); err == nil {
			t.Errorf("view %v was given", bad)
		}
	}
}

func TestArenaRefusals(t *testing.T) {
	rt := open(t)
	good := graphs.ArenaSpec{Layers: 1, Slots: 1, KVHeads: 1, Capacity: 1, HeadDim: 1, DType: graphs.Float32}
	for _, test := range []struct {
		change func(*graphs.ArenaSpec)
		want   []string
	}{
		{func(s *graphs.ArenaSpec) { s.Slots = 0 }, []string{"slots is 0"}},
		{func(s *graphs.ArenaSpec) { s.HeadDim = -1 }, []string{"head_dim is -1"}},
		{func(s *graphs.ArenaSpec) { s.DType = 0 }, []string{"no element type"}},
		{func(s *graphs.ArenaSpec) { s.Slots, s.Capacity = 1<<40, 1<<40 }, []string{"more bytes than"}},
		{func(s *graphs.ArenaSpec) { s.Capacity = 1 << 47 }, []string{"(1125899906842624 bytes)", "1 slots of 140737488355328 tokens", "refused", "fewer slots"}},
	} {
		spec := good
		test.change(&spec)
		arena, err := rt.NewArena(spec)
		if err == nil {
			arena.Close()
			t.Errorf("%+v was allocated", spec)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: the error lacks %q: %v", spec, want, err)
			}
		}
	}
}

func TestArenaClose(t *testing.T) {
	rt := open(t)
	arena, err := rt.NewArena(graphs.ArenaSpec{Layers: 1, Slots: 2, KVHeads: 1, Capacity: 4, HeadDim: 8, DType: graphs.Float32})
	if err != nil {
		t.Fatal(err)
	}
	view, err := arena.View(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	}
	if view.Keys[0].Float32() != nil {
		t.Error("a view of a closed arena hands out memory")
	}
	if _, err := arena.View(0, 1); !errors.Is(err, graphs.ErrClosed) {
		t.Errorf("view of a closed arena: %v", err)
	}
}

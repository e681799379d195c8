package graphstest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"unsafe"

	"glimpse/graphs"

	"pgregory.net/rapid"
)

// memory is what every DeviceMemory must do, with the tensors and arenas that lie in it.
func (s *suite) memory(t *testing.T, memory graphs.DeviceMemory) {
	t.Run("blocks", func(t *testing.T) { s.blocks(t, memory) })
	t.Run("copies", func(t *testing.T) { s.copies(t, memory) })
	t.Run("tensors", func(t *testing.T) { s.deviceTensors(t, memory) })
	t.Run("arenas", func(t *testing.T) { s.deviceArenas(t, memory) })
	t.Run("no room", func(t *testing.T) { s.noRoom(t, memory) })
	t.Run("a run in place", func(t *testing.T) { s.inPlace(t, memory) })
}

// block copies one row of bytes.
func blockCopy(to, from unsafe.Pointer, n int) []graphs.BlockCopy {
	return []graphs.BlockCopy{{To: to, From: from, Width: int64(n), Rows: 1}}
}

func random(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 11))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func (s *suite) blocks(t *testing.T, memory graphs.DeviceMemory) {
	const n = 100_003
	var made []unsafe.Pointer
	for range 3 {
		p, err := memory.Allocate(n)
		must(t, err)
		if uintptr(p)%256 != 0 {
			t.Errorf("%p is not aligned", p)
		}
		got := bytes.Repeat([]byte{1}, n)
		must(t, memory.Copy(blockCopy(unsafe.Pointer(&got[0]), p, n)))
		if !bytes.Equal(got, make([]byte, n)) {
			t.Error("new memory is not zero")
		}
		want := random(n)
		must(t, memory.Copy(blockCopy(p, unsafe.Pointer(&want[0]), n)))
		made = append(made, p)
	}
	for _, p := range made {
		must(t, memory.Free(p))
	}
	if available, err := memory.Available(); err != nil || available <= 0 {
		t.Errorf("%d bytes available, %v", available, err)
	}
	if err := memory.Copy(nil); err != nil {
		t.Errorf("no copies: %v", err)
	}
}

// copies compares pieces of rows with the same in ordinary memory.
func (s *suite) copies(t *testing.T, memory graphs.DeviceMemory) {
	const n = 4096
	rapid.Check(t, func(r *rapid.T) {
		width, rows := rapid.IntRange(1, 64).Draw(r, "width"), rapid.IntRange(1, 12).Draw(r, "rows")
		to, from := rapid.IntRange(width, 96).Draw(r, "to pitch"), rapid.IntRange(width, 96).Draw(r, "from pitch")
		host, want := random(n), make([]byte, n)
		ordinary := graphs.BlockCopy{To: unsafe.Pointer(&want[n/2]), From: unsafe.Pointer(&host[0]), ToPitch: int64(to), FromPitch: int64(from), Width: int64(width), Rows: int64(rows)}
		ordinary.InOrdinaryMemory()
		p, err := memory.Allocate(n)
		if err != nil {
			r.Fatal(err)
		}
		defer memory.Free(p)
		q, err := memory.Allocate(n)
		if err != nil {
			r.Fatal(err)
		}
		defer memory.Free(q)
		onDevice := ordinary
		onDevice.To, onDevice.From = unsafe.Add(p, n/2), q
		got := make([]byte, n)
		for _, err := range []error{
			memory.Copy(blockCopy(q, unsafe.Pointer(&host[0]), n)), memory.Copy([]graphs.BlockCopy{onDevice}), memory.Copy(blockCopy(unsafe.Pointer(&got[0]), p, n)),
		} {
			if err != nil {
				r.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			r.Fatal("a copy within the device differs from one in ordinary memory")
		}
	})
}

func (s *suite) deviceTensors(t *testing.T, memory graphs.DeviceMemory) {
	tensor, err := s.runtime.NewTensorIn(memory, graphs.Float32, 4, 6)
	must(t, err)
	defer tensor.Close()
	if !tensor.OnDevice() || tensor.Float32() != nil || tensor.Bytes() != nil || tensor.Len() != 24 {
		t.Errorf("%v on the device: %v, %d elements handed out", tensor, tensor.OnDevice(), len(tensor.Float32()))
	}
	want, got := random(96), make([]byte, 96)
	must(t, tensor.Write(want))
	must(t, tensor.Read(got))
	if !bytes.Equal(got, want) {
		t.Error("what was read is not what was written")
	}
	must(t, tensor.Reshape(2, 3))
	must(t, tensor.Read(got[:24]))
	if !bytes.Equal(got[:24], want[:24]) {
		t.Error("a smaller shape begins elsewhere")
	}
	if err := tensor.Write(want); err == nil {
		t.Error("96 bytes were written into a tensor of 24")
	}
	must(t, tensor.Reshape(0, 3))
	must(t, tensor.Read(nil))
	must(t, tensor.Close())
	must(t, tensor.Close())
	if err := tensor.Read(nil); !errors.Is(err, graphs.ErrClosed) {
		t.Errorf("read of a closed tensor: %v", err)
	}
}

// deviceArenas does the same to an arena on the device and to one in ordinary memory, and compares all of both.
func (s *suite) deviceArenas(t *testing.T, memory graphs.DeviceMemory) {
	spec := graphs.ArenaSpec{Layers: 2, Slots: 3, KVHeads: 2, Capacity: 7, HeadDim: 8, DType: graphs.Float16}
	wide := spec
	wide.Capacity = 11
	type pair struct{ device, ordinary *graphs.Arena }
	make2 := func(spec graphs.ArenaSpec) (p pair) {
		var err error
		p.device, err = s.runtime.NewArenaIn(memory, spec)
		must(t, err)
		p.ordinary, err = s.runtime.NewArena(spec)
		must(t, err)
		t.Cleanup(func() { check(t, p.device.Close()); check(t, p.device.Close()); check(t, p.ordinary.Close()) })
		return p
	}
	small, large := make2(spec), make2(wide)
	content := func(a *graphs.Arena) []byte {
		view, err := a.View(0, spec.Slots)
		must(t, err)
		var all []byte
		for layer := range spec.Layers {
			for _, tensor := range []*graphs.Tensor{view.Keys[layer], view.Values[layer]} {
				part := make([]byte, tensor.Len()*tensor.DType().Size())
				must(t, tensor.Read(part))
				all = append(all, part...)
			}
		}
		return all
	}
	seed := 0
	fresh := func(tokens int64) *graphs.Tensor {
		seed++
		tensor := s.tensor(t, graphs.Float16, 1, int64(spec.KVHeads), tokens, int64(spec.HeadDim))
		must(t, tensor.Write(random(len(tensor.Bytes()) + seed)[seed:]))
		return tensor
	}
	on := func(r *rapid.T, p pair, do func(a *graphs.Arena) error) {
		a, b := do(p.device), do(p.ordinary)
		if (a == nil) != (b == nil) {
			r.Fatalf("on the device %v, in ordinary memory %v", a, b)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		for range rapid.IntRange(1, 6).Draw(r, "operations") {
			slot, layer := rapid.IntRange(-1, spec.Slots).Draw(r, "slot"), rapid.IntRange(0, spec.Layers-1).Draw(r, "layer")
			tokens := rapid.IntRange(0, spec.Capacity+1).Draw(r, "tokens")
			switch rapid.IntRange(0, 3).Draw(r, "operation") {
			case 0:
				to, first := rapid.IntRange(0, spec.Slots-1).Draw(r, "to"), rapid.IntRange(0, 3).Draw(r, "first")
				on(r, small, func(a *graphs.Arena) error { return a.Copy(slot, to, first, tokens) })
			case 1:
				keys := fresh(int64(max(1, tokens)))
				on(r, small, func(a *graphs.Arena) error { return a.StoreKeys(layer, slot, keys, tokens) })
				on(r, large, func(a *graphs.Arena) error { return a.StoreValues(layer, slot, keys, tokens) })
			case 2:
				a, b := large.device.Import(small.device, slot, tokens), large.ordinary.Import(small.ordinary, slot, tokens)
				if (a == nil) != (b == nil) {
					r.Fatalf("import: on the device %v, in ordinary memory %v", a, b)
				}
			case 3:
				a, b := small.device.Import(large.ordinary, slot, tokens), small.ordinary.Import(large.ordinary, slot, tokens)
				if (a == nil) != (b == nil) {
					r.Fatalf("import into the device: %v, into ordinary memory %v", a, b)
				}
			}
		}
		for _, p := range []pair{small, large} {
			if !bytes.Equal(content(p.device), content(p.ordinary)) {
				r.Fatal("the arena on the device differs from the one in ordinary memory")
			}
		}
	})
}

func (s *suite) noRoom(t *testing.T, memory graphs.DeviceMemory) {
	const tooMuch = 1 << 45
	if p, err := memory.Allocate(tooMuch); !errors.Is(err, graphs.ErrOutOfMemory) {
		t.Errorf("%d bytes: %p, %v", int64(tooMuch), p, err)
	}
	if _, err := s.runtime.NewArenaIn(memory, graphs.ArenaSpec{Layers: 64, Slots: 512, KVHeads: 128, Capacity: 1 << 15, HeadDim: 128, DType: graphs.Float16}); !errors.Is(err, graphs.ErrOutOfMemory) {
		t.Errorf("an arena that does not fit: %v", err)
	}
	if _, err := s.runtime.NewTensorIn(memory, graphs.Float32, tooMuch/4); !errors.Is(err, graphs.ErrOutOfMemory) {
		t.Errorf("a tensor that does not fit: %v", err)
	}
	small, err := s.runtime.NewTensorIn(memory, graphs.Float32, 8) // and there is room for what fits
	must(t, err)
	must(t, small.Close())
}

// inPlace runs a graph whose inputs and output lie on the device, and one where only some do.
func (s *suite) inPlace(t *testing.T, memory graphs.DeviceMemory) {
	session := s.load(t, "add.onnx")
	on := func(data []float32) *graphs.Tensor {
		tensor, err := s.runtime.NewTensorIn(memory, graphs.Float32, 2, 3)
		must(t, err)
		t.Cleanup(func() { check(t, tensor.Close()) })
		if data != nil {
			must(t, tensor.Write(s.float32(t, data, 2, 3).Bytes()))
		}
		return tensor
	}
	a, b := []float32{1, 2, 3, 4, 5, 6}, []float32{10, 20, 30, 40, 50, 60}
	want := []float32{11, 22, 33, 44, 55, 66}
	sum, ordinary := on(nil), s.tensor(t, graphs.Float32, 2, 3)
	must(t, session.Run(t.Context(), named{"a": on(a), "b": on(b)}, named{"sum": sum}))
	must(t, sum.Read(ordinary.Bytes()))
	equal(t, "the sum of two on the device", ordinary.Float32(), want)
	clear(ordinary.Float32())
	must(t, session.Run(t.Context(), named{"a": on(a), "b": s.float32(t, b, 2, 3)}, named{"sum": ordinary}))
	equal(t, "the sum of one on the device and one that is not", ordinary.Float32(), want)
}

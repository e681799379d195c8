package graphs

import (
	"errors"
	"testing"
)

// What is copied arrives in every layer and head, and nothing around it moves.
func TestArenaCopy(t *testing.T) {
	rt := &Runtime{}
	a, err := rt.NewArena(ArenaSpec{Layers: 2, Slots: 3, KVHeads: 2, Capacity: 5, HeadDim: 4, DType: Float32})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	place := func(plane, slot, head, token int) int64 {
		return int64(plane)*a.plane + int64(slot)*a.slot + int64(((head*5)+token)*4*4)
	}
	each := func(f func(plane, slot, head, token int, at int64)) {
		for plane := range 4 {
			for slot := range 3 {
				for head := range 2 {
					for token := range 5 {
						f(plane, slot, head, token, place(plane, slot, head, token))
					}
				}
			}
		}
	}
	mark := func(plane, slot, head, token int) byte { return byte(1 + plane*30 + slot*10 + head*5 + token) }
	each(func(plane, slot, head, token int, at int64) {
		for i := range int64(16) {
			a.memory.data[at+i] = mark(plane, slot, head, token)
		}
	})
	if err := a.Copy(2, 0, 1, 3); err != nil {
		t.Fatal(err)
	}
	each(func(plane, slot, head, token int, at int64) {
		want := mark(plane, slot, head, token)
		if slot == 0 && token >= 1 && token < 4 {
			want = mark(plane, 2, head, token)
		}
		for i := range int64(16) {
			if got := a.memory.data[at+i]; got != want {
				t.Fatalf("plane %d slot %d head %d token %d byte %d: %d, want %d", plane, slot, head, token, i, got, want)
			}
		}
	})
	for _, bad := range [][4]int{{-1, 0, 0, 1}, {0, 3, 0, 1}, {0, 1, -1, 1}, {0, 1, 3, 3}, {0, 1, 0, -1}} {
		if err := a.Copy(bad[0], bad[1], bad[2], bad[3]); err == nil {
			t.Errorf("%v is no error", bad)
		}
	}
	a.Close()
	if err := a.Copy(0, 1, 0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed arena: %v", err)
	}
}

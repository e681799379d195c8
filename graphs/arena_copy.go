package graphs

import (
	"fmt"
	"slices"
	"unsafe"
)

// Copy copies tokens first..first+n-1 of one slot's keys and values, in every layer, to the same places of another slot.
// The caller makes sure that no run uses either slot meanwhile.
func (a *Arena) Copy(from, to, first, n int) error {
	s := a.spec
	if from < 0 || to < 0 || from >= s.Slots || to >= s.Slots || first < 0 || n < 0 || n > s.Capacity-first {
		return fmt.Errorf("copy tokens %d+%d of slot %d to slot %d: the arena has %d slots of %d tokens", first, n, from, to, s.Slots, s.Capacity)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("KV arena: %w", ErrClosed)
	}
	if n == 0 || from == to {
		return nil
	}
	token := int64(s.HeadDim) * int64(s.DType.Size())
	head := token * int64(s.Capacity)
	a.copies = a.copies[:0]
	for plane := range int64(2 * s.Layers) {
		start := plane*a.plane + int64(first)*token
		a.copies = append(a.copies, BlockCopy{
			To: unsafe.Add(a.memory.start, start+int64(to)*a.slot), From: unsafe.Add(a.memory.start, start+int64(from)*a.slot),
			ToPitch: head, FromPitch: head, Width: int64(n) * token, Rows: int64(s.KVHeads),
		})
	}
	return copyBlocks(a.memory, a.memory, a.copies)
}

// Import copies the first tokens of a slot from an arena of the same geometry but for its capacity, in every layer. The caller
// makes sure that no run uses the slot in either arena meanwhile.
func (a *Arena) Import(from *Arena, slot, tokens int) error {
	s, f := a.spec, from.spec
	f.Capacity = s.Capacity
	if s != f || slot < 0 || slot >= s.Slots || tokens < 0 || tokens > min(s.Capacity, from.spec.Capacity) {
		return fmt.Errorf("copy %d tokens of slot %d from an arena of %+v to one of %+v", tokens, slot, from.spec, s)
	}
	view, err := from.View(slot, 1)
	if err != nil {
		return err
	}
	for layer := range s.Layers {
		if err := a.StoreKeys(layer, slot, view.Keys[layer], tokens); err != nil {
			return err
		}
		if err := a.StoreValues(layer, slot, view.Values[layer], tokens); err != nil {
			return err
		}
	}
	return nil
}

// StoreKeys copies the first tokens of keys [1, kv_heads, n, head_dim] to those of a slot. The caller makes sure that no run
// uses the slot or writes the keys meanwhile.
func (a *Arena) StoreKeys(layer, slot int, keys *Tensor, tokens int) error {
	return a.store("keys", 2*layer, layer, slot, keys, tokens)
}

// StoreValues is StoreKeys of values.
func (a *Arena) StoreValues(layer, slot int, values *Tensor, tokens int) error {
	return a.store("values", 2*layer+1, layer, slot, values, tokens)
}

func (a *Arena) store(what string, plane, layer, slot int, t *Tensor, tokens int) error {
	s := a.spec
	fits := layer >= 0 && layer < s.Layers && slot >= 0 && slot < s.Slots && tokens >= 0 && tokens <= s.Capacity
	if !fits || t.dtype != s.DType || !slices.Equal(t.Shape(), []int64{1, int64(s.KVHeads), t.Dim(2), int64(s.HeadDim)}) || int64(tokens) > t.Dim(2) {
		return fmt.Errorf("store %d tokens of %v as the %s of slot %d, layer %d of an arena of %+v", tokens, t, what, slot, layer, s)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("KV arena: %w", ErrClosed)
	}
	if err := t.acquire(); err != nil {
		return fmt.Errorf("KV arena: the %s to store: %w", what, err)
	}
	defer t.release()
	token := int64(s.HeadDim) * int64(s.DType.Size())
	start := int64(plane)*a.plane + int64(slot)*a.slot
	if tokens == 0 {
		return nil
	}
	return copyBlocks(a.memory, t.memory, []BlockCopy{{
		To: unsafe.Add(a.memory.start, start), From: t.start, ToPitch: int64(s.Capacity) * token, FromPitch: t.Dim(2) * token,
		Width: int64(tokens) * token, Rows: int64(s.KVHeads),
	}})
}

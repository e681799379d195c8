package graphs

import "fmt"

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
	token := int64(s.HeadDim) * int64(s.DType.Size())
	head := token * int64(s.Capacity)
	for plane := range int64(2 * s.Layers) {
		src, dst := plane*a.plane+int64(from)*a.slot, plane*a.plane+int64(to)*a.slot
		for h := range int64(s.KVHeads) {
			at, size := h*head+int64(first)*token, int64(n)*token
			copy(a.memory.data[dst+at:dst+at+size], a.memory.data[src+at:src+at+size])
		}
	}
	return nil
}

package graphs

import (
	"os/signal"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A handler that changes while a CUDA session is made is put back; others are
// left alone.
func TestKeepSignals(t *testing.T) {
	if changed := keepSignals(func() {}); len(changed) != 0 {
		t.Errorf("signals %v were put back though nothing changed", changed)
	}
	defer signal.Reset(unix.SIGUSR2)
	changed := keepSignals(func() { signal.Ignore(unix.SIGUSR2) })
	if !slices.Equal(changed, []int{int(unix.SIGUSR2)}) {
		t.Errorf("signals %v were put back, want SIGUSR2", changed)
	}
	if again := keepSignals(func() {}); len(again) != 0 {
		t.Errorf("signals %v are still changing", again)
	}
}

func TestPointerIn(t *testing.T) {
	type inner struct{ o *int }
	type outer struct{ s *inner }
	n := 1
	for _, bad := range []any{nil, 1, &inner{}, (*inner)(nil), &struct{ o int }{1}, &struct{ other *int }{&n}} {
		if pointer, err := pointerIn(bad, "o"); err == nil || pointer != nil {
			t.Errorf("pointerIn(%T) = %v, want an error", bad, pointer)
		}
	}
	if pointer, err := pointerIn(&outer{&inner{&n}}, "s", "o"); err != nil || (*int)(pointer) != &n {
		t.Errorf("pointerIn = %v, %v", pointer, err)
	}
	if _, err := pointerIn(&outer{}, "s", "o"); err == nil {
		t.Error("a nil pointer on the way was followed")
	}
}

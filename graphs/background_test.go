package graphs

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A background thread runs one job at a time at a lower priority, and so do threads that are made on it; the caller's own
// priority stays.
func TestBackgroundThread(t *testing.T) {
	// The system call returns 20 − nice.
	mine := func() int {
		n, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := mine()
	b := newBackground()
	var wg sync.WaitGroup
	sum := 0
	for range 20 {
		wg.Go(func() {
			b.do(func() {
				if got := mine(); got != max(before-backgroundNice, 1) {
					t.Errorf("priority %d on the background thread, %d elsewhere", got, before)
				}
				sum++
			})
		})
	}
	wg.Wait()
	b.close()
	if sum != 20 {
		t.Errorf("%d of 20 jobs ran", sum)
	}
	if got := mine(); got != before {
		t.Errorf("the caller's priority went from %d to %d", before, got)
	}
	(*background)(nil).do(func() { sum++ })
	if sum != 21 {
		t.Error("without a thread of its own a job runs at once")
	}
	(*background)(nil).close()
}

package graphs

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// backgroundNice is what background graphs' threads yield by: where both want a core, the others get seven tenths of it
// (the scheduler's weights are 1024 and 423).
const backgroundNice = 4

// background is an operating system's thread with a lower priority, which threads that are made on it inherit, those of
// ONNX Runtime's pools among them. Priorities belong to threads on Linux and cannot be raised again without rights, so
// the thread is kept for this and ends with it.
type background struct {
	jobs chan func()
	done chan struct{}
}

func newBackground() *background {
	b := &background{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(b.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		// A system that does not allow it runs the graph at the usual priority.
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), backgroundNice)
		for job := range b.jobs {
			job()
		}
	}()
	return b
}

// do runs f on the thread and waits for it; on the caller's where b is nil.
func (b *background) do(f func()) {
	if b == nil {
		f()
		return
	}
	finished := make(chan struct{})
	b.jobs <- func() {
		defer close(finished)
		f()
	}
	<-finished
}

// inBackground runs f on a thread of its own that gives way.
func inBackground(f func()) {
	b := newBackground()
	defer b.close()
	b.do(f)
}

// close ends the thread; nobody may be inside do.
func (b *background) close() {
	if b != nil {
		close(b.jobs)
		<-b.done
	}
}

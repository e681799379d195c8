package main

import (
	"context"
	"io"
	"sync"
)

// printer writes texts to w from a goroutine of its own, in order, so that whoever makes them never waits for w. What
// waits is bounded by the length of one answer.
type printer struct {
	mu    sync.Mutex
	more  *sync.Cond
	queue []byte
	ended bool
	err   error
	done  chan struct{}
}

// newPrinter starts a printer; giveUp is called with the error of the first failed write.
func newPrinter(w io.Writer, giveUp context.CancelCauseFunc) *printer {
	p := &printer{done: make(chan struct{})}
	p.more = sync.NewCond(&p.mu)
	go func() {
		defer close(p.done)
		for {
			text, ok := p.next()
			if !ok {
				return
			}
			if _, err := w.Write(text); err != nil {
				p.mu.Lock()
				p.err = err
				p.mu.Unlock()
				giveUp(err)
				return
			}
		}
	}()
	return p
}

func (p *printer) next() ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) == 0 && !p.ended {
		p.more.Wait()
	}
	text := p.queue
	p.queue = nil
	return text, len(text) > 0
}

func (p *printer) print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, text...)
	p.more.Signal()
}

// close waits until everything is written and returns the error of the first write that failed.
func (p *printer) close() error {
	p.mu.Lock()
	p.ended = true
	p.more.Signal()
	p.mu.Unlock()
	<-p.done
	return p.err
}

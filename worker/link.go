// A link sends frames without making its callers wait.

package worker

import (
	"errors"
	"fmt"
	"net"
	"sync"
)

// maxQueued bounds the bytes that wait for a peer that does not read. Answers are small: what fills this is a peer that
// was stopped, while pictures keep coming.
const maxQueued = 1 << 30

var (
	errFull       = errors.New("the worker does not read: too much waits for it")
	errLinkClosed = errors.New("the connection is closed")
)

// link owns a connection's sending side; its goroutine ends with finish or fail.
type link struct {
	conn net.Conn
	wake chan struct{} // one element when there is something to do
	done chan struct{} // closed when the goroutine has ended, and the connection with it

	mu     sync.Mutex
	queue  net.Buffers
	queued int
	ending bool // close the connection once the queue is sent
	err    error
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.run()
	return l
}

// send queues a frame. Its payload must not be changed afterwards.
func (l *link) send(f frame) error {
	size := headerBytes + len(f.payload)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return l.err
	case l.ending:
		return errLinkClosed
	case l.queued+size > maxQueued:
		return errFull
	}
	l.queue = append(l.queue, f.header())
	if len(f.payload) > 0 {
		l.queue = append(l.queue, f.payload)
	}
	l.queued += size
	l.signal()
	return nil
}

// sendValue queues a frame with an encoded value.
func (l *link) sendValue(k kind, id uint64, v any) error {
	payload, err := encode(v)
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if len(payload) > maxPayload {
		return fmt.Errorf("send: %d bytes; a frame takes %d", len(payload), maxPayload)
	}
	return l.send(frame{kind: k, id: id, payload: payload})
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run writes what is queued.
func (l *link) run() {
	defer close(l.done)
	defer l.conn.Close()
	for range l.wake {
		l.mu.Lock()
		batch, size, ending, err := l.queue, l.queued, l.ending, l.err
		l.queue = nil
		l.mu.Unlock()
		if err != nil {
			return
		}
		if _, err := batch.WriteTo(l.conn); err != nil {
			l.fail(fmt.Errorf("write to the worker socket: %w", err))
			return
		}
		l.mu.Lock()
		l.queued -= size
		last := ending && len(l.queue) == 0
		l.mu.Unlock()
		if last {
			return
		}
		if ending {
			l.signal()
		}
	}
}

// finish closes the connection after what is queued.
func (l *link) finish() {
	l.mu.Lock()
	l.ending = true
	l.mu.Unlock()
	l.signal()
}

// fail closes the connection at once; sends fail with err.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.queue = nil
	l.mu.Unlock()
	_ = l.conn.Close() // what is still to be said is lost anyway
	l.signal()
}

// Requests to a worker: sent, waited for, given up.

package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"glimpse/engine"
)

// call is a request in flight. The connection's goroutine puts, the request's own takes.
type call struct {
	mu     sync.Mutex
	frames []frame
	err    error // why no more will come
	ready  chan struct{}
}

func (c *call) put(f frame) {
	c.mu.Lock()
	c.frames = append(c.frames, f)
	c.mu.Unlock()
	c.signal()
}

func (c *call) fail(err error) {
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	c.signal()
}

func (c *call) signal() {
	select {
	case c.ready <- struct{}{}:
	default:
	}
}

// take returns what has come, in order.
func (c *call) take() ([]frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	frames := c.frames
	c.frames = nil
	return frames, c.err
}

// ask sends a request and decodes its result into reply; token, where it is set, gets what comes before. It returns soon
// after ctx ends.
func (c *child) ask(ctx context.Context, k kind, request, reply any, token func(engine.Token)) error {
	payload, err := encode(request)
	if err != nil {
		return err
	}
	if len(payload) > maxPayload {
		return &engine.RequestError{Param: "messages", Code: engine.CodeInvalid,
			Message: fmt.Sprintf("the request has %d MiB of pictures and text; at most %d MiB are taken", len(payload)>>20, maxPayload>>20)}
	}
	id, in, err := c.begin(k, payload)
	if err != nil {
		return err
	}
	for {
		select {
		case <-in.ready:
		case <-ctx.Done():
			c.forget(id)
			return ctx.Err()
		}
		frames, broken := in.take()
		for _, f := range frames {
			done, err := finish(f, reply, token)
			if errors.Is(err, errProtocol) {
				c.link.fail(err)
				return diedInFlight(err)
			}
			if done || err != nil {
				return err
			}
		}
		if errors.Is(broken, errLinkClosed) {
			return engine.ErrClosed
		}
		if broken != nil {
			return diedInFlight(broken)
		}
		if err := ctx.Err(); err != nil {
			c.forget(id)
			return err
		}
	}
}

// begin sends a request.
func (c *child) begin(k kind, payload []byte) (uint64, *call, error) {
	in := &call{ready: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls == nil {
		return 0, nil, diedInFlight(c.err)
	}
	c.last++
	err := c.link.send(frame{kind: k, id: c.last, payload: payload})
	switch {
	case errors.Is(err, errFull):
		return 0, nil, &Unavailable{Message: "the model has too much to do: try again later", After: retrySoon, Err: err}
	case err != nil && c.ending:
		return 0, nil, engine.ErrClosed
	case err != nil:
		return 0, nil, diedInFlight(err)
	}
	c.calls[c.last] = in
	return c.last, in, nil
}

// forget gives a request up; the worker is told.
func (c *child) forget(id uint64) {
	c.mu.Lock()
	waiting := c.calls[id] != nil
	delete(c.calls, id)
	c.mu.Unlock()
	if waiting {
		_ = c.link.send(frame{kind: kindCancel, id: id}) // a broken link cancels everything
	}
}

// finish looks into one frame of a request. done says that it was the last.
func finish(f frame, reply any, token func(engine.Token)) (done bool, err error) {
	switch f.kind {
	case kindToken:
		var t engine.Token
		if err := decode(f.payload, &t); err != nil {
			return false, err
		}
		if token != nil {
			token(t)
		}
		return false, nil
	case kindFailure:
		var reason failure
		if err := decode(f.payload, &reason); err != nil {
			return true, err
		}
		if err := reason.err(); !errors.Is(err, engine.ErrClosed) {
			return true, err
		}
		return true, diedInFlight(engine.ErrClosed) // the worker ends, this process does not
	default:
		return true, decode(f.payload, reply)
	}
}

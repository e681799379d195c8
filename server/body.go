// Reading request bodies: bounded one by one, bounded together, and in bounded time.

package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync"
	"time"
)

// byteBudget bounds the bytes of all bodies, or of all media that are held beside them, at one time. Bodies take their share as
// they arrive, so a client that announces much and sends little holds little.
type byteBudget struct {
	mu   sync.Mutex
	left int64
}

func (b *byteBudget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < n {
		return false
	}
	b.left -= n
	return true
}

func (b *byteBudget) give(n int64) {
	b.mu.Lock()
	b.left += n
	b.mu.Unlock()
}

// hold takes memory for what a request has beside its body until it ends: frames of videos and sounds, decoded, which are
// many times what came, and what was fetched or read by URL.
func (s *Server) hold(ctx context.Context, param string, n int64) error {
	x, ok := ctx.Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil
	}
	if x.held+n > s.limits.HeldBytes {
		return mediaError(param, "the request's media have more than the %d bytes that this server holds, decoded: choose smaller or fewer", s.limits.HeldBytes)
	}
	if !s.held.take(n) {
		return &Error{Status: http.StatusServiceUnavailable, Type: typeServer, Code: codeBusy, Message: "the server holds as many media as it can", RetryAfter: 1}
	}
	x.held += n
	return nil
}

// bodyChunk is how much is read, and taken from the budget, at a time.
const bodyChunk = 64 << 10

// limitedBody is a request's body under all three bounds. Close gives the budget back; the bytes read must not be used
// after that.
type limitedBody struct {
	s       *Server
	body    io.Reader
	control *http.ResponseController
	limit   int64
	seen    int64
	taken   int64
}

// openBody checks the announced type and size and starts the clock.
func (s *Server) openBody(w http.ResponseWriter, r *http.Request, mediaType string) (*limitedBody, map[string]string, error) {
	got, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || got != mediaType {
		return nil, nil, &Error{Status: http.StatusUnsupportedMediaType, Type: typeInvalid, Code: codeMediaType, Message: fmt.Sprintf("the Content-Type must be %s", mediaType)}
	}
	if r.ContentLength > s.limits.BodyBytes {
		w.Header().Set("Connection", "close")
		return nil, nil, s.tooLarge()
	}
	control := http.NewResponseController(w)
	// Not every writer has deadlines (tests' recorders have none): there the body is in memory already.
	_ = control.SetReadDeadline(time.Now().Add(s.limits.BodyTimeout))
	return &limitedBody{s: s, body: r.Body, control: control, limit: s.limits.BodyBytes}, params, nil
}

func (s *Server) tooLarge() *Error {
	return &Error{Status: http.StatusRequestEntityTooLarge, Type: typeInvalid, Code: codeBodyTooLarge, Message: fmt.Sprintf("the request body is larger than the %d bytes this server accepts", s.limits.BodyBytes)}
}

// Read implements io.Reader. Its errors are *Error, io.EOF, or the connection's.
func (b *limitedBody) Read(p []byte) (int, error) {
	if b.seen >= b.taken {
		if !b.s.bodies.take(bodyChunk) {
			return 0, &Error{Status: http.StatusServiceUnavailable, Type: typeServer, Code: codeBusy, Message: "the server holds as many request bodies as it can", RetryAfter: 1}
		}
		b.taken += bodyChunk
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.taken-b.seen)])
	b.seen += int64(n)
	if b.seen > b.limit {
		return 0, b.s.tooLarge()
	}
	if err == io.EOF {
		// The connection is watched for the client going away from now on; the deadline must not end that.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// Close gives the budget back. The deadline stays where the body was not read to its end: net/http reads on to see
// whether it can keep the connection, and must not wait for ever either.
func (b *limitedBody) Close() {
	b.s.bodies.give(b.taken)
	b.taken = 0
}

// readJSON reads the whole body of a JSON request. The caller gives the bytes back with release when it needs neither
// them nor what was decoded from them.
func (s *Server) readJSON(w http.ResponseWriter, r *http.Request) (raw []byte, release func(), err error) {
	body, _, err := s.openBody(w, r, "application/json")
	if err != nil {
		return nil, nil, err
	}
	raw, err = io.ReadAll(body)
	if err != nil {
		body.Close()
		return nil, nil, bodyError(w, err)
	}
	return raw, body.Close, nil
}

// bodyError says what a failed read of the body means. The rest of the body stays unread, so the connection must go.
func bodyError(w http.ResponseWriter, err error) error {
	w.Header().Set("Connection", "close")
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("", "incomplete_body", "the request body ends before its announced length")
	}
	return fmt.Errorf("read request body: %w", err)
}

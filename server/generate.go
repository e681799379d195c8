// Running a model for a request: several choices at once, their tokens in order, panics caught, time bounded.

package server

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"glimpse/engine"
)

// choiceToken is one token of one choice; or, with result set, the end of that choice.
type choiceToken struct {
	choice int
	token  engine.Token
	result *engine.Result
}

// tokenQueue carries tokens from the engine's goroutine, which must not wait for slow clients, to the one that writes.
// It is as long as the answer at most.
type tokenQueue struct {
	mu    sync.Mutex
	items []choiceToken
	ready chan struct{} // one element when there may be items
}

func newTokenQueue() *tokenQueue { return &tokenQueue{ready: make(chan struct{}, 1)} }

func (q *tokenQueue) put(t choiceToken) {
	q.mu.Lock()
	q.items = append(q.items, t)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns what there is, in order.
func (q *tokenQueue) take() []choiceToken {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}

// answerContext bounds the time of an answer, and says why it ended when it did not end by itself.
func (s *Server) answerContext(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(r.Context(), s.limits.AnswerTimeout, errAnswerTimeout)
}

// generation is a request's answers under way.
type generation struct {
	queue  *tokenQueue
	cancel context.CancelFunc
	done   chan struct{} // closed when every choice has ended
	err    error         // after done: the first failure
}

// generate starts one Generate a choice. Their tokens and results arrive in the queue; after a failure the others are
// cancelled. The caller waits for done.
func (s *Server) generate(ctx context.Context, m *served, request engine.Request, choices int) *generation {
	ctx, cancel := context.WithCancel(ctx)
	g := &generation{queue: newTokenQueue(), cancel: cancel, done: make(chan struct{})}
	var (
		wait sync.WaitGroup
		once sync.Once
	)
	for i := range choices {
		wait.Go(func() {
			result, err := s.generateOne(ctx, m, i, choiceRequest(request, i), func(t engine.Token) {
				g.queue.put(choiceToken{choice: i, token: t})
			})
			if err != nil {
				once.Do(func() { g.err = err })
				cancel()
				return
			}
			g.queue.put(choiceToken{choice: i, result: result})
		})
	}
	go func() {
		wait.Wait()
		cancel()
		close(g.done)
	}()
	return g
}

// choiceRequest gives each choice a seed of its own.
func choiceRequest(r engine.Request, choice int) engine.Request {
	if r.Seed != nil && choice > 0 {
		seed := *r.Seed + uint64(choice)
		r.Seed = &seed
	}
	return r
}

// generateOne runs the model once and keeps the time of its tokens.
func (s *Server) generateOne(ctx context.Context, m *served, choice int, request engine.Request, token func(engine.Token)) (result *engine.Result, err error) {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		request.CacheScope = x.key // that a picture was seen before is nobody else's business
	}
	ctx, span := s.traceModel(ctx, operationChat, m)
	if span.IsRecording() {
		span.SetAttributes(requestAttributes(request, choice)...)
	}
	last := time.Now()
	start := last
	defer func() {
		if v := recover(); v != nil {
			result, err = nil, panicError(v)
		}
		s.traceAnswer(ctx, span, start, pictures(request), result, err)
	}()
	first := true
	request.Token = func(t engine.Token) {
		now := time.Now()
		s.metrics.token(m.name, first, now.Sub(last))
		first, last = false, now
		countToken(ctx)
		token(t)
	}
	result, err = m.Generate(ctx, request)
	if err != nil {
		return nil, contextCause(ctx, err)
	}
	s.metrics.answer(m.name, result)
	return result, nil
}

// contextCause puts the reason why ctx ended in the place of an error that only says that it did.
func contextCause(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return context.Cause(ctx)
	}
	return err
}

// pictures counts the pictures of a request.
func pictures(r engine.Request) int {
	n := len(r.Pictures)
	for _, m := range r.Messages {
		for _, p := range m.Content {
			if p.Picture != nil {
				n++
			}
		}
	}
	return n
}

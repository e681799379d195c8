// The worker's side: one connection, one model, many requests.

package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"glimpse/engine"
)

// maxRequests bounds the requests that a worker works on; the front process admits fewer.
const maxRequests = 4096

// helloTimeout is what a peer gets to say who it is.
const helloTimeout = 10 * time.Second

// Serve opens a model and answers the front process on conn until that closes it, which is no error. What fails to open
// is told to the front process and returned. Serve closes conn and the model.
func Serve(ctx context.Context, conn net.Conn, log *slog.Logger, open func(context.Context) (Engine, error)) error {
	in := bufio.NewReaderSize(conn, 64<<10)
	if err := greet(conn, in); err != nil {
		_ = conn.Close()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &session{link: newLink(conn), log: log, running: map[uint64]context.CancelFunc{}}
	defer func() { <-s.link.done }()
	// The socket is read while the model loads: that the front process is gone ends the loading.
	read := make(chan error, 1)
	opened := make(chan struct{})
	go func() {
		defer cancel()
		read <- s.read(ctx, in, opened)
	}()
	e, err := open(ctx)
	if err != nil {
		_ = s.link.sendValue(kindFailure, 0, failureOf(err)) // it is returned as well
		s.link.finish()
		<-read
		return err
	}
	s.engine = e
	close(opened)
	if err := s.link.sendValue(kindReady, 0, s.info()); err != nil {
		s.link.fail(err)
	}
	err = <-read
	s.link.fail(errLinkClosed)
	s.requests.Wait()
	return errors.Join(err, e.Close())
}

// greet exchanges hellos.
func greet(conn net.Conn, in io.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	ours := newHello()
	payload, err := encode(ours)
	if err != nil {
		return err
	}
	f := frame{kind: kindHello, payload: payload}
	if _, err := conn.Write(append(f.header(), payload...)); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	f, err = readFrame(in, 1<<10)
	if err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	var theirs hello
	if f.kind != kindHello {
		return fmt.Errorf("greet: %w: the first frame is no hello", errProtocol)
	}
	if err := decode(f.payload, &theirs); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	if theirs.Protocol != ours.Protocol || theirs.Version != ours.Version || string(theirs.Schema) != string(ours.Schema) {
		return fmt.Errorf("greet: %w: the other end is another build of glimpse: restart the server", errProtocol)
	}
	return conn.SetDeadline(time.Time{})
}

// session is a worker's connection.
type session struct {
	link   *link
	log    *slog.Logger
	engine Engine // once opened is closed

	requests sync.WaitGroup
	mu       sync.Mutex
	running  map[uint64]context.CancelFunc
}

func (s *session) info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Info{PID: os.Getpid(), Context: s.engine.Context(), Load: s.engine.LoadTime(), InFlight: len(s.running), Stats: s.engine.Stats()}
}

// read starts what the front process asks for, until it closes the connection. Requests end with ctx.
func (s *session) read(ctx context.Context, in io.Reader, opened <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		f, err := readFrame(in, maxPayload)
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			s.link.fail(err)
			return err
		}
		switch f.kind {
		case kindPing:
			_ = s.link.send(frame{kind: kindPong, id: f.id}) // a broken link ends the loop by itself
			continue
		case kindCancel:
			s.cancel(f.id)
			continue
		}
		select {
		case <-opened:
		default:
			err := fmt.Errorf("%w: a request before the model is loaded", errProtocol)
			s.link.fail(err)
			return err
		}
		if err := s.start(ctx, f); err != nil {
			s.link.fail(err)
			return err
		}
	}
}

func (s *session) cancel(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.running[id]; cancel != nil {
		cancel()
	}
}

// start runs a request in a goroutine of its own.
func (s *session) start(ctx context.Context, f frame) error {
	answer, ok := answers[f.kind]
	if !ok {
		return fmt.Errorf("%w: a worker is not sent frames of kind %d", errProtocol, f.kind)
	}
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[f.id] != nil || len(s.running) >= maxRequests {
		cancel()
		return fmt.Errorf("%w: request %d is there already, or %d requests are", errProtocol, f.id, len(s.running))
	}
	s.running[f.id] = cancel
	s.requests.Go(func() {
		defer cancel()
		reply, err := s.guarded(ctx, f, answer)
		s.mu.Lock()
		delete(s.running, f.id)
		s.mu.Unlock()
		if err == nil {
			err = s.link.sendValue(kindResult, f.id, reply)
		}
		if err != nil {
			_ = s.link.sendValue(kindFailure, f.id, failureOf(err)) // a broken link fails every request at the other end
		}
	})
	return nil
}

// guarded turns a panic into an error of the one request.
func (s *session) guarded(ctx context.Context, f frame, answer answerFunc) (reply any, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("panic in a request", "panic", v, "stack", string(debug.Stack()))
			reply, err = nil, fmt.Errorf("panic in the worker: %v", v)
		}
	}()
	return answer(ctx, s, f)
}

// answerFunc answers a request frame; what it returns must be a value that travels.
type answerFunc func(ctx context.Context, s *session, f frame) (any, error)

var answers = map[kind]answerFunc{
	kindGenerate: generate,
	kindPrepare: asked(func(e Engine, ctx context.Context, q engine.Request) (*engine.Prepared, error) {
		p, err := e.Prepare(ctx, q)
		if err != nil {
			return nil, err
		}
		// The tensors stay: they are many times the pictures, and a server has no use for them.
		return &engine.Prepared{PromptText: p.PromptText, TokenIDs: p.TokenIDs, ImageTokens: p.ImageTokens, MaxTokens: p.MaxTokens, Pictures: p.Pictures}, nil
	}),
	kindScore:  asked(Engine.Score),
	kindEmbed:  asked(Engine.Embed),
	kindRerank: asked(Engine.Rerank),
	kindInfo:   func(_ context.Context, s *session, _ frame) (any, error) { return s.info(), nil },
}

// asked makes an answerFunc of a method of Engine.
func asked[Q, R any](call func(Engine, context.Context, Q) (*R, error)) answerFunc {
	return func(ctx context.Context, s *session, f frame) (any, error) {
		var q Q
		if err := decode(f.payload, &q); err != nil {
			return nil, err
		}
		r, err := call(s.engine, ctx, q)
		if err != nil {
			return nil, err
		}
		return *r, nil
	}
}

func generate(ctx context.Context, s *session, f frame) (any, error) {
	var q engine.Request
	if err := decode(f.payload, &q); err != nil {
		return nil, err
	}
	q.Token = func(t engine.Token) {
		_ = s.link.sendValue(kindToken, f.id, t) // a broken link ends the request by its context
	}
	r, err := s.engine.Generate(ctx, q)
	if err != nil {
		return nil, err
	}
	return *r, nil
}

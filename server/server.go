// Package server is glimpse over HTTP: OpenAI's chat completions with pictures, captions by upload, token counts,
// health, metrics. docs/http.md lists the endpoints and says of each field whether it is honoured or refused.
//
// A request passes, in this order: request id and log line, panic barrier, security headers, cross-origin check, API key,
// drain check, strict decoding (server/spec), pictures, admission (a bounded number in flight per model, 429 beyond it),
// the model. Whatever goes wrong becomes OpenAI's error object in one place (errors.go). Nothing here knows about model
// families, and nothing outside echo.go knows about Echo.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"glimpse/engine"
	"glimpse/manifest"
	"glimpse/media"
)

// Model is what the server needs of a loaded model; *engine.Engine is one. Its methods are safe for concurrent use.
type Model interface {
	// Name is what requests call the model.
	Name() string
	Manifest() *manifest.Manifest
	// Generate answers one prompt. It ends soon after ctx does, and calls the request's Token from one goroutine at a
	// time, never after it has returned.
	Generate(ctx context.Context, r engine.Request) (*engine.Result, error)
	// Prepare makes the prompt without running the decoder.
	Prepare(ctx context.Context, r engine.Request) (*engine.Prepared, error)
}

// Fetcher gets media by http or https URL. What it may reach is its own business: an implementation must expect hostile
// URLs (private addresses, redirects, DNS that changes its mind) and return an *Error for what it refuses.
type Fetcher interface {
	Fetch(ctx context.Context, url string, maxBytes int64) ([]byte, error)
}

// Options says what is served and how. Only Models is required, or ModelsLater.
type Options struct {
	Models      []Model              // with different names
	ModelsLater bool                 // Models may be empty: they come with AddModel
	Logger      *slog.Logger         // nil: nothing is logged
	Limits      Limits               // zero fields are the defaults
	LocalMedia  string               // folder that file:// URLs may name files of; empty: file:// is refused
	Fetcher     Fetcher              // for http(s) media URLs; nil: they are refused
	FFmpeg      string               // the program that decodes videos and sounds; empty: from PATH
	KeyFile     string               // hashes of the API keys, see LoadKeys; empty: no key is asked for
	TLSCert     string               // PEM files; both or neither
	TLSKey      string               //
	Registry    *prometheus.Registry // where metrics are registered; nil: one of the server's own
	Traces      trace.TracerProvider // where spans go; nil: nowhere
}

// Limits bounds what strangers can make the server do. Zero means the default in the comment.
type Limits struct {
	BodyBytes     int64         // largest request body; 32 MiB
	BodiesBytes   int64         // all bodies held at once; 256 MiB
	MediaBytes    int64         // one picture, encoded; 20 MiB
	HeldBytes     int64         // all frames of videos, all sounds, decoded, and all media that came by URL, held at once; 1 GiB
	Pictures      int           // pictures of one request; 16
	HeadPictures  int           // pictures of one request for scores, embeddings or a ranking; 64
	InFlight      int           // answers being made or waiting, per model; a request with n choices counts n times; 64
	Choices       int           // largest n; 8
	HeaderTimeout time.Duration // reading a request's head; 10 s
	BodyTimeout   time.Duration // reading a request's body; 60 s
	WriteTimeout  time.Duration // one write to a client that reads slowly; 30 s
	IdleTimeout   time.Duration // a kept-alive connection between requests; 120 s
	AnswerTimeout time.Duration // making one answer, waiting included; 10 min
	DrainDelay    time.Duration // between "not ready" and closing the listener, for load balancers to notice; 0
	DrainTimeout  time.Duration // for requests in flight when the server stops; 30 s
}

func (l Limits) withDefaults() Limits {
	set(&l.BodyBytes, 32<<20)
	set(&l.BodiesBytes, 256<<20)
	set(&l.MediaBytes, 20<<20)
	set(&l.HeldBytes, 1<<30)
	set(&l.Pictures, 16)
	set(&l.HeadPictures, 64)
	set(&l.InFlight, 64)
	set(&l.Choices, 8)
	set(&l.HeaderTimeout, 10*time.Second)
	set(&l.BodyTimeout, time.Minute)
	set(&l.WriteTimeout, 30*time.Second)
	set(&l.IdleTimeout, 2*time.Minute)
	set(&l.AnswerTimeout, 10*time.Minute)
	set(&l.DrainTimeout, 30*time.Second)
	l.BodiesBytes = max(l.BodiesBytes, l.BodyBytes)
	l.Choices = min(l.Choices, l.InFlight)
	return l
}

func set[T int | int64 | time.Duration](v *T, fallback T) {
	if *v <= 0 {
		*v = fallback
	}
}

// maxHeaderBytes bounds a request's head.
const maxHeaderBytes = 64 << 10

// Server answers HTTP requests with the models it was given; it does not own them.
type Server struct {
	log      *slog.Logger
	limits   Limits
	modelsMu sync.RWMutex // guards models; the list itself is never changed, only replaced
	models   []*served
	keys     *Keys // nil: none asked for
	local    *localMedia
	fetcher  Fetcher
	clips    *media.Reader
	bodies   *byteBudget
	held     *byteBudget
	metrics  *metrics
	tracer   trace.Tracer
	tls      [2]string
	handler  http.Handler
	draining atomic.Bool
}

// New checks the options and builds a server.
func New(o Options) (*Server, error) {
	s := &Server{log: o.Logger, limits: o.Limits.withDefaults(), fetcher: o.Fetcher, tracer: newTracer(o.Traces), tls: [2]string{o.TLSCert, o.TLSKey}}
	s.clips = media.New(media.Options{FFmpeg: o.FFmpeg, Limits: media.Limits{MaxBytes: s.limits.MediaBytes, MaxSeconds: 600, MaxFrames: 256, Timeout: time.Minute}})
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if len(o.Models) == 0 && !o.ModelsLater {
		return nil, errors.New("start server: no model to serve")
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		return nil, errors.New("start server: TLS needs both a certificate and a key")
	}
	for _, m := range o.Models {
		if err := s.AddModel(m); err != nil {
			return nil, fmt.Errorf("start server: %w", err)
		}
	}
	if o.KeyFile != "" {
		keys, err := LoadKeys(o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("start server: %w", err)
		}
		s.keys = keys
	}
	if o.LocalMedia != "" {
		local, err := openLocalMedia(o.LocalMedia)
		if err != nil {
			return nil, fmt.Errorf("start server: %w", err)
		}
		s.local = local
	}
	s.bodies, s.held = &byteBudget{left: s.limits.BodiesBytes}, &byteBudget{left: s.limits.HeldBytes}
	m, err := newMetrics(o.Registry, s.list)
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	s.metrics = m
	s.handler = s.routes()
	return s, nil
}

// Handler is the server without a listener, for tests and for embedding.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on the listener until ctx ends, then drains: /readyz turns 503, after DrainDelay the listener closes, and
// requests in flight may finish for DrainTimeout. It returns nil when all of them did. It closes the listener.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	base, cutOff := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cutOff(nil)
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: s.limits.HeaderTimeout,
		IdleTimeout:       s.limits.IdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// No ReadTimeout or WriteTimeout: they would cut long answers off. Bodies and writes have deadlines of their own.
	}
	failed := make(chan error, 1)
	go func() {
		if s.tls[0] != "" {
			failed <- srv.ServeTLS(ln, s.tls[0], s.tls[1])
			return
		}
		failed <- srv.Serve(ln)
	}()
	s.log.Info("serving", "address", ln.Addr().String(), "models", len(s.list()))
	select {
	case err := <-failed:
		_ = srv.Close() // the listener is gone; what is left of the connections goes with it
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	return s.drain(srv, cutOff)
}

func (s *Server) drain(srv *http.Server, cutOff context.CancelCauseFunc) error {
	s.draining.Store(true)
	s.log.Info("draining", "delay", s.limits.DrainDelay, "timeout", s.limits.DrainTimeout)
	time.Sleep(s.limits.DrainDelay)
	deadline, cancel := context.WithTimeout(context.Background(), s.limits.DrainTimeout)
	defer cancel()
	err := srv.Shutdown(deadline)
	if err == nil {
		s.log.Info("stopped")
		return nil
	}
	// Cancelled requests answer with an error each, for which they get a moment, and then the connections are cut.
	cutOff(errCutOff)
	grace, cancelGrace := context.WithTimeout(context.Background(), cutOffGrace)
	defer cancelGrace()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close()
	}
	return fmt.Errorf("stop serving: requests were still in flight after %s and were cut off: %w", s.limits.DrainTimeout, err)
}

// cutOffGrace is what cancelled requests get to say so.
const cutOffGrace = 2 * time.Second

// Close releases what New opened. It may be called more than once, and after Serve has returned.
func (s *Server) Close() error {
	if s.local != nil {
		return s.local.Close()
	}
	return nil
}

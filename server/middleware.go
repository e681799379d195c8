// What surrounds every handler: request id, log line, panic barrier, headers, keys, the drain check.

package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// exchange is what is known about one request; it ends up in the log line and the metrics. One goroutine writes it.
type exchange struct {
	id         string
	start      time.Time
	span       trace.Span   // nil: the request is not traced
	route      string       // path pattern, empty when none matched
	probe      bool         // a health check
	model      string       // only names of served models
	key        string       // name of the API key, empty without keys
	quota      *quota       // of the key
	made       atomic.Int64 // tokens of answers so far
	user       string       // what the client said about its end user
	prompt     int          // tokens
	completion int
	pictures   int
	held       int64 // bytes of media that it holds beside its body
	err        error // also one that came after the reply had begun
}

type exchangeKey struct{}

// exchangeOf returns the request's exchange; observe put it there.
func exchangeOf(r *http.Request) *exchange {
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return &exchange{}
	}
	return x
}

// recorder remembers what was sent.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach deadlines and Flush.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// FlushError is what http.ResponseController prefers to Flush: a client that is gone shows here.
func (w *recorder) FlushError() error { return http.NewResponseController(w.ResponseWriter).Flush() }

// observe runs next between id and log line. Errors and panics that next did not answer are answered here.
func (s *Server) observe(w http.ResponseWriter, r *http.Request, client string, next handlerFunc) {
	start := time.Now()
	x := &exchange{id: requestID(r), start: start}
	rec := &recorder{ResponseWriter: w}
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	secure(rec.Header(), s.tls[0] != "")
	rec.Header().Set("X-Request-Id", x.id)

	if err := s.barrier(rec, r, next); err != nil {
		x.err = err
		if rec.status == 0 {
			asServed(&x.err).write(rec)
		}
	}
	s.held.give(x.held)
	s.record(x, rec, r, client, time.Since(start))
}

// asServed makes err an *Error once, so that its id is the same in the reply and the log.
func asServed(err *error) *Error {
	e := asError(*err)
	*err = e
	return e
}

// barrier turns a panic into an error.
func (s *Server) barrier(w http.ResponseWriter, r *http.Request, next handlerFunc) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicError(v)
		}
	}()
	return next(w, r)
}

func panicError(v any) error { return fmt.Errorf("panic: %v\n%s", v, debug.Stack()) }

func (s *Server) record(x *exchange, rec *recorder, r *http.Request, client string, took time.Duration) {
	status := rec.status
	var failed *Error
	if x.err != nil {
		failed = asServed(&x.err)
		if status == 0 || failed.Status == statusClientClosed {
			status = failed.Status
		}
	}
	s.metrics.request(x, status, failed, took)
	x.endTrace(status, failed)
	attrs := []slog.Attr{
		slog.String("request", x.id), slog.String("method", r.Method), slog.String("path", clipped(r.URL.Path)), slog.Int("status", status),
		slog.Duration("took", took), slog.Int64("bytes", rec.bytes), slog.String("client", client),
	}
	for _, a := range []slog.Attr{slog.String("model", x.model), slog.String("key", x.key), slog.String("user", x.user), slog.String("trace", x.traceID())} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	if x.prompt > 0 {
		attrs = append(attrs, slog.Int("prompt_tokens", x.prompt), slog.Int("completion_tokens", x.completion), slog.Int("pictures", x.pictures))
	}
	level := slog.LevelInfo
	if x.probe && status < 400 {
		level = slog.LevelDebug // probes come every few seconds
	}
	if failed != nil {
		attrs = append(attrs, slog.String("code", failed.Code), slog.String("error", failed.Message))
		if failed.cause != nil {
			attrs = append(attrs, slog.String("cause", failed.cause.Error()))
		}
		if status >= 500 {
			level = slog.LevelError
		}
	}
	s.log.LogAttrs(context.WithoutCancel(r.Context()), level, "request", attrs...)
}

// guard checks who asks before a handler runs.
func (s *Server) guard(rt route, w http.ResponseWriter, r *http.Request) error {
	x := exchangeOf(r)
	x.route, x.probe = rt.path, rt.open
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return &Error{Status: http.StatusForbidden, Type: typePermission, Code: codeCrossOrigin, Message: "requests from pages of other origins are refused", cause: err}
	}
	if rt.open {
		return rt.handle(w, r)
	}
	if s.keys != nil {
		name, limits, ok := s.keys.match(bearer(r))
		if !ok {
			w.Header().Set("WWW-Authenticate", `Bearer realm="glimpse"`)
			return &Error{Status: http.StatusUnauthorized, Type: typeInvalid, Code: codeInvalidKey, Message: "missing or unknown API key: send `Authorization: Bearer KEY`"}
		}
		x.key, x.quota = name, limits
	}
	if s.draining.Load() {
		w.Header().Set("Connection", "close")
		return &Error{Status: http.StatusServiceUnavailable, Type: typeServer, Code: codeDraining, Message: "the server is stopping", RetryAfter: 5}
	}
	if rt.method != http.MethodPost {
		return rt.handle(w, r)
	}
	// From here on somebody wants a model.
	r = s.trace(x, rt, r)
	if x.key != "" {
		s.metrics.keyRequests.WithLabelValues(x.key).Inc()
	}
	if err := x.quota.request(w.Header()); err != nil {
		return err
	}
	return rt.handle(w, r)
}

func bearer(r *http.Request) string {
	scheme, key, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}

// secure sets the headers that every reply carries: nothing here is a page, and answers are private.
func secure(h http.Header, tls bool) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if tls {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

// requestID takes the client's id when it is harmless in a log, or makes one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if len(id) == 0 || len(id) > 64 {
		return newID("req_")
	}
	for _, c := range id {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return newID("req_")
		}
	}
	return id
}

func newID(prefix string) string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails: it ends the program instead
	return prefix + hex.EncodeToString(b[:])
}

// clipped keeps a stranger's text short in the log; slog escapes it.
func clipped(s string) string {
	if len(s) > 128 {
		return strings.ToValidUTF8(s[:128], "") + "…"
	}
	return s
}

// Causes that a request's context can end with.
var (
	errAnswerTimeout = errors.New("answer timeout")
	errCutOff        = errors.New("cut off at the end of the drain")
)

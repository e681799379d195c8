// What Prometheus sees. Labels take values from short known lists only: model names that are served, routes, our codes.

package server

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"glimpse/engine"
)

type metrics struct {
	handler http.Handler

	requests   *prometheus.CounterVec   // route, model, status
	errors     *prometheus.CounterVec   // code, model
	seconds    *prometheus.HistogramVec // route, model
	firstToken *prometheus.HistogramVec // model
	nextToken  *prometheus.HistogramVec // model
	tokens     *prometheus.CounterVec   // model, kind: prompt, image, audio, cached, completion
	stages     *prometheus.HistogramVec // model, stage
	pictures   *prometheus.CounterVec   // model

	keyRequests, keyTokens *prometheus.CounterVec // key
}

func newMetrics(reg *prometheus.Registry, models func() []*served) (*metrics, error) {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	long := []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}
	short := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "glimpse", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "glimpse", Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &metrics{
		handler:    promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}),
		requests:   counter("requests_total", "HTTP requests by route, model and status.", "route", "model", "status"),
		errors:     counter("errors_total", "Requests that failed, by error code; also streams that failed after they had begun.", "code", "model"),
		seconds:    histogram("request_seconds", "Time of a whole request.", long, "route", "model"),
		firstToken: histogram("time_to_first_token_seconds", "From handing a prompt to the model to its first token.", long, "model"),
		nextToken:  histogram("inter_token_seconds", "Between tokens of one answer.", short, "model"),
		tokens:     counter("tokens_total", "Tokens by kind: prompt, and of it image, audio and cached (not computed again); completion.", "model", "kind"),
		stages:     histogram("stage_seconds", "Time of the stages of an answer.", long, "model", "stage"),
		pictures:   counter("pictures_total", "Pictures in requests.", "model"),

		keyRequests: counter("key_requests_total", "Requests for a model, refused ones too, by API key.", "key"),
		keyTokens:   counter("key_tokens_total", "Tokens that count for the limits of an API key: prompts and answers.", "key"),
	}
	own := []prometheus.Collector{m.requests, m.errors, m.seconds, m.firstToken, m.nextToken, m.tokens, m.stages, m.pictures, m.keyRequests, m.keyTokens}
	own = append(own, newModelMetrics(models))
	for _, c := range own {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		// A registry of the caller's may have these two already.
		if err := reg.Register(c); err != nil && !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) request(x *exchange, status int, failed *Error, took time.Duration) {
	m.requests.WithLabelValues(x.route, x.model, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(x.route, x.model).Observe(took.Seconds())
	if failed != nil {
		m.errors.WithLabelValues(failed.Code, x.model).Inc()
	}
	if x.pictures > 0 {
		m.pictures.WithLabelValues(x.model).Add(float64(x.pictures))
	}
}

func (m *metrics) token(model string, first bool, since time.Duration) {
	if first {
		m.firstToken.WithLabelValues(model).Observe(since.Seconds())
		return
	}
	m.nextToken.WithLabelValues(model).Observe(since.Seconds())
}

func (m *metrics) answer(model string, r *engine.Result) {
	m.tokens.WithLabelValues(model, "prompt").Add(float64(r.Usage.PromptTokens))
	m.tokens.WithLabelValues(model, "image").Add(float64(r.Usage.ImageTokens))
	m.tokens.WithLabelValues(model, "audio").Add(float64(r.Usage.AudioTokens))
	m.tokens.WithLabelValues(model, "cached").Add(float64(r.Usage.CachedTokens))
	m.tokens.WithLabelValues(model, "completion").Add(float64(r.Usage.CompletionTokens))
	t := r.Timings
	for _, stage := range []struct {
		name string
		took time.Duration
	}{{"preprocess", t.Preprocess}, {"vision", t.Vision}, {"connector", t.Connector}, {"queue", t.Queue}, {"prefill", t.Prefill}, {"decode", t.Decode}} {
		m.stages.WithLabelValues(model, stage.name).Observe(stage.took.Seconds())
	}
}

func (s *Server) metricsPage(w http.ResponseWriter, r *http.Request) error {
	s.metrics.handler.ServeHTTP(w, r)
	return nil
}

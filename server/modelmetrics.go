// What the models themselves count, for Prometheus: asked for when the page of metrics is.

package server

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"glimpse/engine"
)

// Counters of a model: an engine in this process has them at hand, another process is asked and may not run (nil).
type (
	counting     interface{ Stats() engine.Stats }
	countingAway interface {
		Stats(ctx context.Context) (*engine.Stats, error)
	}
)

// statsTimeout is what a model's process gets to answer; its metrics are left out after that.
const statsTimeout = 2 * time.Second

// modelMetrics looks at the models that are served when it is asked.
type modelMetrics struct {
	models func() []*served
	all    []modelMetric
	loaded *prometheus.Desc
	flight *prometheus.Desc
	limit  *prometheus.Desc
}

// modelMetric is a metric that engine.Stats hold. Its counters begin anew with the model's process, as Prometheus expects.
type modelMetric struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	values func(s *engine.Stats) []labelled
}

// labelled is a value and its label beside the model's, where the metric has one.
type labelled struct {
	label string
	value float64
}

func newModelMetrics(models func() []*served) *modelMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("glimpse_"+name, help, append([]string{"model"}, labels...), nil)
	}
	c := &modelMetrics{
		models: models,
		loaded: desc("model_loaded", "1 while the model is loaded."),
		flight: desc("in_flight", "Answers being made or waiting."),
		limit:  desc("in_flight_limit", "As many answers may be made or waiting; requests beyond get a 429."),
	}
	metric := func(kind prometheus.ValueType, d *prometheus.Desc, values func(s *engine.Stats) []labelled) {
		c.all = append(c.all, modelMetric{d, kind, values})
	}
	gauge := func(name, help string, value func(s *engine.Stats) int64) {
		metric(prometheus.GaugeValue, desc(name, help), func(s *engine.Stats) []labelled { return []labelled{{"", float64(value(s))}} })
	}
	gauge("slots", "Requests that decode together at most.", func(s *engine.Stats) int64 { return s.Slots.Slots })
	gauge("slots_active", "Requests that decode now.", func(s *engine.Stats) int64 { return s.Slots.Active })
	gauge("waiting", "Requests that wait for a slot of the decoder.", func(s *engine.Stats) int64 { return s.Slots.Waiting })
	gauge("kv_capacity_tokens", "Tokens that the KV cache holds.", func(s *engine.Stats) int64 { return s.Slots.Capacity })
	metric(prometheus.GaugeValue, desc("kv_tokens", "Tokens in the KV cache: of active requests, or kept for prompts to come.", "state"), func(s *engine.Stats) []labelled {
		return []labelled{{"active", float64(s.Slots.Tokens)}, {"kept", float64(s.Slots.Kept)}}
	})
	metric(prometheus.CounterValue, desc("vision_cache_lookups_total", "Pictures looked for in the cache of vision features.", "result"), func(s *engine.Stats) []labelled {
		v := s.Vision
		return []labelled{{"hit", float64(v.Hits)}, {"disk_hit", float64(v.DiskHits)}, {"shared", float64(v.Shared)}, {"miss", float64(v.Misses)}}
	})
	metric(prometheus.CounterValue, desc("vision_cache_evictions_total", "Pictures whose features made room for others."), func(s *engine.Stats) []labelled {
		return []labelled{{"", float64(s.Vision.Evicted)}}
	})
	metric(prometheus.CounterValue, desc("vision_cache_disk_errors_total", "Files of the cache that could not be read or written."), func(s *engine.Stats) []labelled {
		return []labelled{{"", float64(s.Vision.DiskErrors)}}
	})
	metric(prometheus.GaugeValue, desc("vision_cache_bytes", "What the cache of vision features holds.", "where"), func(s *engine.Stats) []labelled {
		return []labelled{{"memory", float64(s.Vision.Bytes)}, {"disk", float64(s.Vision.DiskBytes)}}
	})
	metric(prometheus.CounterValue, desc("prefix_cache_lookups_total", "Prompts by whether their beginning was in the KV cache.", "result"), func(s *engine.Stats) []labelled {
		return []labelled{{"hit", float64(s.Prefix.Hits)}, {"miss", float64(s.Prefix.Misses)}}
	})
	metric(prometheus.CounterValue, desc("prefix_cache_tokens_total", "Tokens of prompts: all, and of them those that were not computed again.", "kind"), func(s *engine.Stats) []labelled {
		return []labelled{{"prompt", float64(s.Prefix.PromptTokens)}, {"cached", float64(s.Prefix.CachedTokens)}}
	})
	metric(prometheus.CounterValue, desc("speculation_tokens_total", "Tokens that were guessed, and of them those that were right.", "kind"), func(s *engine.Stats) []labelled {
		return []labelled{{"drafted", float64(s.Lookup.Drafted)}, {"accepted", float64(s.Lookup.Accepted)}}
	})
	return c
}

// Describe implements prometheus.Collector.
func (c *modelMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.loaded, c.flight, c.limit} {
		to <- d
	}
	for _, m := range c.all {
		to <- m.desc
	}
}

// Collect implements prometheus.Collector. Models are asked at the same time.
func (c *modelMetrics) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), statsTimeout)
	defer cancel()
	var asked sync.WaitGroup
	for _, m := range c.models() {
		to <- prometheus.MustNewConstMetric(c.flight, prometheus.GaugeValue, float64(m.gate.inFlight()), m.name)
		to <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, float64(m.gate.most), m.name)
		asked.Go(func() { c.collectModel(ctx, m, to) })
	}
	asked.Wait()
}

func (c *modelMetrics) collectModel(ctx context.Context, m *served, to chan<- prometheus.Metric) {
	var stats *engine.Stats
	switch from := m.Model.(type) {
	case counting:
		s := from.Stats()
		stats = &s
	case countingAway:
		var err error
		if stats, err = from.Stats(ctx); err != nil {
			return // whether it is loaded is not known either
		}
	default:
		return
	}
	loaded := 0.0
	if stats != nil {
		loaded = 1
	}
	to <- prometheus.MustNewConstMetric(c.loaded, prometheus.GaugeValue, loaded, m.name)
	if stats == nil {
		return
	}
	for _, metric := range c.all {
		for _, v := range metric.values(stats) {
			labels := []string{m.name}
			if v.label != "" {
				labels = append(labels, v.label)
			}
			to <- prometheus.MustNewConstMetric(metric.desc, metric.kind, v.value, labels...)
		}
	}
}

package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"glimpse/engine"
)

// gone is the error of a model whose process died.
type gone struct{}

func (gone) Error() string             { return "the model's process ended" }
func (gone) RetryAfter() time.Duration { return 1500 * time.Millisecond }

// loadingModel is not ready until it is told.
type loadingModel struct {
	*fakeModel
	ready bool
}

func (m *loadingModel) Ready() bool { return m.ready }

func TestUnavailableModel(t *testing.T) {
	fake := newFake("tiny")
	fake.before = func(context.Context, engine.Request) error { return fmt.Errorf("answer: %w", gone{}) }
	w := post(handler(t, Options{Models: []Model{fake}}), "/v1/chat/completions", "application/json", goodChat)
	e := failure(t, w.Code, w.Body)
	if w.Code != http.StatusServiceUnavailable || text(e.Code) != codeUnavailable || e.Message != (gone{}).Error() || w.Header().Get("Retry-After") != "2" {
		t.Errorf("%d %+v, Retry-After %q", w.Code, e, w.Header().Get("Retry-After"))
	}

	// In a stream that has begun it is an event.
	fake = newFake("tiny")
	fake.eachWord = func(_ context.Context, word int) error {
		if word == 1 {
			return gone{}
		}
		return nil
	}
	streamed := strings.Replace(goodChat, "{", `{"stream":true,`, 1)
	w = post(handler(t, Options{Models: []Model{fake}}), "/v1/chat/completions", "application/json", streamed)
	if body := w.Body.String(); w.Code != http.StatusOK || !strings.Contains(body, codeUnavailable) || strings.Contains(body, "[DONE]") {
		t.Errorf("%d %s", w.Code, body)
	}
}

func TestReadyOnceModelsAre(t *testing.T) {
	m := &loadingModel{fakeModel: newFake("tiny")}
	h := handler(t, Options{Models: []Model{newFake("other"), m}})
	if w := get(h, "/readyz"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "loading") {
		t.Errorf("loading: %d %s", w.Code, w.Body)
	}
	m.ready = true
	if w := get(h, "/readyz"); w.Code != http.StatusOK {
		t.Errorf("loaded: %d %s", w.Code, w.Body)
	}
}

package server

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"glimpse/engine"
)

func TestModelsComeAndGo(t *testing.T) {
	s, err := New(Options{ModelsLater: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := s.Handler()
	list := func() string { return strings.TrimSpace(get(h, "/v1/models").Body.String()) }
	if got := list(); got != `{"object":"list","data":[]}` {
		t.Errorf("without models: %s", got)
	}
	if w := post(h, "/v1/chat/completions", "application/json", goodChat); w.Code != http.StatusNotFound {
		t.Errorf("without models: %d %s", w.Code, w.Body)
	}
	asked, release := make(chan struct{}), make(chan struct{})
	fake := newFake("tiny")
	fake.before = func(context.Context, engine.Request) error {
		close(asked)
		<-release
		return nil
	}
	if err := s.AddModel(fake); err != nil {
		t.Fatal(err)
	}
	if err := s.AddModel(newFake("tiny")); err == nil {
		t.Error("a second model of the same name")
	}
	if !strings.Contains(list(), `"id":"tiny"`) || !strings.Contains(get(h, "/metrics").Body.String(), `glimpse_in_flight{model="tiny"} 0`) {
		t.Errorf("with a model: %s", list())
	}
	code := make(chan int, 1)
	go func() { code <- post(h, "/v1/chat/completions", "application/json", goodChat).Code }()
	<-asked
	if !s.RemoveModel("tiny") || s.RemoveModel("tiny") {
		t.Error("RemoveModel does not say what there was")
	}
	if w := post(h, "/v1/chat/completions", "application/json", goodChat); w.Code != http.StatusNotFound {
		t.Errorf("removed: %d %s", w.Code, w.Body)
	}
	close(release)
	if got := <-code; got != http.StatusOK {
		t.Errorf("the request in flight when its model was removed: %d", got)
	}
}

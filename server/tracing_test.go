package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"glimpse/engine"
)

// timed is a fake that takes time and says where it went.
type timed struct{ *fakeModel }

var timings = engine.Timings{
	Preprocess: 10 * time.Millisecond, Vision: 30 * time.Millisecond, Connector: 5 * time.Millisecond, Submitted: 60 * time.Millisecond,
	Queue: 7 * time.Millisecond, Prefill: 20 * time.Millisecond, Decode: 40 * time.Millisecond,
}

func (m timed) Generate(ctx context.Context, r engine.Request) (*engine.Result, error) {
	time.Sleep(200 * time.Millisecond)
	res, err := m.fakeModel.Generate(ctx, r)
	if err == nil {
		res.Timings = timings
	}
	return res, err
}

func recorded(t *testing.T, m Model) (http.Handler, *tracetest.SpanRecorder) {
	spans := tracetest.NewSpanRecorder()
	p := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	t.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	return handler(t, Options{Models: []Model{m}, Traces: p}), spans
}

// one is the only span of its name.
func one(t *testing.T, spans *tracetest.SpanRecorder, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	var found []sdktrace.ReadOnlySpan
	for _, s := range spans.Ended() {
		if s.Name() == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans are called %q", len(found), name)
	}
	return found[0]
}

func attributes(s sdktrace.ReadOnlySpan) map[attribute.Key]string {
	out := map[attribute.Key]string{}
	for _, a := range s.Attributes() {
		out[a.Key] = a.Value.String()
	}
	return out
}

const callersTrace, callersSpan = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

func TestTraceOfAnAnswer(t *testing.T) {
	h, spans := recorded(t, timed{newFake("tiny")})
	r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(
		`{"model":"tiny","max_tokens":9,"temperature":0.5,"seed":3,"stop":"!","messages":[{"role":"user","content":[{"type":"text","text":"a b"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Traceparent", "00-"+callersTrace+"-"+callersSpan+"-01")
	r.Header.Set("X-Request-Id", "mine")
	if w := serve(h, r); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	// The caller's span is the parent of the request's, that of the answer's, that of the stages'.
	root, answer := one(t, spans, "POST /v1/chat/completions"), one(t, spans, "chat tiny")
	if root.SpanContext().TraceID().String() != callersTrace || root.Parent().SpanID().String() != callersSpan || root.SpanKind() != trace.SpanKindServer {
		t.Errorf("request's span %v below %v", root.SpanContext(), root.Parent())
	}
	if media := one(t, spans, "media"); media.Parent().SpanID() != root.SpanContext().SpanID() || attributes(media)[keyMediaBytes] != "3" || attributes(media)[keyMediaScheme] != "data" {
		t.Errorf("media: %v below %v", attributes(media), media.Parent())
	}
	if answer.Parent().SpanID() != root.SpanContext().SpanID() {
		t.Errorf("the answer is below %v", answer.Parent())
	}
	for key, want := range map[attribute.Key]string{
		"http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": "200", "glimpse.request_id": "mine", keyRequestModel: "tiny", keyPictures: "1",
	} {
		if got := attributes(root)[key]; got != want {
			t.Errorf("request: %s is %q, want %q", key, got, want)
		}
	}
	for key, want := range map[attribute.Key]string{
		keyOperation: "chat", keyProvider: "glimpse", keyRequestModel: "tiny", keyMaxTokens: "9", keyTemperature: "0.5", keySeed: "3", keyStops: `["!"]`,
		keyInputTokens: "7", keyOutputTokens: "4", keyImageTokens: "4", keyFinishReasons: `["stop"]`, keyPictures: "1", keyChoice: "0",
	} {
		if got := attributes(answer)[key]; got != want {
			t.Errorf("answer: %s is %q, want %q", key, got, want)
		}
	}
	// The stages: as long as the engine says, in their order, without overlap, and at the end of the answer's span.
	end := time.Time{}
	for _, stage := range []struct {
		name string
		took time.Duration
		gap  time.Duration // to the one before
	}{
		{"worker", -1, 0}, {"preprocess", timings.Preprocess, 0}, {"vision", timings.Vision, 15 * time.Millisecond}, {"connector", timings.Connector, 0},
		{"queue", timings.Queue, 0}, {"prefill", timings.Prefill, 0}, {"decode", timings.Decode, 0},
	} {
		s := one(t, spans, stage.name)
		if s.Parent().SpanID() != answer.SpanContext().SpanID() {
			t.Errorf("%s is below %v", stage.name, s.Parent())
		}
		if took := s.EndTime().Sub(s.StartTime()); stage.took >= 0 && took != stage.took {
			t.Errorf("%s took %v, want %v", stage.name, took, stage.took)
		}
		if end.IsZero() {
			end = answer.StartTime()
		}
		if gap := s.StartTime().Sub(end); gap < stage.gap || gap > stage.gap+5*time.Millisecond {
			t.Errorf("%s begins %v after the one before, want %v", stage.name, gap, stage.gap)
		}
		end = s.EndTime()
	}
	if rest := answer.EndTime().Sub(end); rest < 0 || rest > 100*time.Millisecond {
		t.Errorf("the answer ends %v after its last stage", rest)
	}
}

// What is no request for a model leaves no span; what fails says how; each choice has a span.
func TestTracesOfOtherRequests(t *testing.T) {
	fake := newFake("tiny")
	h, spans := recorded(t, fake)
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/v1/models", "/nowhere", "/"} {
		get(h, path)
	}
	if n := len(spans.Ended()); n > 0 {
		t.Errorf("%d spans of requests that are for no model", n)
	}
	post(h, "/v1/chat/completions", "application/json", strings.Replace(goodChat, "{", `{"n":3,`, 1))
	choices := []string{}
	for _, s := range spans.Ended() {
		if s.Name() == "chat tiny" {
			choices = append(choices, attributes(s)[keyChoice])
		}
	}
	if slices.Sort(choices); !slices.Equal(choices, []string{"0", "1", "2"}) {
		t.Errorf("choices %v", choices)
	}
	spans.Reset()
	post(h, "/v1/chat/completions", "application/json", `{"model":"tiny"}`)
	if root := one(t, spans, "POST /v1/chat/completions"); attributes(root)["error.type"] != "missing_required_parameter" || root.Status().Code == codes.Error {
		t.Errorf("bad request: %v %v", attributes(root), root.Status())
	}
	spans.Reset()
	fake.before = func(context.Context, engine.Request) error { return errors.New("secret") }
	post(h, "/v1/chat/completions", "application/json", goodChat)
	for _, name := range []string{"POST /v1/chat/completions", "chat tiny"} {
		if s := one(t, spans, name); s.Status().Code != codes.Error || attributes(s)["error.type"] != codeInternal || strings.Contains(s.Status().Description, "secret") {
			t.Errorf("%s failed: %v %v", name, attributes(s), s.Status())
		}
	}
}

// A request whose caller does not sample leaves nothing, and a broken header is none.
func TestTraceparent(t *testing.T) {
	h, spans := recorded(t, newFake("tiny"))
	ask := func(parent string) {
		r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(goodChat))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Traceparent", parent)
		serve(h, r)
	}
	ask("00-" + callersTrace + "-" + callersSpan + "-00")
	if n := len(spans.Ended()); n != 0 {
		t.Errorf("%d spans of a trace that is not sampled", n)
	}
	ask("00-zz-" + callersSpan + "-01")
	if root := one(t, spans, "POST /v1/chat/completions"); root.Parent().IsValid() {
		t.Errorf("parent %v", root.Parent())
	}
}

func TestTraceOfScores(t *testing.T) {
	h, spans := recorded(t, newScoring("heads"))
	w := post(h, "/v1/embeddings", "application/json", `{"model":"heads","input":["a b"],"images":["data:image/png;base64,AAAA"]}`)
	if w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	s := one(t, spans, "embeddings heads")
	if a := attributes(s); a[keyOperation] != "embeddings" || a[keyInputTokens] != "2" || a[keyPictures] != "1" {
		t.Errorf("%v", a)
	}
	if one(t, spans, "media").Parent().SpanID() != s.SpanContext().SpanID() {
		t.Error("the picture is not below the embedding")
	}
}

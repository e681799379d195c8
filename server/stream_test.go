package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"glimpse/engine"
)

// waitFor polls for what another goroutine is about to do.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not happen within 20 s")
}

// The events as they go over the wire.
func TestStreamEvents(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}})
	w := post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"hi <you>"}],"stream":true,"stream_options":{"include_usage":true}}`)
	if got := w.Header().Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type %q", got)
	}
	body := w.Body.String()
	events := strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n")
	for i, e := range events {
		if !strings.HasPrefix(e, "data: ") || strings.Contains(e, "\n") {
			t.Errorf("event %d is %q", i, e)
		}
	}
	if events[len(events)-1] != "data: [DONE]" {
		t.Errorf("last event %q", events[len(events)-1])
	}
	if !strings.Contains(events[0], `"delta":{"role":"assistant","content":""}`) || !strings.Contains(events[0], `"usage":null`) {
		t.Errorf("first event %q", events[0])
	}
	if !strings.Contains(body, "<you>") {
		t.Errorf("escaped for HTML: %s", body)
	}
	finish, used := events[len(events)-3], events[len(events)-2]
	if !strings.Contains(finish, `"delta":{}`) || !strings.Contains(finish, `"finish_reason":"stop"`) {
		t.Errorf("finish event %q", finish)
	}
	if !strings.Contains(used, `"choices":[]`) || !strings.Contains(used, `"total_tokens":10`) {
		t.Errorf("usage event %q", used)
	}
}

// A client that goes away takes its generation with it, before its first token and in the middle of a stream.
func TestDisconnectCancels(t *testing.T) {
	t.Parallel()
	for _, streaming := range []string{"false", "true"} {
		fake := newFake("tiny")
		begun, ended := make(chan struct{}, 1), make(chan error, 1)
		fake.eachWord = func(ctx context.Context, word int) error {
			if word < 2 {
				return nil
			}
			begun <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}
		var log logs
		base, s := start(t, Options{Models: []Model{fake}, Logger: log.logger()})
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions",
			strings.NewReader(`{"model":"tiny","messages":[{"role":"user","content":"a b c d"}],"stream":`+streaming+`}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if streaming == "true" {
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(line, "assistant") {
				t.Fatalf("first line %q, %v", line, err)
			}
			<-begun
			cancel()
			_ = resp.Body.Close()
		} else {
			go func() { <-begun; cancel() }()
			if _, err := http.DefaultClient.Do(r); !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
		}
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the model's context ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the model goes on for a client that is gone")
		}
		waitFor(t, func() bool { return s.models[0].gate.inFlight() == 0 && strings.Contains(log.String(), `"status":499`) })
	}
}

// What fails in the middle of a stream is an error event, and there is no [DONE].
func TestStreamErrorEvent(t *testing.T) {
	t.Parallel()
	fake := newFake("tiny")
	fake.eachWord = func(_ context.Context, word int) error {
		if word == 2 {
			time.Sleep(50 * time.Millisecond) // so that the first words are on their way
			panic("boom")
		}
		return nil
	}
	var log logs
	base, _ := start(t, Options{Models: []Model{fake}, Logger: log.logger()})
	resp, err := http.Post(base+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"tiny","messages":[{"role":"user","content":"a b c d"}],"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	body := string(raw)
	if resp.StatusCode != 200 || !strings.Contains(body, `data: {"error":{"message":"internal error err_`) || strings.Contains(body, "[DONE]") || strings.Contains(body, "boom") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	waitFor(t, func() bool { return strings.Contains(log.String(), "boom") })

	stream := client(t, base).Chat.Completions.NewStreaming(t.Context(), ask("a b c d"))
	for stream.Next() {
	}
	if err := stream.Err(); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("the client sees %v", err)
	}
}

// A client that stops reading does not hold its place for ever.
func TestSlowReaderIsDropped(t *testing.T) {
	t.Parallel()
	fake := newFake("tiny")
	word := strings.Repeat("x", 1<<16)
	base, s := start(t, Options{Models: []Model{fake}, Limits: Limits{WriteTimeout: 200 * time.Millisecond, BodyBytes: 64 << 20}})
	body := `{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat(word+" ", 400) + `"}],"stream":true}`
	resp, err := http.Post(base+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // and nothing is read
	waitFor(t, func() bool { return s.models[0].gate.inFlight() == 0 })
}

// One answer may not take for ever either; the error is OpenAI's shape.
func TestAnswerTimeout(t *testing.T) {
	fake := newFake("tiny")
	fake.before = func(ctx context.Context, _ engine.Request) error { <-ctx.Done(); return ctx.Err() }
	h := handler(t, Options{Models: []Model{fake}, Limits: Limits{AnswerTimeout: 20 * time.Millisecond}})
	w := post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","messages":[{"role":"user","content":"x"}]}`)
	if e := failure(t, w.Code, w.Body); w.Code != http.StatusGatewayTimeout || text(e.Code) != codeAnswerTimeout {
		t.Errorf("%d %+v", w.Code, e)
	}
}

// A form's client that goes away is noticed too: its body is read to the end.
func TestCaptionDisconnectCancels(t *testing.T) {
	fake, asked, _ := waiting("tiny")
	base, s := start(t, Options{Models: []Model{fake}})
	kind, body := form(t, [2]string{"@image", "picture"})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/caption", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	go func() { <-asked; cancel() }()
	if _, err := http.DefaultClient.Do(r); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	waitFor(t, func() bool { return s.models[0].gate.inFlight() == 0 })
}

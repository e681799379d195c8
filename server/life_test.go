package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3/option"

	"glimpse/engine"
)

const goodChat = `{"model":"tiny","messages":[{"role":"user","content":"a b c"}]}`

// waiting is a fake that answers when release is closed, and tells when it was asked.
func waiting(name string) (fake *fakeModel, asked chan struct{}, release chan struct{}) {
	fake, asked, release = newFake(name), make(chan struct{}, 64), make(chan struct{})
	fake.before = func(ctx context.Context, _ engine.Request) error {
		asked <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return fake, asked, release
}

func TestQueueFull(t *testing.T) {
	fake, asked, release := waiting("tiny")
	s, err := New(Options{Models: []Model{fake, newFake("other")}, Limits: Limits{InFlight: 3}})
	if err != nil {
		t.Fatal(err)
	}
	h := s.Handler()
	codes := make(chan int)
	go func() {
		codes <- post(h, "/v1/chat/completions", "application/json", strings.Replace(goodChat, `{`, `{"n":2,`, 1)).Code
	}()
	<-asked
	<-asked
	// Two places are taken: one is free, two are not.
	w := post(h, "/v1/chat/completions", "application/json", strings.Replace(goodChat, `{`, `{"n":2,`, 1))
	e := failure(t, w.Code, w.Body)
	after, err := strconv.Atoi(w.Header().Get("Retry-After"))
	if w.Code != http.StatusTooManyRequests || text(e.Code) != codeQueueFull || err != nil || after < 1 || after > 60 {
		t.Errorf("%d %+v, Retry-After %q", w.Code, e, w.Header().Get("Retry-After"))
	}
	// The other model has places of its own.
	if w := post(h, "/v1/chat/completions", "application/json", strings.Replace(goodChat, "tiny", "other", 1)); w.Code != 200 {
		t.Errorf("other model: %d", w.Code)
	}
	close(release)
	if code := <-codes; code != 200 {
		t.Errorf("first request: %d", code)
	}
	if n := s.models[0].gate.inFlight(); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
	if w := post(h, "/v1/chat/completions", "application/json", goodChat); w.Code != 200 {
		t.Errorf("afterwards: %d", w.Code)
	}
}

// Requests in flight end when the server drains; new ones are turned away and /readyz says no.
func TestDrain(t *testing.T) {
	t.Parallel()
	fake, asked, release := waiting("tiny")
	s, err := New(Options{Models: []Model{fake}, Limits: Limits{DrainDelay: 1500 * time.Millisecond, DrainTimeout: 20 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + ln.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	defer http.DefaultClient.CloseIdleConnections()

	type reply struct {
		code int
		body string
	}
	first := make(chan reply, 1)
	go func() {
		resp, err := http.Post(base+"/v1/chat/completions", "application/json", strings.NewReader(goodChat))
		if err != nil {
			first <- reply{body: err.Error()}
			return
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		first <- reply{resp.StatusCode, string(raw)}
	}()
	<-asked
	status := func(path string) int {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	if code := status("/readyz"); code != 200 {
		t.Errorf("/readyz before: %d", code)
	}
	stop()
	waitFor(t, func() bool { return s.draining.Load() })
	if code := status("/readyz"); code != 503 {
		t.Errorf("/readyz while draining: %d", code)
	}
	if code := status("/healthz"); code != 200 {
		t.Errorf("/healthz while draining: %d", code)
	}
	resp, err := http.Post(base+"/v1/chat/completions", "application/json", strings.NewReader(goodChat))
	if err != nil {
		t.Fatal(err)
	}
	if e := failure(t, resp.StatusCode, resp.Body); resp.StatusCode != 503 || text(e.Code) != codeDraining || resp.Header.Get("Retry-After") == "" {
		t.Errorf("new request while draining: %d %+v", resp.StatusCode, e)
	}
	_ = resp.Body.Close()
	close(release)
	if r := <-first; r.code != 200 || !strings.Contains(r.body, `"content":"a b c"`) {
		t.Errorf("request in flight: %+v", r)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the port is still open")
	}
}

// What outlives the drain is cut off, told so, and reported.
func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	fake, asked, _ := waiting("tiny")
	s, err := New(Options{Models: []Model{fake}, Limits: Limits{DrainTimeout: 100 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	defer http.DefaultClient.CloseIdleConnections()
	go func() { <-asked; stop() }()
	resp, err := http.Post("http://"+ln.Addr().String()+"/v1/chat/completions", "application/json", strings.NewReader(goodChat))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if e := failure(t, resp.StatusCode, resp.Body); resp.StatusCode != 503 || text(e.Code) != codeDraining {
		t.Errorf("%d %+v", resp.StatusCode, e)
	}
	if err := <-served; err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("Serve: %v", err)
	}
}

// dial sends raw bytes and returns what comes back until the server closes.
func dial(t *testing.T, base, head string, drip func(net.Conn)) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	if drip != nil {
		go drip(conn)
	}
	raw, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return string(raw)
}

const chatHead = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

func TestSlowClients(t *testing.T) {
	t.Parallel()
	base, s := start(t, Options{Models: []Model{newFake("tiny")}, Limits: Limits{BodyTimeout: 500 * time.Millisecond, HeaderTimeout: 500 * time.Millisecond, IdleTimeout: 500 * time.Millisecond}})
	drip := func(c net.Conn) {
		for range 200 {
			if _, err := c.Write([]byte(" ")); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if got := dial(t, base, chatHead+"Content-Length: 1000\r\n\r\n{", drip); !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, codeSlowBody) {
		t.Errorf("slow body: %q", got)
	}
	if got := dial(t, base, chatHead, drip); strings.HasPrefix(got, "HTTP/1.1 2") {
		t.Errorf("slow head: %q", got)
	}
	start := time.Now()
	if got := dial(t, base, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", nil); !strings.Contains(got, "200 OK") || time.Since(start) > 8*time.Second {
		t.Errorf("idle connection: %q after %s", got, time.Since(start))
	}
	if s.bodies.left != s.limits.BodiesBytes {
		t.Errorf("%d bytes of the body budget were lost", s.limits.BodiesBytes-s.bodies.left)
	}
}

// The body's deadline ends with the body: an answer may take longer.
func TestBodyTimeoutSparesAnswers(t *testing.T) {
	t.Parallel()
	fake := newFake("tiny")
	fake.before = func(ctx context.Context, _ engine.Request) error {
		select {
		case <-time.After(900 * time.Millisecond):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	base, _ := start(t, Options{Models: []Model{fake}, Limits: Limits{BodyTimeout: 500 * time.Millisecond}})
	for range 2 { // and on the same connection again
		resp, err := http.Post(base+"/v1/chat/completions", "application/json", strings.NewReader(goodChat))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
}

func TestOversizedBodies(t *testing.T) {
	t.Parallel()
	base, s := start(t, Options{Models: []Model{newFake("tiny")}, Limits: Limits{BodyBytes: 200 << 10, BodiesBytes: 300 << 10}})
	if got := dial(t, base, chatHead+"Content-Length: 1073741824\r\n\r\n{", nil); !strings.HasPrefix(got, "HTTP/1.1 413 ") || !strings.Contains(got, codeBodyTooLarge) {
		t.Errorf("announced 1 GiB: %q", got)
	}
	chunked := func(c net.Conn) {
		chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<16, strings.Repeat(" ", 1<<16))
		for range 64 {
			if _, err := io.WriteString(c, chunk); err != nil {
				return
			}
		}
	}
	if got := dial(t, base, chatHead+"Transfer-Encoding: chunked\r\n\r\n", chunked); !strings.HasPrefix(got, "HTTP/1.1 413 ") {
		t.Errorf("without end: %.200q", got)
	}
	if got := dial(t, base, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("x", 200<<10)+"\r\n\r\n", nil); !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("long head: %.200q", got)
	}
	// Two bodies that are under way and together too large: the second is refused, and works once the first is gone.
	first, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := io.WriteString(first, chatHead+"Content-Length: 200000\r\n\r\n"+strings.Repeat(" ", 190000)); err != nil {
		t.Fatal(err)
	}
	left := func() int64 { s.bodies.mu.Lock(); defer s.bodies.mu.Unlock(); return s.bodies.left }
	waitFor(t, func() bool { return left() < 120<<10 })
	padded := strings.Repeat(" ", 190000) + goodChat
	send := func() (int, string) {
		resp, err := http.Post(base+"/v1/chat/completions", "application/json", strings.NewReader(padded))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(raw)
	}
	if code, body := send(); code != 503 || !strings.Contains(body, codeBusy) {
		t.Errorf("second body: %d %s", code, body)
	}
	_ = first.Close()
	waitFor(t, func() bool { return left() == 300<<10 })
	if code, body := send(); code != 200 {
		t.Errorf("afterwards: %d %s", code, body)
	}
}

func TestKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	sum := func(key string) string { h := sha256.Sum256([]byte(key)); return hex.EncodeToString(h[:]) }
	if err := os.WriteFile(file, []byte("# the team\n"+sum("key-one")+" alice\n\n"+sum("key-two")+"  -\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log logs
	base, _ := start(t, Options{Models: []Model{newFake("tiny")}, KeyFile: file, Logger: log.logger()})
	for key, want := range map[string]int{"key-one": 200, "key-two": 200, "key-three": 401, "": 401, sum("key-one"): 401} {
		r, err := http.NewRequest(http.MethodGet, base+"/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			r.Header.Set("Authorization", "Bearer "+key)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != want {
			t.Errorf("key %q: %d, want %d", key, resp.StatusCode, want)
		}
		if want == 401 {
			if e := failure(t, resp.StatusCode, resp.Body); text(e.Code) != codeInvalidKey || resp.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("key %q: %+v", key, e)
			}
		}
		_ = resp.Body.Close()
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 401, "/openapi.json": 401, "/v1/chat/completions": 405} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s without a key: %d, want %d", path, resp.StatusCode, want)
		}
	}
	if _, err := client(t, base, option.WithAPIKey("key-one")).Chat.Completions.New(t.Context(), ask("x")); err != nil {
		t.Error(err)
	}
	waitFor(t, func() bool { return strings.Contains(log.String(), `"key":"alice"`) })
	if strings.Contains(log.String(), "key-") {
		t.Error("a key is in the log")
	}
}

// Probes may ask for the head alone.
func TestHead(t *testing.T) {
	base, _ := start(t, Options{Models: []Model{newFake("tiny")}})
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 200, "/v1/models": 200, "/v1/models/tiny": 200, "/v1/models/none": 404, "/v1/score": 405} {
		resp, err := http.Head(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if _ = resp.Body.Close(); resp.StatusCode != want || len(body) > 0 || err != nil {
			t.Errorf("%s: %d, %q, %v", path, resp.StatusCode, body, err)
		}
	}
}

func TestKeyFilesRefused(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for content, says := range map[string]string{
		"":                                      "0 keys",
		"# nothing\n":                           "0 keys",
		"secret alice\n":                        "line 1",
		hash + "\n\nxyz\n" + hash[:60]:          "line 4",
		hash + " a\n" + hash + " a":             "twice",
		hash + " " + strings.Repeat("x", 70000): "too long",
	} {
		if _, err := parseKeys(bufio.NewReader(strings.NewReader(content))); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, want %q", content, err, says)
		}
	}
	if _, err := New(Options{Models: []Model{newFake("a")}, KeyFile: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("a missing key file is no error")
	}
}

func TestNewRefuses(t *testing.T) {
	a := newFake("a")
	for name, o := range map[string]Options{
		"no model":     {},
		"same name":    {Models: []Model{a, newFake("a")}},
		"no name":      {Models: []Model{newFake("")}},
		"half of TLS":  {Models: []Model{a}, TLSCert: "x"},
		"media folder": {Models: []Model{a}, LocalMedia: filepath.Join(t.TempDir(), "none")},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A page of another origin cannot use a visitor's browser to reach the server.
func TestCrossOrigin(t *testing.T) {
	base, _ := start(t, Options{Models: []Model{newFake("tiny")}})
	for name, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200} {
		r, err := http.NewRequest(http.MethodPost, base+"/v1/chat/completions", strings.NewReader(goodChat))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Sec-Fetch-Site", name)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Sec-Fetch-Site %s: %d, want %d", name, resp.StatusCode, want)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	var log logs
	h := handler(t, Options{Models: []Model{newFake("tiny")}, Logger: log.logger()})
	for sent, kept := range map[string]bool{"abc-1.X_": true, "": false, "with space": false, "a\nb": false, strings.Repeat("x", 65): false} {
		r := newRequest("/v1/models")
		r.Header.Set("X-Request-Id", sent)
		w := serve(h, r)
		got := w.Header().Get("X-Request-Id")
		if (got == sent) != kept || got == "" {
			t.Errorf("sent %q, got %q", sent, got)
		}
		if !strings.Contains(log.String(), `"request":"`+got+`"`) {
			t.Errorf("%q is not in the log", got)
		}
	}
	// Forwarding headers of strangers are not believed.
	r := newRequest("/v1/models")
	r.Header.Set("X-Forwarded-For", "6.6.6.6")
	r.Header.Set("X-Real-Ip", "6.6.6.6")
	serve(h, r)
	if strings.Contains(log.String(), "6.6.6.6") {
		t.Error("the log believes X-Forwarded-For")
	}
}

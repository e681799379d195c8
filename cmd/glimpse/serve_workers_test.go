// serve with a process for each model, as clients see it: many streams at once, workers that are killed, reloads.

package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// soakEnv makes the load of TestServeUnderLoad that of `make soak`: its value is the seconds.
const soakEnv = "GLIMPSE_SOAK"

// load is a number of clients that stream until they are stopped.
type load struct {
	server   *serving
	model    string
	expected map[string]string // answers alone, by prompt
	clients  sync.WaitGroup
	stop     chan struct{}

	mu       sync.Mutex
	answered int
	refused  int // 503 with Retry-After before the stream began
	broken   int // an error event in the stream
	wrong    []string
}

const loadTokens = 12

func newLoad(t *testing.T, s *serving, model string) *load {
	l := &load{server: s, model: model, expected: map[string]string{}, stop: make(chan struct{})}
	for i := range 12 {
		prompt := fmt.Sprintf("picture number %d of %d", i, i*i)
		a, err := s.stream(model, prompt, loadTokens)
		if err != nil || !a.done || a.text == "" {
			t.Fatalf("alone: %+v, %v", a, err)
		}
		l.expected[prompt] = a.text
	}
	return l
}

func (l *load) start(clients int) {
	for client := range clients {
		l.clients.Go(func() {
			for round := client; ; round++ {
				select {
				case <-l.stop:
					return
				default:
				}
				i := round % len(l.expected)
				l.ask(fmt.Sprintf("picture number %d of %d", i, i*i))
			}
		})
	}
}

// ask asks once and judges what comes: the answer, or a clean error.
func (l *load) ask(prompt string) {
	a, err := l.server.stream(l.model, prompt, loadTokens)
	want := l.expected[prompt]
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil && a.status == http.StatusOK && a.done && a.code == "" && a.text == want:
		l.answered++
	case err == nil && a.status == http.StatusServiceUnavailable && a.code == "model_unavailable" && a.retry != "":
		l.refused++
	case err == nil && a.status == http.StatusOK && !a.done && a.code == "model_unavailable" && strings.HasPrefix(want, a.text):
		l.broken++
	default:
		l.wrong = append(l.wrong, fmt.Sprintf("%s: %+v, %v; want %q", prompt, a, err, want))
	}
}

func (l *load) counts() (answered, refused, broken int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered, l.refused, l.broken
}

// Many streaming clients at once, and the worker killed under them. `make soak` runs the same for a minute with 200 clients.
func TestServeUnderLoad(t *testing.T) {
	clients, phase := 24, time.Second
	soak := os.Getenv(soakEnv)
	if soak != "" {
		seconds, err := strconv.Atoi(soak)
		if err != nil || seconds < 10 {
			t.Fatalf("%s=%s: it must be a number of seconds, at least 10", soakEnv, soak)
		}
		clients, phase = 200, time.Duration(seconds)*time.Second/4
	}
	folder := model(t)
	name := filepath.Base(folder)
	s := startServing(t, "--in-flight", "1024", "--slots", "8", folder)
	l := newLoad(t, s, name)
	s.client.CloseIdleConnections()
	goroutines := s.metric(t, "go_goroutines")
	l.start(clients)

	time.Sleep(phase) // warm up
	memory := func() int64 { return resident(t, s.cmd.Process.Pid) + resident(t, s.workers(t)[name]) }
	warm := memory()
	for range 2 {
		time.Sleep(phase)
	}
	flat := memory()
	if _, refused, broken := l.counts(); refused+broken > 0 {
		t.Errorf("%d requests refused and %d broken before anything was killed", refused, broken)
	}
	if soak != "" && flat > warm+warm/5 {
		t.Errorf("memory grew from %d to %d MiB", warm>>20, flat>>20)
	}

	pid := s.workers(t)[name]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if a, err := s.stream(name, "picture number 0 of 0", loadTokens); err != nil || a.status != http.StatusOK && a.retry == "" {
		t.Errorf("the request after the kill: %+v, %v", a, err)
	}
	for {
		if a, err := s.stream(name, "picture number 0 of 0", loadTokens); err == nil && a.done {
			break
		}
		if time.Since(killed) > 5*time.Second {
			t.Fatal("no answer 5 s after the kill")
		}
		time.Sleep(20 * time.Millisecond)
	}
	back := time.Since(killed)
	time.Sleep(phase)
	close(l.stop)
	l.clients.Wait()
	for i, wrong := range l.wrong {
		if i < 10 {
			t.Error(wrong)
		}
	}
	answered, refused, broken := l.counts()
	if answered < clients || refused+broken == 0 {
		t.Errorf("%d answered, %d refused, %d broken: the kill hit nothing", answered, refused, broken)
	}
	s.client.CloseIdleConnections()
	for deadline := time.Now().Add(20 * time.Second); s.metric(t, "go_goroutines") > goroutines+5; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v goroutines before, %v after", goroutines, s.metric(t, "go_goroutines"))
		}
	}
	t.Logf("%d clients: %d answered as alone, %d refused and %d ended by an error event after the kill; back after %s; %d MiB warm, %d MiB later",
		clients, answered, refused, broken, back, warm>>20, flat>>20)
}

// A stream that has begun when serve is told to stop comes to its end: workers outlive the signal as long as they are needed.
func TestServeDrainsWorkers(t *testing.T) {
	folder := model(t)
	s := startServing(t, folder)
	name := filepath.Base(folder)
	worker := s.workers(t)[name]
	ended := make(chan streamed, 1)
	go func() {
		a, err := s.stream(name, "a long story", 1500)
		if err != nil {
			t.Error(err)
		}
		ended <- a
	}()
	for deadline := time.Now().Add(20 * time.Second); s.metric(t, `glimpse_in_flight\{model="`+name+`"\}`) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the request is not in flight")
		}
	}
	s.told = true
	for _, pid := range []int{worker, s.cmd.Process.Pid} { // as systemd does it: to every process
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case a := <-ended:
		t.Logf("the stream ended before the signal took effect, or with it: %+v", a.done)
		ended <- a
	case <-time.After(10 * time.Millisecond):
		if resp, err := s.client.Get(s.base + "/readyz"); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("/readyz while draining: %d", resp.StatusCode)
			}
		}
	}
	if a := <-ended; !a.done || a.code != "" || a.text == "" {
		t.Errorf("%+v", a)
	}
	for deadline := time.Now().Add(10 * time.Second); len(s.workers(t)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the worker is still there")
		}
	}
}

// Two models, one after the other in the same memory; and one that is reloaded without a gap.
func TestServeWithinAMemoryLimit(t *testing.T) {
	a, b := model(t), filepath.Join(t.TempDir(), "second")
	if err := os.CopyFS(b, os.DirFS(a)); err != nil {
		t.Fatal(err)
	}
	s := startServing(t, "--memory-limit", "150MiB", a, b)
	if code, body := s.get(t, "/readyz"); code != http.StatusOK || len(s.workers(t)) != 0 {
		t.Errorf("/readyz: %d %s, workers %v: models are loaded when they are asked for", code, body, s.workers(t))
	}
	for _, name := range []string{filepath.Base(a), "second", filepath.Base(a)} {
		if got, err := s.stream(name, "hello", 3); err != nil || !got.done {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if w := s.workers(t); len(w) != 1 || w[name] == 0 {
			t.Errorf("after %s: workers %v", name, w)
		}
	}
	old := s.workers(t)[filepath.Base(a)]
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if got, err := s.stream(filepath.Base(a), "hello", 3); err != nil || !got.done {
			t.Fatalf("while reloading: %+v, %v", got, err)
		}
		if w := s.workers(t); len(w) == 1 && w[filepath.Base(a)] != old {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not reloaded: workers %v, at first %d", s.workers(t), old)
		}
	}
}

// Models come into a watched folder, change and go.
func TestServeWatchesAModelsFolder(t *testing.T) {
	source, dir := os.DirFS(model(t)), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "no model"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := startServing(t, "--models", dir)
	if code, body := s.get(t, "/v1/models"); code != http.StatusOK || strings.Contains(body, `"id"`) {
		t.Errorf("an empty folder: %d %s", code, body)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("still not: %s", what)
			}
		}
	}
	status := func() int {
		a, err := s.stream("new", "hello", 3)
		if err != nil {
			t.Fatal(err)
		}
		return a.status
	}
	if got := status(); got != http.StatusNotFound {
		t.Errorf("before it is there: %d", got)
	}
	folder := filepath.Join(dir, "new")
	if err := os.CopyFS(filepath.Join(dir, ".new"), source); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, ".new"), folder); err != nil {
		t.Fatal(err)
	}
	until("the new model answers", func() bool { return status() == http.StatusOK })
	old := s.workers(t)["new"]
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(folder, "model.toml"), later, later); err != nil {
		t.Fatal(err)
	}
	until("the changed model has another worker", func() bool {
		if got := status(); got != http.StatusOK {
			t.Fatalf("while it changes: %d", got)
		}
		w := s.workers(t)["new"]
		return w != 0 && w != old
	})
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	until("the model is gone", func() bool { return status() == http.StatusNotFound && len(s.workers(t)) == 0 })
}

func TestServeRefusesTornModels(t *testing.T) {
	torn := filepath.Join(t.TempDir(), "torn")
	if err := os.CopyFS(torn, os.DirFS(model(t))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(torn, "decoder.onnx")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"--in-process"}} {
		r := glimpse(t, append(append([]string{"serve", "--listen", "127.0.0.1:0", "--log-level", "error"}, args...), torn)...)
		if r.code != exitUsage || !strings.Contains(r.stderr, "decoder") {
			t.Errorf("%v: exit %d: %s", args, r.code, r.stderr)
		}
	}
	refused(t, glimpse(t, "serve", "--in-process", "--memory-limit", "1GiB", model(t)), "--in-process")
	refused(t, glimpse(t, "serve"), "--models")
	refused(t, glimpse(t, "serve", "--listen", "127.0.0.1:0", "--models", filepath.Join(torn, "none")), "none")
	refused(t, glimpse(t, "serve", "--memory-limit", "1KiB", "--listen", "127.0.0.1:0", model(t)), "limit")
	refused(t, glimpse(t, "serve", "--memory-limit", "much", model(t)), "--memory-limit", "800MB")
	refused(t, glimpse(t, "worker", model(t)), "--socket")
}

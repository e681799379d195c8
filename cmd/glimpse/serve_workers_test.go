// serve with a process for each model, as clients see it: many streams at once, workers that are killed, reloads.

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// soakEnv makes the load of TestServeUnderLoad that of `make soak`: its value is the seconds.
const soakEnv = "GLIMPSE_SOAK"

// serving is a serve process.
type serving struct {
	cmd    *exec.Cmd
	base   string
	client *http.Client
	mu     sync.Mutex
	log    strings.Builder
}

func (s *serving) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// startServing starts serve and returns when it has printed its address. It is stopped, and must stop well, with the test.
func startServing(t *testing.T, args ...string) *serving {
	t.Helper()
	s := &serving{cmd: exec.Command(program, append([]string{"serve", "--listen", "127.0.0.1:0", "--threads", "1"}, args...)...)}
	s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512}, Timeout: 2 * time.Minute}
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(address)
		where := regexp.MustCompile(`^glimpse: serving .* on (http://[0-9.:]+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			s.mu.Lock()
			s.log.WriteString(lines.Text() + "\n")
			s.mu.Unlock()
			if m := where.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		_ = s.cmd.Process.Signal(syscall.SIGTERM) // where it is gone already, Wait says so
		<-read
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("serve ended with %v", err)
		}
		if t.Failed() {
			text := s.text()
			t.Log(text[max(0, len(text)-8000):])
		}
	})
	s.base = <-address
	if s.base == "" {
		t.Fatal("no address on standard error")
	}
	return s
}

func (s *serving) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := s.client.Get(s.base + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// streamed is what became of a streamed request.
type streamed struct {
	status int
	retry  string // the Retry-After header
	text   string
	code   string // of the error, in the reply or in the stream
	done   bool   // the stream ended with [DONE]
}

// stream asks and reads the stream to its end.
func (s *serving) stream(model, prompt string, tokens int) (streamed, error) {
	body, err := json.Marshal(map[string]any{"model": model, "stream": true, "max_tokens": tokens,
		"messages": []any{map[string]any{"role": "user", "content": prompt}}})
	if err != nil {
		return streamed{}, err
	}
	resp, err := s.client.Post(s.base+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return streamed{}, err
	}
	defer resp.Body.Close()
	a := streamed{status: resp.StatusCode, retry: resp.Header.Get("Retry-After")}
	type event struct {
		Error   *struct{ Code string }
		Choices []struct{ Delta struct{ Content string } }
	}
	if resp.StatusCode != http.StatusOK {
		var e event
		err := json.NewDecoder(resp.Body).Decode(&e)
		if err == nil && e.Error != nil {
			a.code = e.Error.Code
		}
		return a, err
	}
	for lines := bufio.NewScanner(resp.Body); ; {
		if !lines.Scan() {
			return a, lines.Err()
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			a.done = true
			continue
		}
		var e event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return a, fmt.Errorf("event %q: %w", data, err)
		}
		if e.Error != nil {
			a.code = e.Error.Code
		}
		for _, c := range e.Choices {
			a.text += c.Delta.Content
		}
	}
}

// workers returns the processes that serve has started, by the model's name.
func (s *serving) workers(t *testing.T) map[string]int {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, path := range entries {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		if fields[1] != strconv.Itoa(s.cmd.Process.Pid) || fields[0] == "Z" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		found[filepath.Base(args[len(args)-1])] = pid
	}
	return found
}

// metric reads a value from /metrics.
func (s *serving) metric(t *testing.T, name string) float64 {
	t.Helper()
	_, page := s.get(t, "/metrics")
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no %s in /metrics", name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func resident(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

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

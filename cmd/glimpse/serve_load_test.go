// serve under load: many clients that stream, each of which knows its answer, and a worker that is killed under them.

package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
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

// loadTokens is the length of an answer.
const loadTokens = 12

// load is a number of clients that stream until they are stopped.
type load struct {
	server   *serving
	model    string
	contents []any    // what is asked
	expected []string // the answers alone
	clients  sync.WaitGroup
	stop     chan struct{}

	mu       sync.Mutex
	answered int
	refused  int // 503 with Retry-After before the stream began
	broken   int // an error event in the stream
	wrong    []string
}

// newLoad asks every question alone: texts, and pictures with texts.
func newLoad(t *testing.T, s *serving, model string) *load {
	l := &load{server: s, model: model, stop: make(chan struct{})}
	for i := range 12 {
		l.contents = append(l.contents, fmt.Sprintf("picture number %d of %d", i, i*i))
	}
	for _, name := range []string{"cat.png", "coffee.png", "tiny_40x30.png"} {
		raw, err := os.ReadFile(filepath.Join(media, name))
		if err != nil {
			t.Fatal(err)
		}
		url := "data:image/png;base64," + base64.StdEncoding.EncodeToString(raw)
		l.contents = append(l.contents, []any{map[string]any{"type": "image_url", "image_url": map[string]any{"url": url}}, map[string]any{"type": "text", "text": "what is it?"}})
	}
	for _, content := range l.contents {
		a, err := s.streamContent(model, content, loadTokens)
		if err != nil || !a.done || a.text == "" {
			t.Fatalf("alone: %+v, %v", a, err)
		}
		l.expected = append(l.expected, a.text)
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
				l.ask(round % len(l.contents))
			}
		})
	}
}

// ask asks once and judges what comes: the answer, or a clean error.
func (l *load) ask(i int) {
	a, err := l.server.streamContent(l.model, l.contents[i], loadTokens)
	want := l.expected[i]
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
		l.wrong = append(l.wrong, fmt.Sprintf("question %d: %+v, %v; want %q", i, a, err, want))
	}
}

func (l *load) counts() (answered, refused, broken int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answered, l.refused, l.broken
}

// Many streaming clients at once, and the worker killed under them. `make soak` runs the same for a minute with 200 clients,
// with each way to store weights: what an answer is must not depend on its company.
func TestServeUnderLoad(t *testing.T) {
	soak := os.Getenv(soakEnv)
	if soak == "" {
		underLoad(t, model(t), 24, time.Second, false)
		return
	}
	seconds, err := strconv.Atoi(soak)
	if err != nil || seconds < 10 {
		t.Fatalf("%s=%s: it must be a number of seconds, at least 10", soakEnv, soak)
	}
	for _, precision := range []string{"fp32", "int8"} {
		t.Run(precision, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "tiny")
			if out, err := exec.Command(program, "convert", checkpoint, "-o", folder, "--precision", precision).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			underLoad(t, folder, 200, time.Duration(seconds)*time.Second/4, true)
		})
	}
}

func underLoad(t *testing.T, folder string, clients int, phase time.Duration, soak bool) {
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
	if soak && flat > warm+warm/5 {
		t.Errorf("memory grew from %d to %d MiB", warm>>20, flat>>20)
	}

	pid := s.workers(t)[name]
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if a, err := s.streamContent(name, l.contents[0], loadTokens); err != nil || a.status != http.StatusOK && a.retry == "" {
		t.Errorf("the request after the kill: %+v, %v", a, err)
	}
	for {
		if a, err := s.streamContent(name, l.contents[0], loadTokens); err == nil && a.done {
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

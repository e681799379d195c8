// serve with a process for each model, as clients see it: draining, memory limits, reloads, a folder that is watched.

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

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

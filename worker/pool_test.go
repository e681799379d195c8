package worker

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"glimpse/engine"
)

// loadedModels names the models that have a process.
func loadedModels(p *Pool) string {
	var names []string
	for _, m := range p.list() {
		if m.measure().loaded {
			names = append(names, m.name)
		}
	}
	return strings.Join(names, " ")
}

// Two of three models of 64 MiB fit. The one that was used least recently makes room, and its memory is back.
func TestMemoryLimit(t *testing.T) {
	probe, _ := newPool(t, "fake", 0)
	one := addFake(t, probe, "probe", map[string]string{"mib": "64"})
	pid := pidOf(t, one)
	bytes, err := residentBytes(pid)
	if err != nil || bytes < 64<<20 {
		t.Fatalf("%d bytes, %v", bytes, err)
	}
	if <-one.Unload(); !processGone(pid) {
		t.Error("the unloaded model's process is still there, with its memory")
	}

	p, _ := newPool(t, "fake", 2*bytes+bytes/2)
	models := map[string]*Model{}
	for _, name := range []string{"a", "b", "c"} {
		models[name] = addFake(t, p, name, map[string]string{"mib": "64"})
		models[name].size = bytes // as if it had been loaded before
		if !models[name].Ready() {
			t.Errorf("%s is not ready: it is loaded when it is wanted", name)
		}
	}
	for _, step := range []struct{ use, loaded string }{{"a", "a"}, {"b", "a b"}, {"a", "a b"}, {"c", "a c"}, {"b", "b c"}, {"b", "b c"}, {"a", "a b"}} {
		if got, err := collect(t.Context(), models[step.use], engine.Request{Prompt: step.use}); err != nil || got != step.use {
			t.Fatalf("%s: %q, %v", step.use, got, err)
		}
		if got := loadedModels(p); got != step.loaded {
			t.Fatalf("after %s: loaded are %q, want %q", step.use, got, step.loaded)
		}
		if _, total, _ := p.survey(); total > p.opts.MemoryLimit {
			t.Errorf("after %s: %d bytes are held, more than %d", step.use, total, p.opts.MemoryLimit)
		}
	}
}

// One fits. Requests for three models at once all get their answers, one model after another, also when none is ever idle.
func TestModelsTakeTurns(t *testing.T) {
	p, _ := newPool(t, "fake", 150<<20)
	var clients sync.WaitGroup
	for i := range 3 {
		m := addFake(t, p, fmt.Sprint("m", i), map[string]string{"mib": "64"})
		m.size = 90 << 20
		for client := range 4 {
			clients.Go(func() {
				for round := range 4 {
					prompt := fmt.Sprintf("slow %d %d %d ", i, client, round) + strings.Repeat("word ", 20)
					if got, err := collect(t.Context(), m, engine.Request{Prompt: prompt}); err != nil || got != prompt {
						t.Errorf("%s: %q, %v", m.name, got, err)
					}
				}
			})
		}
	}
	clients.Wait()
}

// Processes grow; the watch unloads what is idle.
func TestWatchUnloads(t *testing.T) {
	p, log := newPool(t, "fake", 160<<20)
	a, b := addFake(t, p, "a", map[string]string{"mib": "80"}), addFake(t, p, "b", map[string]string{"mib": "80"})
	a.size, b.size = 10<<20, 10<<20 // they pretended to be small
	for _, m := range []*Model{a, b} {
		if _, err := collect(t.Context(), m, engine.Request{Prompt: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "a is unloaded", func() bool { return loadedModels(p) == "b" })
	if !strings.Contains(log.String(), "more memory is held") {
		t.Error("nobody says why")
	}
}

func TestFoldersThatNeverFit(t *testing.T) {
	p, _ := newPool(t, "fake", 1<<10)
	if _, err := p.Add(fakeFolder(t, "x", map[string]string{"weights": strings.Repeat("x", 2<<10)})); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Error(err)
	}
	// One that turns out larger is alone and stays.
	m := addFake(t, p, "y", nil)
	start := time.Now()
	if got, err := collect(t.Context(), m, engine.Request{Prompt: "x"}); err != nil || got != "x" || time.Since(start) > 20*time.Second {
		t.Errorf("%q, %v", got, err)
	}
}

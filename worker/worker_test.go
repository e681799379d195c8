package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
)

// collect answers a prompt and checks that the tokens are the text.
func collect(ctx context.Context, m *Model, r engine.Request) (string, error) {
	var streamed strings.Builder
	ended := false
	r.Token = func(t engine.Token) {
		if ended {
			panic("a token after the end")
		}
		streamed.WriteString(t.Text)
	}
	res, err := m.Generate(ctx, r)
	ended = true
	if err != nil {
		return streamed.String(), err
	}
	if res.Text != streamed.String() {
		return "", fmt.Errorf("streamed %q, the result has %q", streamed.String(), res.Text)
	}
	return res.Text, nil
}

func TestRequestsOfEveryKind(t *testing.T) {
	m, _ := fakeModel(t)
	ctx := t.Context()
	r := engine.Request{Prompt: "one two", Pictures: []engine.Picture{{Data: make([]byte, 3<<20)}}}
	if got, err := collect(ctx, m, r); err != nil || got != strings.Join(fakeAnswer(r), "") {
		t.Errorf("%q, %v", got, err)
	}
	if res, err := m.Generate(ctx, engine.Request{Prompt: "without Token"}); err != nil || res.Text != "without Token" {
		t.Errorf("%+v, %v", res, err)
	}
	p, err := m.Prepare(ctx, engine.Request{Prompt: "x"})
	if err != nil || cmp.Diff([]int32{1, 2}, p.TokenIDs) != "" || p.PromptText != "x" || p.Tensors != nil {
		t.Errorf("%+v, %v", p, err)
	}
	if e, err := m.Embed(ctx, engine.EmbedRequest{Texts: []string{"a", "b"}}); err != nil || len(e.Texts) != 2 || e.Texts[1].Vector[0] != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	if r, err := m.Rerank(ctx, engine.RerankRequest{Documents: make([]engine.Document, 3)}); err != nil || r.Ranked[0].Index != 3 || r.Ranked[0].Scores["itm"] != 0.25 {
		t.Errorf("%+v, %v", r, err)
	}
	var refused *engine.RequestError
	if _, err := m.Score(ctx, engine.ScoreRequest{}); !errors.As(err, &refused) || !errors.Is(err, engine.ErrNoScores) {
		t.Errorf("%v", err)
	}
	if _, err := collect(ctx, m, engine.Request{Prompt: "refuse"}); !errors.As(err, &refused) || refused.Message != "picture 3 is none" || !errors.Is(err, engine.ErrPicture) {
		t.Errorf("%v", err)
	}
	if _, err := collect(ctx, m, engine.Request{Prompt: "fail"}); !errors.Is(err, engine.ErrBadLogits) {
		t.Errorf("%v", err)
	}
	before := pidOf(t, m)
	if _, err := collect(ctx, m, engine.Request{Prompt: "panic"}); err == nil || !strings.Contains(err.Error(), "as asked") {
		t.Errorf("%v", err)
	}
	if stats, err := m.Stats(ctx); err != nil || stats == nil || stats.Vision.Hits != 3 {
		t.Errorf("statistics %+v, %v", stats, err)
	}
	if info, err := m.Info(ctx); err != nil || info.PID != before || info.Context != 7 || info.Load != time.Second {
		t.Errorf("%+v, %v: a panic in one request must leave the worker alone", info, err)
	}
}

// Fifty clients at once, each with prompts of its own: every one gets its own answer, in order.
func TestStreamsAreNotCrossed(t *testing.T) {
	m, _ := fakeModel(t)
	var clients sync.WaitGroup
	for client := range 50 {
		clients.Go(func() {
			for round := range 20 {
				var prompt strings.Builder
				for word := range 10 + (client+round)%30 {
					fmt.Fprintf(&prompt, "%d-%d-%d ", client, round, word)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if (client+round)%7 == 0 { // some give up half-way
					cancel()
					if _, err := collect(ctx, m, engine.Request{Prompt: "slow " + prompt.String()}); !errors.Is(err, context.Canceled) {
						t.Errorf("given up: %v", err)
					}
					continue
				}
				if got, err := collect(ctx, m, engine.Request{Prompt: prompt.String()}); err != nil || got != prompt.String() {
					t.Errorf("client %d, round %d: %q, %v", client, round, got, err)
				}
				cancel()
			}
		})
	}
	clients.Wait()
	waitFor(t, "no request left in the worker", func() bool { info, err := m.Info(t.Context()); return err == nil && info.InFlight == 1 })
}

func TestCancel(t *testing.T) {
	m, _ := fakeModel(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := m.Generate(ctx, engine.Request{Prompt: "hang"})
		ended <- err
	}()
	inFlight := func(n int) func() bool {
		return func() bool { info, err := m.Info(t.Context()); return err == nil && info.InFlight == n+1 }
	}
	waitFor(t, "the request is in the worker", inFlight(1))
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	waitFor(t, "the request has left the worker", inFlight(0))
}

// kill -9 under load, several times: every request ends in its answer or in Unavailable, and the model is back in seconds.
func TestKillUnderLoad(t *testing.T) {
	m, log := fakeModel(t)
	var clients sync.WaitGroup
	stop := make(chan struct{})
	var mu sync.Mutex
	answered, lost := 0, 0
	for client := range 40 {
		clients.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				prompt := fmt.Sprintf("slow %d %d ", client, round) + strings.Repeat("word ", 10)
				got, err := collect(t.Context(), m, engine.Request{Prompt: prompt})
				var later *Unavailable
				mu.Lock()
				switch {
				case err == nil && got == prompt:
					answered++
				case errors.As(err, &later) && later.RetryAfter() > 0 && strings.HasPrefix(prompt, got):
					lost++
				default:
					t.Errorf("client %d, round %d: %q, %v", client, round, got, err)
				}
				mu.Unlock()
			}
		})
	}
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		pid := pidOf(t, m)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		for {
			info, err := m.Info(t.Context())
			if err == nil && info.PID != pid {
				break
			}
			if time.Since(killed) > 5*time.Second {
				t.Fatalf("no worker 5 s after the kill: %v", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Logf("back after %s", time.Since(killed))
	}
	time.Sleep(200 * time.Millisecond)
	close(stop)
	clients.Wait()
	if answered == 0 || lost == 0 {
		t.Errorf("%d answered, %d lost: nothing was tested", answered, lost)
	}
	if !strings.Contains(log.String(), "signal: killed") {
		t.Error("the log does not say how the worker died")
	}
}

// A request that kills its worker is not tried again, and others are.
func TestCrash(t *testing.T) {
	m, log := fakeModel(t)
	var later *Unavailable
	if _, err := collect(t.Context(), m, engine.Request{Prompt: "die"}); !errors.As(err, &later) {
		t.Errorf("%v", err)
	}
	waitFor(t, "a worker again, unasked", m.Ready)
	if got, err := collect(t.Context(), m, engine.Request{Prompt: "alive"}); err != nil || got != "alive" {
		t.Errorf("%q, %v", got, err)
	}
	waitFor(t, "the log says how", func() bool { return strings.Contains(log.String(), "exit status 3") })
}

// A worker that no longer answers is killed, its requests hear of it, and another takes its place.
func TestStoppedWorkerIsReplaced(t *testing.T) {
	log := &testLog{}
	p, err := NewPool(Options{Command: helperCommand(t, "fake"), PingTimeout: 2 * time.Second, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	m := addFake(t, p, "fake", nil)
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := pidOf(t, m)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "every thread of the worker stands still", func() bool { return stopped(t, pid) })
	var later *Unavailable
	if _, err := collect(t.Context(), m, engine.Request{Prompt: "x"}); !errors.As(err, &later) {
		t.Errorf("%v", err)
	}
	if got := pidOf(t, m); got == pid || !strings.Contains(log.String(), "does not answer") {
		t.Errorf("process %d, %d before; the log:\n%s", got, pid, log)
	}
}

// stopped reports whether every thread of the process is stopped: kill returns before they are.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		return false
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err != nil {
			return false
		}
		_, state, _ := strings.Cut(string(stat), ") ")
		if !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// Close ends the requests in flight and the process.
func TestCloseEndsRequestsAndProcess(t *testing.T) {
	m, _ := fakeModel(t)
	pid := pidOf(t, m)
	ended := make(chan error, 1)
	go func() {
		_, err := m.Generate(t.Context(), engine.Request{Prompt: "hang"})
		ended <- err
	}()
	waitFor(t, "the request is in the worker", func() bool { info, err := m.Info(t.Context()); return err == nil && info.InFlight == 2 })
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-ended; !errors.Is(err, engine.ErrClosed) {
		t.Error(err)
	}
	if !processGone(pid) {
		t.Error("the process is still there")
	}
	if _, err := m.Generate(t.Context(), engine.Request{}); !errors.Is(err, engine.ErrClosed) || m.Ready() {
		t.Errorf("after Close: %v, ready %v", err, m.Ready())
	}
	if err := m.Load(t.Context()); !errors.Is(err, engine.ErrClosed) {
		t.Error(err)
	}
}

func TestCloseWithAStoppedWorker(t *testing.T) {
	m, _ := fakeModel(t)
	pid := pidOf(t, m)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := m.Close(); err != nil || !processGone(pid) || time.Since(start) > closeGrace+5*time.Second {
		t.Errorf("%v, gone: %v, after %s", err, processGone(pid), time.Since(start))
	}
}

// What does not start says why, and does not hang.
func TestBrokenWorkers(t *testing.T) {
	for what, says := range map[string]string{"exits": "exit status 1", "garbage": "protocol", "liar": "protocol"} {
		t.Run(what, func(t *testing.T) {
			p, _ := newPool(t, what, 0)
			m := addFake(t, p, "fake", nil)
			if err := m.Load(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%v; it should say %q", err, says)
			}
			var later *Unavailable
			if _, err := m.Generate(t.Context(), engine.Request{}); !errors.As(err, &later) || later.After <= 0 || m.Ready() {
				t.Errorf("%v, ready %v", err, m.Ready())
			}
		})
	}
	t.Run("model", func(t *testing.T) {
		p, _ := newPool(t, "fake", 0)
		m := addFake(t, p, "fake", map[string]string{"broken": "the graph is torn"})
		var load *LoadError
		if err := m.Load(t.Context()); !errors.As(err, &load) || !strings.Contains(err.Error(), "the graph is torn") {
			t.Error(err)
		}
		// Mended, it comes by itself.
		if err := os.Remove(m.folder + "/broken"); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "loaded after all", m.Ready)
	})
	p, _ := newPool(t, "fake", 0)
	if _, err := p.Add(t.TempDir()); err == nil {
		t.Error("a folder without a manifest was added")
	}
	if _, err := NewPool(Options{}); err == nil {
		t.Error("a pool without a command")
	}
}

// Reloading loses no request, and a folder that does not load leaves the old worker where it is.
func TestReload(t *testing.T) {
	p, _ := newPool(t, "fake", 0)
	m := addFake(t, p, "fake", map[string]string{"version": "1"})
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := pidOf(t, m)
	slow := make(chan error, 1)
	words := "slow " + strings.Repeat("word ", 200)
	go func() {
		got, err := collect(t.Context(), m, engine.Request{Prompt: words})
		if err == nil && got != words {
			err = fmt.Errorf("got %q", got)
		}
		slow <- err
	}()
	waitFor(t, "the slow request is in the worker", func() bool { info, err := m.Info(t.Context()); return err == nil && info.InFlight == 2 })
	write(t, m.folder, "version", "2")
	if err := p.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	version := func() string {
		res, err := m.Generate(t.Context(), engine.Request{Prompt: "version"})
		if err != nil {
			t.Fatal(err)
		}
		return res.Text
	}
	if got := version(); got != "2" || pidOf(t, m) == old || processGone(old) {
		t.Errorf("version %s, process %d then and %d now; the old one must still work on its request", got, old, pidOf(t, m))
	}
	if err := <-slow; err != nil {
		t.Errorf("the request that was in flight: %v", err)
	}
	waitFor(t, "the old process is gone", func() bool { return processGone(old) })
	write(t, m.folder, "broken", "torn")
	if err := m.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "torn") {
		t.Errorf("%v", err)
	}
	if got := version(); got != "2" || !m.Ready() {
		t.Errorf("version %s, ready %v", got, m.Ready())
	}
}

func TestLogOfWorkers(t *testing.T) {
	log := &testLog{}
	r := strings.NewReader(`{"time":"2026-01-01T00:00:00Z","level":"ERROR","msg":"no memory","took":"3s","model":"x"}` + "\n" +
		"terminate called\x1b[31m\n\n{\"half\":\n" + strings.Repeat("x", 3*maxLine) + "\nlast without end")
	relay(r, log.logger())
	got := log.String()
	for _, part := range []string{`level=ERROR msg="no memory" took=3s`, `line="terminate called\x1b[31m"`, `line="{\"half\":"`, `line="last without end"`} {
		if !strings.Contains(got, part) {
			t.Errorf("the log lacks %s", part)
		}
	}
	if n := strings.Count(got, "\n"); n < 6 || n > 8 {
		t.Errorf("%d lines", n)
	}
}

// BenchmarkToken is what a token costs on its way through the socket, both processes together.
func BenchmarkToken(b *testing.B) {
	m, _ := fakeModel(b)
	prompt := strings.Repeat("word ", 1000)
	b.ResetTimer()
	for range b.N {
		if _, err := collect(b.Context(), m, engine.Request{Prompt: prompt}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/token")
}

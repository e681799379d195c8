package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"glimpse/engine"
	"glimpse/graphs"
)

// The test binary is also the worker: with this variable it runs one in place of the tests.
const (
	helperEnv = "GLIMPSE_TEST_WORKER" // fake, real, or one of the broken ones
	socketEnv = "GLIMPSE_TEST_SOCKET"
	folderEnv = "GLIMPSE_TEST_FOLDER"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		if err := helper(what, os.Getenv(socketEnv), os.Getenv(folderEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if converted.folder != "" {
			os.RemoveAll(filepath.Dir(converted.folder))
		}
		os.Exit(code)
	}))
}

func helper(what, socket, folder string) error {
	switch what {
	case "exits":
		return errors.New("no reason at all")
	case "parent":
		program, err := os.Executable()
		if err != nil {
			return err
		}
		return beParent(program, folder)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	log := Logger(os.Stderr, slog.LevelInfo)
	switch what {
	case "garbage":
		_, err := conn.Write([]byte(strings.Repeat("HTTP/1.1 200 OK\r\n", 100)))
		_, _ = io.Copy(io.Discard, conn)
		return err
	case "liar": // greets as it should, and then announces more than it may
		if err := greet(conn, conn); err != nil {
			return err
		}
		_, err := conn.Write([]byte{0xff, 0xff, 0xff, 0xff, byte(kindToken), 1, 0, 0, 0, 0, 0, 0, 0})
		_, _ = io.Copy(io.Discard, conn)
		return err
	case "real":
		rt, err := graphs.Open(graphs.Options{Logger: log})
		if err != nil {
			return err
		}
		return errors.Join(Serve(context.Background(), conn, log, func(ctx context.Context) (Engine, error) {
			return engine.Open(ctx, folder, engine.Options{Runtime: rt, Threads: 1, Logger: log})
		}), rt.Close())
	}
	return Serve(context.Background(), conn, log, func(ctx context.Context) (Engine, error) { return openFake(folder) })
}

// fakeEngine answers with what it was asked, a word a token. The first word of a prompt can ask for other things.
type fakeEngine struct {
	version string // of the folder
	ballast []byte
}

// openFake reads the folder's files: "broken" is an error, "mib" is memory to hold, "version" is in every answer.
func openFake(folder string) (*fakeEngine, error) {
	if text, err := os.ReadFile(filepath.Join(folder, "broken")); err == nil {
		return nil, errors.New(string(text))
	}
	version, _ := os.ReadFile(filepath.Join(folder, "version"))
	e := &fakeEngine{version: string(version)}
	if text, err := os.ReadFile(filepath.Join(folder, "mib")); err == nil {
		n, err := strconv.Atoi(string(text))
		if err != nil {
			return nil, err
		}
		e.ballast = make([]byte, n<<20)
		for i := 0; i < len(e.ballast); i += 4096 {
			e.ballast[i] = 1
		}
	}
	return e, nil
}

func (e *fakeEngine) Context() int            { return 7 }
func (e *fakeEngine) LoadTime() time.Duration { return time.Second }
func (e *fakeEngine) Stats() engine.Stats     { return engine.Stats{Vision: engine.VisionStats{Hits: 3}} }
func (e *fakeEngine) Close() error            { return nil }

// fakeAnswer is what the fake says to a prompt.
func fakeAnswer(r engine.Request) []string {
	words := strings.SplitAfter(r.Prompt, " ")
	for _, p := range r.Pictures {
		sum := sha256.Sum256(p.Data)
		words = append(words, " "+hex.EncodeToString(sum[:]))
	}
	return words
}

func (e *fakeEngine) Generate(ctx context.Context, r engine.Request) (*engine.Result, error) {
	command, _, _ := strings.Cut(r.Prompt, " ")
	wait := time.Duration(0)
	switch command {
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "die":
		os.Exit(3)
	case "panic":
		panic("as asked")
	case "refuse":
		return nil, &engine.RequestError{Param: "messages", Code: engine.CodeImage, Message: "picture 3 is none", Err: engine.ErrPicture}
	case "fail":
		return nil, fmt.Errorf("run the decoder: %w", engine.ErrBadLogits)
	case "version":
		return &engine.Result{Text: e.version}, nil
	case "slow":
		wait = 5 * time.Millisecond
	}
	res := &engine.Result{FinishReason: engine.FinishStop}
	for i, word := range fakeAnswer(r) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		r.Token(engine.Token{ID: int32(i), Text: word, Piece: word})
		res.Text += word
		res.TokenIDs = append(res.TokenIDs, int32(i))
	}
	return res, nil
}

func (e *fakeEngine) Prepare(_ context.Context, r engine.Request) (*engine.Prepared, error) {
	return &engine.Prepared{PromptText: r.Prompt, TokenIDs: []int32{1, 2}, Tensors: map[string]engine.Array{"pixel_values": {Data: []float32{1}}}}, nil
}

func (e *fakeEngine) Score(context.Context, engine.ScoreRequest) (*engine.ScoreResult, error) {
	return nil, &engine.RequestError{Param: "model", Code: engine.CodeUnsupported, Message: "no heads", Err: engine.ErrNoScores}
}

func (e *fakeEngine) Embed(_ context.Context, r engine.EmbedRequest) (*engine.EmbedResult, error) {
	res := &engine.EmbedResult{}
	for i := range r.Texts {
		res.Texts = append(res.Texts, engine.Embedding{Vector: []float32{float32(i), 0.5}})
	}
	return res, nil
}

func (e *fakeEngine) Rerank(_ context.Context, r engine.RerankRequest) (*engine.RerankResult, error) {
	return &engine.RerankResult{Ranked: []engine.Ranked{{Index: len(r.Documents), Scores: map[string]float32{"itm": 0.25}}}}, nil
}

// testLog collects the log.
type testLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *testLog) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// newPool makes a pool of helpers; the log is printed when the test fails.
func newPool(t testing.TB, what string, limit int64) (*Pool, *testLog) {
	t.Helper()
	log := &testLog{}
	p, err := NewPool(Options{Command: helperCommand(t, what), MemoryLimit: limit, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return p, log
}

func helperCommand(t testing.TB, what string) func(folder, socket string) *exec.Cmd {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return func(folder, socket string) *exec.Cmd {
		return &exec.Cmd{Path: program, Args: []string{"worker"}, Env: append(os.Environ(), helperEnv+"="+what, socketEnv+"="+socket, folderEnv+"="+folder)}
	}
}

// fakeFolder makes a folder that has a manifest, and files for the fake engine.
func fakeFolder(t testing.TB, name string, files map[string]string) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, folder, "model.toml", "format_version = 1\nfamily = \"fake\"\n[components.x]\nfile = \"x.onnx\"\n")
	for file, text := range files {
		write(t, folder, file, text)
	}
	return folder
}

func write(t testing.TB, folder, file, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// addFake adds a model with the fake engine, not loaded.
func addFake(t testing.TB, p *Pool, name string, files map[string]string) *Model {
	t.Helper()
	m, err := p.Add(fakeFolder(t, name, files))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fakeModel is a loaded model with the fake engine.
func fakeModel(t testing.TB) (*Model, *testLog) {
	t.Helper()
	p, log := newPool(t, "fake", 0)
	m := addFake(t, p, "fake", nil)
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m, log
}

func pidOf(t testing.TB, m *Model) int {
	t.Helper()
	info, err := m.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.PID
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func processGone(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err != nil
}

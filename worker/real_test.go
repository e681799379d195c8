package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/graphs"
)

const goldens = "../testdata/goldens"

// converted holds the model folder that TestMain removes.
var converted struct {
	once   sync.Once
	folder string
	err    error
}

func tinyModel(t testing.TB) string {
	t.Helper()
	converted.once.Do(func() {
		dir, err := os.MkdirTemp("", "glimpse-worker-")
		if err != nil {
			converted.err = err
			return
		}
		converted.folder = filepath.Join(dir, "tiny")
		_, converted.err = convert.Convert(context.Background(), convert.Options{
			Checkpoint: filepath.Join(goldens, "llava15-tiny", "checkpoint"), Out: converted.folder, Precision: "fp32",
		})
	})
	if converted.err != nil {
		t.Fatal(converted.err)
	}
	return converted.folder
}

// A real model says through a worker what it says in process, with pictures, log-probabilities and all.
func TestRealModel(t *testing.T) {
	folder := tinyModel(t)
	picture, err := os.ReadFile(filepath.Join(goldens, "media", "cat.png"))
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(0) // zero is a seed
	request := engine.Request{
		Messages: []engine.Message{{Role: "user", Content: []engine.Part{
			{Type: engine.PartImage, Picture: &engine.Picture{Data: picture, Source: "cat.png"}}, {Type: engine.PartText, Text: "What is it?"},
		}}},
		MaxTokens: 12, Logprobs: 3, Sampling: engine.Sampling{Temperature: 1, Seed: &seed},
	}
	answers := func(m interface {
		Generate(context.Context, engine.Request) (*engine.Result, error)
		Prepare(context.Context, engine.Request) (*engine.Prepared, error)
	}) ([]engine.Token, *engine.Result, *engine.Prepared) {
		t.Helper()
		var tokens []engine.Token
		r := request
		r.Token = func(t engine.Token) { tokens = append(tokens, t) }
		res, err := m.Generate(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		res.Timings = engine.Timings{}
		prepared, err := m.Prepare(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		return tokens, res, &engine.Prepared{PromptText: prepared.PromptText, TokenIDs: prepared.TokenIDs, ImageTokens: prepared.ImageTokens, MaxTokens: prepared.MaxTokens, Pictures: prepared.Pictures}
	}

	p, _ := newPool(t, "real", 0)
	m, err := p.Add(folder)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	tokens, res, prepared := answers(m)

	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(e.Close(), rt.Close()); err != nil {
			t.Error(err)
		}
	}()
	wantTokens, wantRes, wantPrepared := answers(e)
	if len(tokens) == 0 {
		t.Error("no token came")
	}
	if d := cmp.Diff(wantTokens, tokens); d != "" {
		t.Errorf("tokens (-in process +worker):\n%s", d)
	}
	if d := cmp.Diff(wantRes, res); d != "" {
		t.Errorf("result (-in process +worker):\n%s", d)
	}
	if d := cmp.Diff(wantPrepared.TokenIDs, prepared.TokenIDs); d != "" || wantPrepared.PromptText != prepared.PromptText || wantPrepared.ImageTokens != prepared.ImageTokens {
		t.Errorf("prepared (-in process +worker):\n%s", d)
	}

	bad := request
	bad.Messages = []engine.Message{{Role: "user", Content: []engine.Part{{Type: engine.PartImage, Picture: &engine.Picture{Data: []byte("text")}}}}}
	_, want := e.Generate(t.Context(), bad)
	_, got := m.Generate(t.Context(), bad)
	var a, b *engine.RequestError
	if !errors.As(want, &a) || !errors.As(got, &b) || a.Message != b.Message || a.Code != b.Code || a.Param != b.Param {
		t.Errorf("a broken picture: %v in process, %v in the worker", want, got)
	}
	if info, err := m.Info(t.Context()); err != nil || info.Context != e.Context() {
		t.Errorf("%+v, %v; the context is %d", info, err, e.Context())
	}
}

func TestRealModelThatIsTorn(t *testing.T) {
	torn := filepath.Join(t.TempDir(), "torn")
	if err := os.CopyFS(torn, os.DirFS(tinyModel(t))); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(torn, "decoder.onnx")); err != nil {
		t.Fatal(err)
	}
	p, _ := newPool(t, "real", 0)
	m, err := p.Add(torn)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "decoder") {
		t.Error(err)
	}
}

// A worker does not outlive the process that started it, however that ends.
func TestWorkersDieWithTheirParent(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(program)
	parent.Env = append(os.Environ(), helperEnv+"=parent", folderEnv+"="+fakeFolder(t, "fake", nil))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if err := json.NewDecoder(bytes.NewReader(line[:n])).Decode(&pid); err != nil || processGone(pid) {
		t.Fatalf("%q: %v", line[:n], err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	waitFor(t, "worker "+strconv.Itoa(pid)+" is gone", func() bool { return processGone(pid) })
}

// beParent loads a model, prints its process and does nothing more.
func beParent(program, folder string) error {
	p, err := NewPool(Options{Command: func(folder, socket string) *exec.Cmd {
		return &exec.Cmd{Path: program, Env: append(os.Environ(), helperEnv+"=fake", socketEnv+"="+socket, folderEnv+"="+folder)}
	}})
	if err != nil {
		return err
	}
	m, err := p.Add(folder)
	if err != nil {
		return err
	}
	info, err := m.Info(context.Background())
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(info.PID); err != nil {
		return err
	}
	time.Sleep(time.Minute)
	return nil
}

package engine_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
	"glimpse/manifest"
)

func TestPreloadNames(t *testing.T) {
	m := &manifest.Manifest{
		Decoder:    &manifest.Decoder{Component: "decoder", Prefill: "prefill"},
		Components: map[string]manifest.Component{"vision": {Bytes: 2}, "connector": {Bytes: 1}, "decoder": {Bytes: 5}, "prefill": {Bytes: 9}},
	}
	for _, tc := range []struct {
		low  bool
		want []string
	}{{false, []string{"prefill", "decoder", "vision", "connector"}}, {true, []string{"decoder", "vision", "connector"}}} {
		if diff := cmp.Diff(tc.want, engine.PreloadNames(m, engine.Options{LowMemory: tc.low})); diff != "" {
			t.Errorf("low memory %v: %s", tc.low, diff)
		}
	}
}

// Every graph can be taken once; what nobody takes is closed; a graph that does not load fails for the one who takes it,
// and says which it is.
func TestPreloadHandsOver(t *testing.T) {
	folder := tinyModel(t)
	m, err := manifest.Read(folder)
	if err != nil {
		t.Fatal(err)
	}
	opts := engine.Options{Runtime: openRuntime(t), Threads: 2}
	ctx := context.Background()
	p := engine.StartPreload(ctx, folder, m, opts)
	s, ok, err := p.Take(ctx, "vision")
	if err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	defer s.Close()
	if _, again, _ := p.Take(ctx, "vision"); again {
		t.Error("a graph was handed over twice")
	}
	if _, unknown, _ := p.Take(ctx, "nothing"); unknown {
		t.Error("a graph that is not there was handed over")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if p.Left() != 0 {
		t.Errorf("left: %v", p.Left())
	}

	broken := t.TempDir()
	if err := os.CopyFS(broken, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "decoder.onnx"), []byte("no graph"), 0o644); err != nil {
		t.Fatal(err)
	}
	p = engine.StartPreload(ctx, broken, m, opts)
	if _, ok, err := p.Take(ctx, "decoder"); !ok || err == nil || !strings.Contains(err.Error(), "decoder") {
		t.Errorf("%v, %v", ok, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}

	stopped, cancel := context.WithCancel(ctx)
	cancel()
	p = engine.StartPreload(stopped, folder, m, opts)
	if _, ok, err := p.Take(stopped, "decoder"); !ok || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", ok, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

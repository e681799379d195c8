// The built binary as scripts see it: exit statuses, one-line errors, what is left on disk.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// program is the path of the program under test; TestMain builds it.
var program string

const (
	goldenSet  = "../../testdata/goldens/llava15-tiny"
	media      = "../../testdata/goldens/media"
	checkpoint = goldenSet + "/checkpoint"
)

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "glimpse-cli-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "glimpse")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the binary: %w\n%s", err, out)
	}
	// The binary is not where `make` puts it, so it is told where the library is.
	if os.Getenv("GLIMPSE_ORT_LIB") == "" {
		lib, err := filepath.Abs("../../.deps/lib")
		if err != nil {
			return 0, err
		}
		os.Setenv("GLIMPSE_ORT_LIB", lib)
	}
	// Nothing of the user's own may matter.
	for _, name := range []string{"XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME"} {
		os.Setenv(name, filepath.Join(dir, "home"))
	}
	for _, name := range []string{"HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "GLIMPSE_MODELS"} {
		os.Unsetenv(name)
	}
	return m.Run(), nil
}

// result is a finished run.
type result struct {
	code           int
	stdout, stderr string
}

// command prepares a run that cannot outlive the test.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, program, args...)
}

func runIt(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %v: %v", cmd.Args[1:], err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// glimpse runs the binary to its end.
func glimpse(t *testing.T, args ...string) result {
	t.Helper()
	return runIt(t, command(t, args...))
}

// must runs the binary and wants success.
func must(t *testing.T, args ...string) result {
	t.Helper()
	r := glimpse(t, args...)
	if r.code != 0 {
		t.Fatalf("glimpse %s: exit %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}

// refused wants exit 2 with one line on standard error that has every part, and nothing on standard output.
func refused(t *testing.T, r result, parts ...string) {
	t.Helper()
	if r.code != exitUsage {
		t.Errorf("exit %d, want %d\n%s", r.code, exitUsage, r.stderr)
	}
	if r.stdout != "" {
		t.Errorf("standard output is not empty: %q", r.stdout)
	}
	if !strings.HasPrefix(r.stderr, "glimpse: ") || strings.Count(r.stderr, "\n") != 1 || !strings.HasSuffix(r.stderr, "\n") {
		t.Errorf("standard error is not one line: %q", r.stderr)
	}
	if strings.Contains(r.stderr, "goroutine") || strings.Contains(r.stderr, "panic") {
		t.Errorf("a panic shows: %q", r.stderr)
	}
	for _, p := range parts {
		if !strings.Contains(r.stderr, p) {
			t.Errorf("the error does not name %q: %s", p, r.stderr)
		}
	}
}

// model converts the golden checkpoint at fp32 once for all tests.
var modelOnce = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(filepath.Dir(program), "tiny")
	out, err := exec.Command(program, "convert", checkpoint, "-o", dir, "--precision", "fp32").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("convert %s: %w\n%s", checkpoint, err, out)
	}
	return dir, nil
})

func model(t *testing.T) string {
	t.Helper()
	dir, err := modelOnce()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// entries lists a folder, hidden names included.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	return names
}

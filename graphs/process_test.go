package graphs_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"glimpse/graphs"

	"go.uber.org/goleak"
)

// findEnv makes the test binary print what FindLibrary says and stop. A copy of
// the binary under another name and in another folder is then an installed
// program.
const findEnv = "GRAPHS_TEST_FIND"

func TestMain(m *testing.M) {
	if os.Getenv(findEnv) != "" {
		found, err := graphs.FindLibrary("")
		fmt.Println(found.Path)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// installed is a folder bin with this test's binary as bin/glimpse, and what it
// finds.
func installed(t *testing.T) (folder string, find func(dir string, env ...string) (string, error)) {
	t.Helper()
	folder = t.TempDir()
	if real, err := filepath.EvalSymlinks(folder); err == nil {
		folder = real
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(folder, "bin", "glimpse")
	if err := os.Mkdir(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	source, err := os.Open(executable)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	target, err := os.OpenFile(program, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(target, source); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
	return folder, func(dir string, env ...string) (string, error) {
		command := exec.Command(program)
		command.Dir = dir
		command.Env = append(env, findEnv+"=1")
		out, err := command.Output()
		return strings.TrimSpace(string(out)), err
	}
}

func TestFindLibraryOfAnInstalledProgram(t *testing.T) {
	real, err := graphs.FindLibrary("")
	if err != nil {
		t.Fatal(err)
	}
	folder, find := installed(t)
	link := func(parts ...string) string {
		path := filepath.Join(append([]string{folder}, parts...)...)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real.Path, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out, err := find(folder)
	if err == nil {
		t.Skip("this machine has an ONNX Runtime of its own: ", out)
	}
	for _, want := range []string{"GLIMPSE_ORT_LIB is not set", filepath.Join(folder, "bin") + ": no libonnxruntime.so",
		filepath.Join(folder, "bin", ".deps", "lib"), filepath.Join(folder, ".deps", "lib"), "libonnxruntime.so.1 (system)", "glimpse doctor"} {
		if !strings.Contains(out, want) {
			t.Errorf("the error lacks %q:\n%s", want, out)
		}
	}
	// From the last place to the first, so that each wins over those before.
	system := link("elsewhere", "libonnxruntime.so.1")
	if out, err := find(folder, "LD_LIBRARY_PATH="+filepath.Dir(system)); err != nil || out != system {
		t.Errorf("system: found %q, want %s", out, system)
	}
	for _, parts := range [][]string{{".deps", "lib"}, {"bin", ".deps", "lib"}, {"bin"}} {
		path := link(append(parts, "libonnxruntime.so")...)
		if out, err := find(folder, "LD_LIBRARY_PATH="+filepath.Dir(system)); err != nil || out != path {
			t.Errorf("found %q, want %s", out, path)
		}
	}
	if out, err := find(folder, "GLIMPSE_ORT_LIB="+system); err != nil || out != system {
		t.Errorf("GLIMPSE_ORT_LIB: found %q, want %s", out, system)
	}
}

// A program that is installed does not load code from where it was started.
func TestWorkingDirectoryIsNotTrusted(t *testing.T) {
	real, err := graphs.FindLibrary("")
	if err != nil {
		t.Fatal(err)
	}
	folder, find := installed(t)
	work := filepath.Join(folder, "work")
	planted := filepath.Join(work, ".deps", "lib", "libonnxruntime.so")
	if err := os.MkdirAll(filepath.Dir(planted), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real.Path, planted); err != nil {
		t.Fatal(err)
	}
	if out, _ := find(work); strings.Contains(out, planted) {
		t.Errorf("the library of the working directory was used: %s", out)
	}
}

// resident is the memory this process has in RAM.
func resident(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(status))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// The first token of a slot must not make the slot resident.
func TestArenaIsResidentByToken(t *testing.T) {
	rt := open(t)
	arena, err := rt.NewArena(graphs.ArenaSpec{Layers: 16, Slots: 2, KVHeads: 8, Capacity: 4096, HeadDim: 64, DType: graphs.Float32})
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	view, err := arena.View(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	before := resident(t)
	for layer := range view.Keys {
		for _, tensor := range []*graphs.Tensor{view.Keys[layer], view.Values[layer]} {
			for head := range 8 {
				tensor.Float32()[head*4096*64] = 1
			}
		}
	}
	if grown := resident(t) - before; grown > 16<<20 {
		t.Errorf("one token made %d MiB of %d MiB resident", grown>>20, arena.Bytes()>>20)
	}
}

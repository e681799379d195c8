package graphs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeLibrary compiles a shared library that claims to be an ONNX Runtime of the
// given release without any C API. An empty version leaves the entry point out.
func fakeLibrary(t *testing.T, version string) string {
	t.Helper()
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler: ", err)
	}
	folder := t.TempDir()
	source := filepath.Join(folder, "fake.c")
	code := `#include <stddef.h>
static const void *get_api(unsigned version) { return NULL; }
static const char *get_version(void) { return "` + version + `"; }
static const struct { const void *(*a)(unsigned); const char *(*v)(void); } base = {get_api, get_version};
const void *OrtGetApiBase(void) { return &base; }
`
	if version == "" {
		code = "int nothing;\n"
	}
	if err := os.WriteFile(source, []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(folder, "libonnxruntime.so")
	if out, err := exec.Command(compiler, "-shared", "-fPIC", "-o", library, source).CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	return library
}

// Every way in which a library can be wrong is an error that says so, names the
// place, and tells what is needed.
func TestFindLibraryRefuses(t *testing.T) {
	text := filepath.Join(t.TempDir(), "libonnxruntime.so")
	if err := os.WriteFile(text, []byte("not a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	foreign := fakeLibrary(t, "1.40.0")
	image, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	image[18], image[19] = 0xf3, 0 // ELF e_machine: RISC-V
	if err := os.WriteFile(foreign, image, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, want string }{
		{"missing", filepath.Join(t.TempDir(), "gone.so"), "no such file"},
		{"empty folder", t.TempDir(), "no libonnxruntime.so"},
		{"text", text, "file too short"},
		{"another machine's", foreign, "is built for EM_RISCV"},
		{"another library", fakeLibrary(t, ""), "has no OrtGetApiBase"},
		{"too old", fakeLibrary(t, "1.20.1"), "is ONNX Runtime 1.20.1, too old: 1.32.0 or newer is needed"},
		{"no version", fakeLibrary(t, "nightly"), "too old"},
		{"too new", fakeLibrary(t, "9.0.0"), "is ONNX Runtime 9.0.0, which no longer offers C API 26"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, through := range []string{"flag", "environment"} {
				flag := test.path
				if through == "environment" {
					flag = ""
					t.Setenv(libraryEnv, test.path)
				}
				_, err := Open(Options{LibraryPath: flag})
				var lost *LibraryError
				if !errors.As(err, &lost) {
					t.Fatalf("%s: %v, want a *LibraryError", through, err)
				}
				for _, want := range []string{test.want, test.path, minimumVersion, "C API 26", "glimpse doctor"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%s: the error lacks %q:\n%v", through, want, err)
					}
				}
			}
		})
	}
}

func TestFindLibraryOrder(t *testing.T) {
	real, err := FindLibrary("")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(libraryEnv, filepath.Join(t.TempDir(), "gone.so"))
	if _, err := FindLibrary(""); err == nil {
		t.Error("a library named by the environment that is not there was replaced by another")
	}
	if found, err := FindLibrary(real.Path); err != nil || found.Path != real.Path {
		t.Errorf("the flag gave %v, %v; want %s whatever the environment says", found, err, real.Path)
	}
	t.Setenv(libraryEnv, filepath.Dir(real.Path))
	if found, err := FindLibrary(""); err != nil || found.Version != real.Version {
		t.Errorf("a folder in the environment gave %v, %v", found, err)
	}
}

// A folder's wrong library is noted, and the next candidate of it is used.
func TestFindLibrarySkipsBrokenCandidate(t *testing.T) {
	real, err := FindLibrary("")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "libonnxruntime.so"), []byte("broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(folder, "libonnxruntime.so.1.32.0")
	if err := os.Symlink(real.Path, good); err != nil {
		t.Fatal(err)
	}
	found, err := FindLibrary(folder)
	if err != nil {
		t.Fatal(err)
	}
	if found.Path != good || len(found.Tried) != 2 {
		t.Errorf("found %+v; want %s with two places tried before", found, good)
	}
}

func TestCandidatesOrder(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0", "libonnxruntime.so", "libonnxruntime_providers_shared.so"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("libonnxruntime.so.1.32.0", filepath.Join(folder, "libonnxruntime.so.1")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, path := range candidatesIn(folder) {
		got = append(got, filepath.Base(path))
	}
	want := "libonnxruntime.so libonnxruntime.so.1.32.0 libonnxruntime.so.1.9.0"
	if strings.Join(got, " ") != want {
		t.Errorf("candidates %v, want %s", got, want)
	}
}

func TestOlderThan(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"1.9.0", "1.32.0", true}, {"1.32.0", "1.32.0", false}, {"1.32.1", "1.32.0", false}, {"1.32", "1.32.0", false},
		{"2.0.0", "1.32.0", false}, {"", "1.32.0", true}, {"1.31.9", "1.32.0", true}, {"1.33.0-dev", "1.32.0", false},
	} {
		if got := olderThan(test.a, test.b); got != test.want {
			t.Errorf("olderThan(%q, %q) = %v", test.a, test.b, got)
		}
	}
}

// Only binaries of the Go tool look for a library above the working directory.
func TestMadeByGoTool(t *testing.T) {
	for path, want := range map[string]bool{
		"/tmp/go-build123/b001/graphs.test": true, "/tmp/go-build9/b001/exe/glimpse": true, "/home/u/graphs.test": true,
		"/usr/local/bin/glimpse": false, "/home/u/go-tools/glimpse": false,
	} {
		if got := madeByGoTool(path); got != want {
			t.Errorf("madeByGoTool(%q) = %v", path, got)
		}
	}
}

func TestOneLibraryAProcess(t *testing.T) {
	first, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := Open(Options{LibraryPath: fakeLibrary(t, "1.40.0")}); err == nil || !strings.Contains(err.Error(), "already uses") {
		t.Errorf("another library beside the open one: %v", err)
	}
	second, err := Open(Options{LibraryPath: first.LibraryPath()})
	if err != nil {
		t.Fatalf("the same library by name: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

func TestDiagnose(t *testing.T) {
	good := Diagnose("")
	if good.Err != nil || good.Library.Version == "" || len(good.Providers) == 0 || good.Threads < 1 {
		t.Errorf("diagnosis of a machine that works: %+v", good)
	}
	if good.CUDA != nil && !strings.Contains(good.CUDA.Error(), "libonnxruntime_providers_cuda.so") {
		t.Errorf("the diagnosis does not name the CUDA library: %v", good.CUDA)
	}
	for _, want := range []string{good.Library.Path, good.Library.Version, "CPUExecutionProvider", bindingModule, "C API 26", "cpu has"} {
		if !strings.Contains(good.String(), want) {
			t.Errorf("the diagnosis lacks %q:\n%s", want, good)
		}
	}
	bad := Diagnose(fakeLibrary(t, "1.20.1"))
	if bad.Err == nil || !strings.Contains(bad.String(), "1.20.1, too old") {
		t.Errorf("the diagnosis of an old library:\n%s", bad)
	}
}

package graphs

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
)

// requiredAPI is the version of ONNX Runtime's C API that the Go binding (and
// native.h) was written against: ORT_API_VERSION of its header. slots_test.go
// compares them.
const requiredAPI = 26

// minimumVersion is the oldest ONNX Runtime that runs glimpse's graphs:
// GroupQueryAttention got query_seqlens, on which the decoder's packed steps
// stand, in this release. Newer ones keep older C APIs.
const minimumVersion = "1.32.0"

// libraryEnv names the variable that says where the library is.
const libraryEnv = "GLIMPSE_ORT_LIB"

// systemNames are what the system's loader is asked for.
var systemNames = []string{"libonnxruntime.so." + minimumVersion, "libonnxruntime.so.1", "libonnxruntime.so"}

// Library is an ONNX Runtime that was found and fits.
type Library struct {
	Path    string   // absolute; symbolic links as they were found
	Version string   // such as "1.32.0"
	Tried   []string // the places looked at before it, each with what was wrong
}

// LibraryError says that no usable ONNX Runtime was found, and where one was
// looked for.
type LibraryError struct {
	Tried []string // each place with what was wrong
}

func (e *LibraryError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "no usable ONNX Runtime library: glimpse needs release %s or newer (C API %d). Tried:", minimumVersion, requiredAPI)
	for _, place := range e.Tried {
		b.WriteString("\n  " + place)
	}
	fmt.Fprintf(&b, "\nRun `make deps`, or name the library with --ort-lib or %s; `glimpse doctor` shows what is there.", libraryEnv)
	return b.String()
}

// FindLibrary looks for ONNX Runtime's shared library: flag (--ort-lib), else
// GLIMPSE_ORT_LIB; else beside the binary, in lib and .deps/lib of its folder
// and of the folder above; else by name through the system's loader. Binaries
// made by `go test` and `go run` live in a temporary folder, so for them, and
// only them, .deps/lib is also searched from the working directory upwards.
//
// A library that was asked for by name is used or refused, never replaced by
// another. flag and the variable may also name a folder. Every candidate is
// loaded to see its version; the error is a *LibraryError.
func FindLibrary(flag string) (Library, error) {
	search := &librarySearch{seen: make(map[string]bool)}
	if found, ok := search.run(flag); ok {
		return found, nil
	}
	return Library{Tried: search.tried}, &LibraryError{Tried: search.tried}
}

type librarySearch struct {
	tried []string
	seen  map[string]bool
}

func (s *librarySearch) run(flag string) (Library, bool) {
	if flag != "" {
		return s.named("--ort-lib", flag)
	}
	if path := os.Getenv(libraryEnv); path != "" {
		return s.named(libraryEnv, path)
	}
	s.note("%s is not set", libraryEnv)
	for _, folder := range searchFolders() {
		if found, ok := s.folder(folder); ok {
			return found, true
		}
	}
	for _, name := range systemNames {
		if found, ok := s.try(name, name+" (system)"); ok {
			return found, true
		}
	}
	return Library{}, false
}

func (s *librarySearch) note(format string, args ...any) {
	s.tried = append(s.tried, fmt.Sprintf(format, args...))
}

// named tries what the user asked for, a file or a folder that holds one.
func (s *librarySearch) named(source, path string) (Library, bool) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		s.note("%s=%s: %v", source, path, err)
		return Library{}, false
	}
	info, err := os.Stat(absolute)
	if err != nil {
		s.note("%s=%s: %v", source, path, reason(err))
		return Library{}, false
	}
	if info.IsDir() {
		s.note("%s=%s, a folder", source, absolute)
		return s.folder(absolute)
	}
	return s.try(absolute, source+"="+absolute)
}

func (s *librarySearch) folder(folder string) (Library, bool) {
	if s.seen[folder] {
		return Library{}, false
	}
	s.seen[folder] = true
	candidates := candidatesIn(folder)
	if len(candidates) == 0 {
		s.note("%s: no libonnxruntime.so", folder)
	}
	for _, path := range candidates {
		if found, ok := s.try(path, path); ok {
			return found, true
		}
	}
	return Library{}, false
}

// try loads one candidate and notes what is wrong with it.
func (s *librarySearch) try(path, label string) (Library, bool) {
	found, err := probe(path)
	if err != nil {
		s.note("%s: %v", label, err)
		return Library{}, false
	}
	found.Tried = s.tried
	return found, true
}

// probe loads the library at path far enough to know that it fits. It stays
// loaded only while this runs, unless the process already uses it.
func probe(path string) (Library, error) {
	lib, err := openLibrary(path)
	if err != nil {
		return Library{}, loadError(path, err)
	}
	defer lib.close()
	version := lib.version()
	if olderThan(version, minimumVersion) {
		return Library{}, fmt.Errorf("is ONNX Runtime %s, too old: %s or newer is needed", version, minimumVersion)
	}
	if _, ok := lib.api(requiredAPI); !ok {
		return Library{}, fmt.Errorf("is ONNX Runtime %s, which no longer offers C API %d: use %s", version, requiredAPI, minimumVersion)
	}
	if !filepath.IsAbs(path) {
		path = lib.path()
	}
	return Library{Path: path, Version: version}, nil
}

// loadError is the loader's reason without the path that comes before it. For a
// library of another architecture the loader says "no such file", so the file's
// header is asked.
func loadError(path string, err error) error {
	if file, elfErr := elf.Open(path); elfErr == nil {
		defer file.Close()
		if want := elfMachines[runtime.GOARCH]; want != 0 && file.Machine != want {
			return fmt.Errorf("is built for %v, and this machine is %v", file.Machine, want)
		}
	}
	return errors.New(strings.TrimPrefix(err.Error(), path+": "))
}

// elfMachines names the architectures that ONNX Runtime is packaged for.
var elfMachines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// reason is an error without the path that the caller already wrote.
func reason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// candidatesIn lists the libraries of a folder: the plain name first, then
// numbered ones, newest first, each file once.
func candidatesIn(folder string) []string {
	names, _ := filepath.Glob(filepath.Join(escapeGlob(folder), "libonnxruntime.so*"))
	sort.Slice(names, func(i, j int) bool {
		a, b := suffixVersion(names[i]), suffixVersion(names[j])
		if a == "" || b == "" {
			return a == "" && b != ""
		}
		return olderThan(b, a)
	})
	seen := make(map[string]bool)
	var unique []string
	for _, name := range names {
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			real = name
		}
		if info, err := os.Stat(real); err == nil && info.IsDir() || seen[real] {
			continue
		}
		seen[real] = true
		unique = append(unique, name)
	}
	return unique
}

// suffixVersion is what follows libonnxruntime.so. in a file's name.
func suffixVersion(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(filepath.Base(path), "libonnxruntime.so"), ".")
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// searchFolders lists the folders to look into, in order.
func searchFolders() []string {
	var folders []string
	if executable, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(executable); err == nil {
			executable = real
		}
		folder := filepath.Dir(executable)
		above := filepath.Dir(folder)
		folders = append(folders, folder, filepath.Join(folder, "lib"), filepath.Join(folder, ".deps", "lib"),
			filepath.Join(above, "lib"), filepath.Join(above, ".deps", "lib"))
		// Loading code from wherever a program happens to be started would let any
		// unpacked archive run its own, so this is for binaries of the Go tool alone.
		if !madeByGoTool(executable) {
			return folders
		}
	}
	working, err := os.Getwd()
	for err == nil {
		folders = append(folders, filepath.Join(working, ".deps", "lib"))
		above := filepath.Dir(working)
		if above == working {
			break
		}
		working = above
	}
	return folders
}

// madeByGoTool tells binaries of `go test` and `go run` from installed ones.
func madeByGoTool(executable string) bool {
	if strings.HasSuffix(executable, ".test") {
		return true
	}
	for part := range strings.SplitSeq(filepath.ToSlash(executable), "/") {
		if strings.HasPrefix(part, "go-build") {
			return true
		}
	}
	return false
}

// olderThan compares dotted release numbers; a missing or unreadable part is 0.
func olderThan(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(x), len(y)) {
		m, n := versionPart(x, i), versionPart(y, i)
		if m != n {
			return m < n
		}
	}
	return false
}

func versionPart(parts []string, i int) int {
	if i >= len(parts) {
		return 0
	}
	digits := strings.TrimRightFunc(parts[i], func(r rune) bool { return r < '0' || r > '9' })
	n, _ := strconv.Atoi(digits)
	return n
}

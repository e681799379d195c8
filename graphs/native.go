package graphs

// The Go face of native.c: C types and unsafe pointers stay in this file and in
// the small calls that tensor.go, session.go and step.go make through it.

// #cgo LDFLAGS: -ldl
// #include <stdlib.h>
// #include "native.h"
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"unsafe"
)

// maxRank is the most dimensions a tensor may have.
const maxRank = C.GL_MAX_RANK

// api is ONNX Runtime's function table.
type api struct{ table *unsafe.Pointer }

// nativeError takes over a message that native.c allocated; nil stays nil.
func nativeError(message *C.char) error {
	if message == nil {
		return nil
	}
	defer C.free(unsafe.Pointer(message))
	return errors.New(strings.TrimSpace(C.GoString(message)))
}

// library is a shared library that was loaded and proved to be ONNX Runtime.
type library struct{ c C.gl_library }

// openLibrary loads path (or, without a slash, a name that the system's loader
// searches). The error is the loader's reason.
func openLibrary(path string) (*library, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	lib := &library{}
	if err := nativeError(C.gl_library_open(&lib.c, name)); err != nil {
		return nil, err
	}
	return lib, nil
}

func (l *library) version() string { return C.GoString(l.c.version) }

// path is the file the loader found.
func (l *library) path() string {
	name := C.gl_library_path(&l.c)
	if name == nil {
		return ""
	}
	defer C.free(unsafe.Pointer(name))
	return C.GoString(name)
}

// api asks for a version of the C API. A library that lacks it writes a line to
// stderr, so callers compare release numbers first.
func (l *library) api(version uint32) (api, bool) {
	if C.gl_library_api(&l.c, C.uint32_t(version)) == 0 {
		return api{}, false
	}
	return api{(*unsafe.Pointer)(unsafe.Pointer(l.c.api))}, true
}

func (l *library) close() { C.gl_library_close(&l.c) }

// providers lists the execution providers compiled into the library.
func (a api) providers() ([]string, error) {
	var names **C.char
	var count C.int
	if err := nativeError(C.gl_providers(a.table, &names, &count)); err != nil {
		return nil, fmt.Errorf("list execution providers: %w", err)
	}
	defer C.gl_providers_free(a.table, names, count)
	list := make([]string, 0, int(count))
	for _, name := range unsafe.Slice(names, int(count)) {
		list = append(list, C.GoString(name))
	}
	return list, nil
}

// createEnv makes the process's environment with its messages sent to logSink.
// The binding's own environment call then finds it and shares it.
func (a api) createEnv(severity int) (unsafe.Pointer, error) {
	var env unsafe.Pointer
	err := nativeError(C.gl_env_create(a.table, C.int(severity), &env))
	return env, err
}

func (a api) releaseEnv(env unsafe.Pointer) { C.gl_env_release(a.table, env) }

func (a api) createMemoryInfo() (unsafe.Pointer, error) {
	var info unsafe.Pointer
	err := nativeError(C.gl_memory_info_create(a.table, &info))
	return info, err
}

// createPlaceInfo describes the memory of a device: allocator name and number.
func (a api) createPlaceInfo(name string, id int) (unsafe.Pointer, error) {
	allocator := C.CString(name)
	defer C.free(unsafe.Pointer(allocator))
	var info unsafe.Pointer
	err := nativeError(C.gl_place_info_create(a.table, allocator, C.int(id), &info))
	return info, err
}

func (a api) releaseMemoryInfo(info unsafe.Pointer) { C.gl_memory_info_release(a.table, info) }

// value is a native tensor. It is in C memory with its shape, so that making it
// anew (Reshape runs in the decode loop) passes no Go memory.
type value struct{ c *C.gl_value }

func newValue() value {
	return value{(*C.gl_value)(C.calloc(1, C.size_t(unsafe.Sizeof(C.gl_value{}))))}
}

// make builds the native tensor over data, which outlives it and is not Go's.
// On failure the value keeps the tensor it had.
func (v value) make(a api, info, data unsafe.Pointer, bytes int, shape []int64, dtype DType) error {
	for i, d := range shape {
		v.c.dims[i] = C.int64_t(d)
	}
	return nativeError(C.gl_value_make(a.table, info, v.c, data, C.size_t(bytes), C.size_t(len(shape)), C.int(dtype.native())))
}

func (v value) pointer() unsafe.Pointer { return v.c.value }

func (v value) free(a api) { C.gl_value_free(a.table, v.c) }

// ports lists a session's inputs or outputs in the order of the graph.
func (a api) ports(session unsafe.Pointer, output bool) ([]Port, error) {
	var direction C.int
	kind := "input"
	if output {
		direction, kind = 1, "output"
	}
	var count C.size_t
	if err := nativeError(C.gl_session_count(a.table, session, direction, &count)); err != nil {
		return nil, fmt.Errorf("count %ss: %w", kind, err)
	}
	ports := make([]Port, 0, int(count))
	for i := range int(count) {
		port, err := a.port(session, direction, i)
		if err != nil {
			return nil, fmt.Errorf("%s %d: %w", kind, i, err)
		}
		ports = append(ports, port)
	}
	return ports, nil
}

func (a api) port(session unsafe.Pointer, direction C.int, index int) (Port, error) {
	var c C.gl_port
	defer C.gl_port_free(&c)
	if err := nativeError(C.gl_session_port(a.table, session, direction, C.size_t(index), &c)); err != nil {
		return Port{}, err
	}
	port := Port{Name: C.GoString(c.name)}
	if c.rank < 0 {
		return Port{}, fmt.Errorf("%q is not a tensor", port.Name)
	}
	if c.rank > maxRank {
		return Port{}, fmt.Errorf("%q has %d dimensions; at most %d are supported", port.Name, int64(c.rank), maxRank)
	}
	var ok bool
	if port.DType, ok = dtypeOfNative(int(c.dtype)); !ok {
		return Port{}, fmt.Errorf("%q has ONNX element type %d, which is not supported", port.Name, int(c.dtype))
	}
	port.Shape = make([]int64, int(c.rank))
	port.Symbols = make([]string, int(c.rank))
	for i := range port.Shape {
		port.Shape[i] = int64(c.dims[i])
		port.Symbols[i] = C.GoString(c.symbols[i])
	}
	return port, nil
}

// arguments are the native argument lists of one run, in C memory: a run passes
// only pointers to C memory, so it copies and pins nothing.
type arguments struct {
	inputNames, outputNames   []*C.char
	inputValues, outputValues []unsafe.Pointer
}

func newArguments(inputs, outputs []string) *arguments {
	a := &arguments{}
	a.inputNames, a.inputValues = nativeNames(inputs)
	a.outputNames, a.outputValues = nativeNames(outputs)
	return a
}

func nativeNames(names []string) ([]*C.char, []unsafe.Pointer) {
	// One more than needed, so that an empty list has an address too.
	n := len(names) + 1
	pointers := unsafe.Slice((**C.char)(C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof(uintptr(0))))), n)
	values := unsafe.Slice((*unsafe.Pointer)(C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof(uintptr(0))))), n)
	for i, name := range names {
		pointers[i] = C.CString(name)
	}
	return pointers, values
}

func (a *arguments) free() {
	for _, names := range [][]*C.char{a.inputNames, a.outputNames} {
		for _, name := range names {
			C.free(unsafe.Pointer(name))
		}
		if len(names) > 0 {
			C.free(unsafe.Pointer(&names[0]))
		}
	}
	for _, values := range [][]unsafe.Pointer{a.inputValues, a.outputValues} {
		if len(values) > 0 {
			C.free(unsafe.Pointer(&values[0]))
		}
	}
	*a = arguments{}
}

// run executes the session; every value of args is set.
func (a api) run(session, options unsafe.Pointer, args *arguments) error {
	return nativeError(C.gl_session_run(a.table, session, options,
		&args.inputNames[0], &args.inputValues[0], C.size_t(len(args.inputValues)-1),
		&args.outputNames[0], &args.outputValues[0], C.size_t(len(args.outputValues)-1)))
}

// cancelLoad makes a session that is being created from options give up.
func (a api) cancelLoad(options unsafe.Pointer) error {
	return nativeError(C.gl_cancel_load(a.table, options))
}

// keepSignals runs f and puts back the signal handlers that f changed, which it
// returns. The thread stays the same, as the handlers are the process's.
func keepSignals(f func()) []int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	saved := C.gl_signals_save()
	f()
	changed := uint64(C.gl_signals_restore(saved))
	var signals []int
	for s := 1; s <= 64; s++ {
		if changed&(1<<(s-1)) != 0 {
			signals = append(signals, s)
		}
	}
	return signals
}

// pointerIn reads a native pointer that the binding keeps in an unexported
// field, following the path of field names. The names are checked, so another
// release of the binding gives an error here and never a wild pointer.
func pointerIn(value any, path ...string) (unsafe.Pointer, error) {
	v := reflect.ValueOf(value)
	for _, name := range path {
		if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
			return nil, fmt.Errorf("the ONNX Runtime binding changed: %T has no %s", value, strings.Join(path, "."))
		}
		v = v.Elem().FieldByName(name)
	}
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil, fmt.Errorf("the ONNX Runtime binding changed: %T has no pointer %s", value, strings.Join(path, "."))
	}
	return v.UnsafePointer(), nil
}

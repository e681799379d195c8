package tokenizer

/*
#cgo CFLAGS: -I${SRCDIR}/native
#cgo LDFLAGS: -L${SRCDIR}/../.deps/lib -ltokenizers -ldl -lm
#include "glimpse_native.h"
*/
import "C"

import (
	"runtime"
	"unsafe"
)

// This file is the only one that calls our own C functions (native/glimpse_native.h). Bytes go over as pointer and
// length; results are copied into Go memory and freed at once.

// nativeStatus is the outcome of a native call.
type nativeStatus int32

const (
	nativeOK     nativeStatus = 0
	nativeFailed nativeStatus = 1
	nativeRaised nativeStatus = 2 // the template called raise_exception
)

// takeResult copies a result's text and frees the result.
func takeResult(result *C.glimpse_result) (string, nativeStatus) {
	text := string(unsafe.Slice((*byte)(result.data), int(result.len)))
	status := nativeStatus(result.status)
	C.glimpse_result_free(result)
	return text, status
}

// nativeBytes gives the address that C wants for data; data must be kept alive over the call.
func nativeBytes(data []byte) (*C.uint8_t, C.size_t) {
	return (*C.uint8_t)(unsafe.SliceData(data)), C.size_t(len(data))
}

// inspectTokenizer describes the tokens of a tokenizer.json, or fails where the binding would end the process.
func inspectTokenizer(data []byte) (string, nativeStatus) {
	var result C.glimpse_result
	pointer, length := nativeBytes(data)
	C.glimpse_tokenizer_inspect(pointer, length, &result)
	runtime.KeepAlive(data)
	return takeResult(&result)
}

// nativeTemplate is a compiled template in native memory; whoever holds it calls free once.
type nativeTemplate struct{ handle *C.glimpse_template }

func newNativeTemplate(source []byte) (nativeTemplate, string, nativeStatus) {
	var result C.glimpse_result
	pointer, length := nativeBytes(source)
	handle := C.glimpse_template_new(pointer, length, &result)
	runtime.KeepAlive(source)
	text, status := takeResult(&result)
	return nativeTemplate{handle}, text, status
}

func (t nativeTemplate) render(context []byte, maxOutput int) (string, nativeStatus) {
	var result C.glimpse_result
	pointer, length := nativeBytes(context)
	C.glimpse_template_render(t.handle, pointer, length, C.size_t(maxOutput), &result)
	runtime.KeepAlive(context)
	return takeResult(&result)
}

func (t nativeTemplate) free() { C.glimpse_template_free(t.handle) }

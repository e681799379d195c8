package tokenizer

// #include "glimpse_native.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// The C functions of constrained decoding, under the rules of native.go.

// nativeGrammars is a model's tokens in native memory; whoever holds it calls free once.
type nativeGrammars struct{ handle *C.glimpse_grammars }

func newNativeGrammars(tokenizer []byte, width int, eos []int32) (nativeGrammars, string, nativeStatus) {
	var result C.glimpse_result
	pointer, length := nativeBytes(tokenizer)
	ids := (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(eos)))
	handle := C.glimpse_grammars_new(pointer, length, C.size_t(width), ids, C.size_t(len(eos)), &result)
	runtime.KeepAlive(tokenizer)
	runtime.KeepAlive(eos)
	text, status := takeResult(&result)
	return nativeGrammars{handle}, text, status
}

func (g nativeGrammars) free() { C.glimpse_grammars_free(g.handle) }

// nativeConstraint is one answer's state in native memory; whoever holds it calls free once.
type nativeConstraint struct{ handle *C.glimpse_constraint }

func (g nativeGrammars) compile(schema []byte, lenient bool) (nativeConstraint, string, nativeStatus) {
	var result C.glimpse_result
	pointer, length := nativeBytes(schema)
	handle := C.glimpse_constraint_new(g.handle, pointer, length, C.bool(lenient), &result)
	runtime.KeepAlive(schema)
	text, status := takeResult(&result)
	return nativeConstraint{handle}, text, status
}

func (c nativeConstraint) fill(mask []uint32) (string, nativeStatus) {
	var result C.glimpse_result
	C.glimpse_constraint_mask(c.handle, (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(mask))), C.size_t(len(mask)), &result)
	runtime.KeepAlive(mask)
	return takeResult(&result)
}

func (c nativeConstraint) commit(id int32) (bool, string, nativeStatus) {
	var result C.glimpse_result
	complete := C.glimpse_constraint_commit(c.handle, C.uint32_t(id), &result)
	text, status := takeResult(&result)
	return bool(complete), text, status
}

func (c nativeConstraint) free() { C.glimpse_constraint_free(c.handle) }

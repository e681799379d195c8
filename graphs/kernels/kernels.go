// Package kernels computes a few of ONNX Runtime's operators on the CPU faster than ONNX Runtime does. It offers them under the
// operators' own names, so graphs stay ordinary files that run anywhere: a session that they are registered with finds
// them before ONNX Runtime's own kernels.
//
//   - MatMulNBits (accuracy level 4; 4 and 8 bits) reads weights where they lie in the mapped file, so loading packs nothing, and
//     multiplies several rows with AMX where there is one.
//   - GroupQueryAttention (causal, float32) reads the cache once for all heads that share it, on AMX.
//
// They need x86-64 with AVX-512 VNNI, attention AMX too; elsewhere nothing is registered.
package kernels

// #cgo CFLAGS: -O3 -Wall -Wextra
// #cgo LDFLAGS: -lm -lpthread
// #include <stdlib.h>
// #include "ops.h"
import "C"

import (
	"errors"
	"sync"
	"unsafe"
)

// Processor is what of the processor the kernels can use.
type Processor int

// The kernels' needs.
const (
	VNNI Processor = C.GK_HAS_VNNI // AVX-512 with VNNI: MatMulNBits
	AMX  Processor = C.GK_HAS_AMX  // AMX with int8 and bfloat16: everything
)

// This is the processor at hand. Asking the first time asks the system for leave to use tile registers.
var This = sync.OnceValue(func() Processor { return Processor(C.gk_processor()) })

// String names what is usable, "none" where nothing is.
func (p Processor) String() string {
	switch {
	case p&AMX != 0:
		return "avx512-vnni, amx"
	case p&VNNI != 0:
		return "avx512-vnni"
	}
	return "none"
}

// Set is operators registered with session options. It must outlive the sessions made from them.
type Set struct {
	api     unsafe.Pointer
	ops     *C.gk_ops
	packing sync.WaitGroup
}

// Register offers the processor's kernels to sessions that are made from options (an OrtSessionOptions) of the ONNX Runtime whose
// function table is api. Without any kernel for the processor it returns nil. A session whose
// graph has a node of these operators that wants more than the kernels do cannot be made with them.
func Register(api, options unsafe.Pointer, processor Processor, pack bool) (*Set, error) {
	if processor == 0 {
		return nil, nil
	}
	s := &Set{api: api}
	packed := C.int(0)
	if pack {
		packed = 1
	}
	if message := C.gk_ops_register((*unsafe.Pointer)(api), options, C.int(processor), packed, &s.ops); message != nil {
		defer C.free(unsafe.Pointer(message))
		return nil, errors.New("register kernels: " + C.GoString(message))
	}
	return s, nil
}

// Pack lays the weights of MatMulNBits out in large pages, in the order in which they are read: a fifth to a third of a step's time.
// It works beside runs, a layer at a time, on the thread that run gives it; results do not change. Sets registered without pack, and
// systems without large pages, have nothing to do.
func (s *Set) Pack(run func(func())) {
	if s == nil {
		return
	}
	s.packing.Add(1)
	go func() {
		defer s.packing.Done()
		run(func() { C.gk_ops_pack(s.ops) })
	}()
}

// Wait returns when Pack is done.
func (s *Set) Wait() {
	if s != nil {
		s.packing.Wait()
	}
}

// Stop ends Pack. It comes before the sessions of the set are closed.
func (s *Set) Stop() {
	if s != nil && s.ops != nil {
		C.gk_ops_stop(s.ops)
		s.packing.Wait()
	}
}

// Close frees the operators. Closing again does nothing.
func (s *Set) Close() error {
	if s != nil && s.ops != nil {
		C.gk_ops_free((*unsafe.Pointer)(s.api), s.ops)
		s.ops = nil
	}
	return nil
}

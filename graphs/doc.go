// Package graphs runs ONNX graphs with ONNX Runtime. It is the only package
// that knows the binding; everything above it sees sessions, tensors and the
// KV arena.
//
// A program opens one Runtime, loads sessions, allocates every tensor (inputs
// and outputs) itself and runs:
//
//	rt, err := graphs.Open(graphs.Options{Logger: logger})
//	session, err := rt.Load(ctx, "vision.onnx", graphs.SessionOptions{})
//	err = session.Run(ctx, in, out)
//
// A loop that runs the same ports again and again uses a Step, which keeps the
// native argument lists: a run of a Step makes no garbage.
//
// What must stay true here:
//
//   - Outputs are always allocated by the caller. The binding copies outputs
//     that ONNX Runtime allocated with the element count taken as bytes, which
//     halves fp16 and bf16 data; this package has no code path that asks for
//     such an output.
//   - Tensor memory comes from the operating system or from a device
//     (DeviceMemory), which no other code here touches, and never from the Go heap,
//     so its address is stable for as long as a native value points at it.
//   - Whatever is native has one owner and an idempotent Close. Close during a
//     run is safe: the memory goes when the run ends. Slices handed out by a
//     tensor die with it.
//   - Everything a caller can get wrong (names, dtypes, shapes) is checked in Go
//     and named before native code sees it.
//
// The binding (github.com/yalue/onnxruntime_go) creates the environment, the
// session options and the sessions. native.c reaches the same library through
// ONNX Runtime's own function table for what the binding does not offer: scalar
// and empty tensors, runs without garbage that can be cancelled, the ports of a
// session that is already loaded, log messages, the version of a library before
// it is used.
//
// Sessions on the CPU get operators of package kernels, which computes some of ONNX
// Runtime's faster on the processors that it fits.
//
// The package supports Linux.
package graphs

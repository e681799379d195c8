// Package checkpoint reads the weights of released checkpoints: safetensors files, torch zip files (.bin, .pth), both
// alone or as shards with an index, and lists of tensors without weights (inventories). It also writes safetensors, and
// makes checkpoints of a given shape with random weights for benchmarks.
//
// # Memory
//
// Nothing is read before it is asked for, and nothing is mapped. Tensors are read with pread through a bounded buffer
// that is widened into the caller's slice, because
//
//   - pages of a mapped file count in the process's resident size until they are given back one tensor at a time; what
//     pread leaves in the kernel's cache never does. A pass over 8 GB of bf16 peaked at 10 MB with pread, at 8 GB with a map,
//     and at the largest tensor with a map and MADV_DONTNEED;
//   - it is not slower: widening is the bottleneck of both, see BenchmarkReadFloat32;
//   - a file that is truncated while it is mapped kills the process with SIGBUS. With pread it is an error that names the
//     file.
//
// The exception are tensors that a torch file stores as a strided view (a transposed matrix) or in the other byte order:
// these are gathered once into a buffer of the tensor's size, of which two are kept at most; Release drops it.
//
// # Trust
//
// Files come from strangers. Every length is compared with the size of the file before anything is allocated for it,
// pickles are interpreted by a machine of our own that knows a few opcodes and a few classes and calls nothing, and a
// broken file is an error (see Problems) that names each tensor that is wrong.
package checkpoint

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
//     pread leaves in the kernel's cache never does. Measured over the 4.4 GB of bf16 of a Qwen2-VL-2B, widened in pieces
//     of 1 MB: 9 MB at the peak with pread, 630 MB with a map and MADV_DONTNEED behind each tensor, 4.3 GB with a map;
//   - it is not slower: 1.0 GB/s, 0.8 GB/s and 0.9 GB/s in the same order (medians of six passes on one core of a busy
//     machine; the page faults of a map cost what the copy of pread does);
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

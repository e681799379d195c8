package graphs

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size from which dense memory asks for huge pages.
const hugePage = 2 << 20

// filling says how memory will be written, which decides the size of its pages.
type filling uint8

const (
	// dense memory is written from end to end: huge pages save faults.
	dense filling = iota
	// sparse memory is written here and there. One token of a KV cache touches
	// every head of every layer, 1 or 2 MiB apart: with huge pages the first token
	// of a 7B model's slot of 4,096 would make all its 4 GiB resident, where 4 KiB
	// pages take 8 MiB. Attention over a full cache is about 10 % slower without.
	sparse
)

// block is anonymous memory from the operating system, or memory of a device,
// shared by the tensors that view it and given back with the last of them.
// Pages of the system read as zero and become resident when first written.
type block struct {
	device DeviceMemory // nil for the operating system's
	data   []byte       // nil on a device
	start  unsafe.Pointer
	refs   atomic.Int64
}

// newDeviceBlock allocates on a device. The caller holds the first reference.
func newDeviceBlock(device DeviceMemory, bytes int64) (*block, error) {
	start, err := device.Allocate(max(bytes, 1))
	if err != nil {
		return nil, err
	}
	b := &block{device: device, start: start}
	b.refs.Store(1)
	return b, nil
}

// newBlock maps at least one byte, so that empty tensors have an address too.
// The caller holds the first reference.
func newBlock(bytes int64, filling filling) (*block, error) {
	if bytes < 0 || bytes > math.MaxInt {
		return nil, fmt.Errorf("%d bytes is no possible size", bytes)
	}
	data, err := unix.Mmap(-1, 0, int(max(bytes, 1)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("the system refused %s: %w", formatBytes(bytes), err)
	}
	// Advice: kernels without huge pages refuse it, and nothing depends on it.
	switch {
	case filling == sparse:
		_ = unix.Madvise(data, unix.MADV_NOHUGEPAGE)
	case bytes >= hugePage:
		_ = unix.Madvise(data, unix.MADV_HUGEPAGE)
	}
	b := &block{data: data, start: unsafe.Pointer(&data[0])}
	b.refs.Store(1)
	return b, nil
}

func (b *block) retain() *block {
	b.refs.Add(1)
	return b
}

func (b *block) release() error {
	if b.refs.Add(-1) != 0 {
		return nil
	}
	data, start := b.data, b.start
	b.data, b.start = nil, nil
	if b.device != nil {
		return b.device.Free(start)
	}
	return unix.Munmap(data)
}

// shapeBytes is the size of a tensor, or what is wrong with its shape.
func shapeBytes(dtype DType, shape []int64) (int64, error) {
	if !dtype.valid() {
		return 0, fmt.Errorf("%v is no element type", dtype)
	}
	if len(shape) > maxRank {
		return 0, fmt.Errorf("shape %v has %d dimensions; at most %d are supported", slices.Clone(shape), len(shape), maxRank)
	}
	total, overflow := uint64(dtype.Size()), false
	empty := false
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("shape %v has a negative dimension", slices.Clone(shape))
		}
		empty = empty || d == 0
		high, low := bits.Mul64(total, uint64(max(d, 1)))
		overflow = overflow || high != 0
		total = low
	}
	if empty {
		return 0, nil
	}
	if overflow || total > math.MaxInt64 {
		return 0, fmt.Errorf("shape %v of %v has more bytes than an address can name", slices.Clone(shape), dtype)
	}
	return int64(total), nil
}

// formatBytes writes a size for people, with the exact number when it is rounded.
func formatBytes(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB (%d bytes)", float64(n)/(1<<30), n)
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB (%d bytes)", float64(n)/(1<<20), n)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}

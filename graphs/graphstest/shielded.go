package graphstest

import (
	"fmt"
	"sync"
	"unsafe"

	"glimpse/graphs"

	"golang.org/x/sys/unix"
)

// Shielded is the memory of a device that does not exist: the system's memory, which faults on every touch but while a run or a
// copy uses it. ONNX Runtime's CPU provider computes in it. A program that reads or writes a cache without asking ends with a fault,
// as it would get nonsense from a GPU.
type Shielded struct {
	mu     sync.Mutex
	blocks map[unsafe.Pointer][]byte
	inside int // runs and copies
	limit  int64
	used   int64
	copied int64
	runs   int64
}

// NewShielded returns memory of so many bytes.
func NewShielded(limit int64) *Shielded {
	return &Shielded{blocks: map[unsafe.Pointer][]byte{}, limit: limit}
}

// Place says that ONNX Runtime takes the memory for ordinary.
func (s *Shielded) Place() (string, int) { return "Cpu", 0 }

// Allocate maps pages that nobody may touch.
func (s *Shielded) Allocate(bytes int64) (unsafe.Pointer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes < 1 || bytes > s.limit-s.used {
		return nil, fmt.Errorf("%w: the shielded device has %d bytes, and %d are asked for", graphs.ErrOutOfMemory, s.limit-s.used, bytes)
	}
	protection := unix.PROT_NONE
	if s.inside > 0 {
		protection = unix.PROT_READ | unix.PROT_WRITE
	}
	data, err := unix.Mmap(-1, 0, int(bytes), protection, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d shielded bytes: %w", bytes, err)
	}
	s.used += bytes
	start := unsafe.Pointer(unsafe.SliceData(data))
	s.blocks[start] = data
	return start, nil
}

// Free unmaps what Allocate returned.
func (s *Shielded) Free(memory unsafe.Pointer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.blocks[memory]
	if !ok {
		return fmt.Errorf("free %p: it is no memory of this device, or was freed before", memory)
	}
	delete(s.blocks, memory)
	s.used -= int64(len(data))
	return unix.Munmap(data)
}

// Copy copies with the memory open.
func (s *Shielded) Copy(copies []graphs.BlockCopy) error {
	s.open(1)
	defer s.open(-1)
	for _, c := range copies {
		c.InOrdinaryMemory()
		s.mu.Lock()
		s.copied += c.Width * c.Rows
		s.mu.Unlock()
	}
	return nil
}

// Available is what the limit leaves.
func (s *Shielded) Available() (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit - s.used, nil
}

// Enter opens the memory for a run.
func (s *Shielded) Enter() {
	s.mu.Lock()
	s.runs++
	s.mu.Unlock()
	s.open(1)
}

// Leave closes it behind the last.
func (s *Shielded) Leave() { s.open(-1) }

// Used is how many bytes are allocated, Copied how many were copied, and Entered how often a run was given a tensor of the memory.
func (s *Shielded) Used() int64    { return s.read(&s.used) }
func (s *Shielded) Copied() int64  { return s.read(&s.copied) }
func (s *Shielded) Entered() int64 { return s.read(&s.runs) }

func (s *Shielded) read(v *int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *v
}

// open counts those who may touch the memory, and lets them when they are the first, and nobody when they were the last.
func (s *Shielded) open(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.inside
	s.inside += by
	protection := unix.PROT_READ | unix.PROT_WRITE
	switch {
	case before == 0 && s.inside > 0:
	case s.inside == 0:
		protection = unix.PROT_NONE
	default:
		return
	}
	for _, data := range s.blocks {
		if err := unix.Mprotect(data, protection); err != nil {
			panic(fmt.Sprintf("graphstest: protect the shielded memory: %v", err))
		}
	}
}

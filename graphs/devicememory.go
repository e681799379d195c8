package graphs

import (
	"fmt"
	"unsafe"
)

// DeviceMemory is the memory of a device, whose contents only the device and Copy may touch: a KV cache lies there so that it does
// not cross the bus at every step. What has no DeviceMemory is ordinary memory.
//
// Implementations are safe for many goroutines. graphstest.Memory holds what each must do.
type DeviceMemory interface {
	// Place is what ONNX Runtime calls the memory: its allocator's name ("Cuda") and the device's number.
	Place() (name string, id int)
	// Allocate reserves at least one byte, aligned to 256, and sets all of them to zero. The error wraps ErrOutOfMemory where the
	// device has no room.
	Allocate(bytes int64) (unsafe.Pointer, error)
	// Free gives back what Allocate returned. Nothing may use it any more.
	Free(memory unsafe.Pointer) error
	// Copy makes all the copies, and returns when they are done and a run that starts afterwards sees them. Either side of a copy
	// may be ordinary memory. Copies of one call do not overlap.
	Copy(copies []BlockCopy) error
	// Available is how many bytes could be allocated now.
	Available() (int64, error)
	// Enter and Leave stand around every run that uses the memory.
	Enter()
	Leave()
}

// BlockCopy copies Rows pieces of Width bytes that lie ToPitch and FromPitch bytes apart.
type BlockCopy struct {
	To, From           unsafe.Pointer
	ToPitch, FromPitch int64
	Width, Rows        int64
}

// copyBlocks makes copies between blocks of which at most one is on a device, or both are on the same.
func copyBlocks(to, from *block, copies []BlockCopy) error {
	device := to.device
	if device == nil {
		device = from.device
	}
	if device != nil {
		return device.Copy(copies)
	}
	for _, c := range copies {
		c.InOrdinaryMemory()
	}
	return nil
}

// InOrdinaryMemory makes the copy where both sides are memory that the program may touch.
func (c BlockCopy) InOrdinaryMemory() {
	for row := range c.Rows {
		to := unsafe.Slice((*byte)(unsafe.Add(c.To, row*c.ToPitch)), c.Width)
		copy(to, unsafe.Slice((*byte)(unsafe.Add(c.From, row*c.FromPitch)), c.Width))
	}
}

// placeInfo is ONNX Runtime's description of a memory.
func (e *environment) placeInfo(device DeviceMemory) (unsafe.Pointer, error) {
	if device == nil {
		return e.memory, nil
	}
	name, id := device.Place()
	e.devices.Lock()
	defer e.devices.Unlock()
	key := devicePlace{name, id}
	if info := e.places[key]; info != nil {
		return info, nil
	}
	info, err := e.api.createPlaceInfo(name, id)
	if err != nil {
		return nil, fmt.Errorf("memory %s of device %d: %w", name, id, err)
	}
	if e.places == nil {
		e.places = map[devicePlace]unsafe.Pointer{}
	}
	e.places[key] = info
	return info, nil
}

type devicePlace struct {
	name string
	id   int
}

// Memory is the memory that the session's graph computes in; nil is ordinary memory. The error says why a device's memory cannot
// be used from here.
func (s *Session) Memory() (DeviceMemory, error) {
	if s.runtime.device != nil {
		return s.runtime.device, nil
	}
	if s.device != CUDA {
		return nil, nil
	}
	memory, err := s.env.cudaMemory(s.deviceID)
	if err != nil {
		return nil, fmt.Errorf("memory of GPU %d: %w", s.deviceID, err)
	}
	return memory, nil
}

// NewTensorIn is NewTensor in a device's memory; nil is ordinary memory. A tensor on a device has no slices: Read and Write copy.
func (r *Runtime) NewTensorIn(device DeviceMemory, dtype DType, shape ...int64) (*Tensor, error) {
	if device == nil {
		return r.NewTensor(dtype, shape...)
	}
	bytes, err := shapeBytes(dtype, shape)
	if err != nil {
		return nil, fmt.Errorf("allocate a tensor: %w", err)
	}
	memory, err := newDeviceBlock(device, bytes)
	if err != nil {
		return nil, fmt.Errorf("allocate a %v tensor %v: %w", dtype, append([]int64(nil), shape...), err)
	}
	defer memory.release()
	return r.viewTensor(memory, 0, bytes, dtype, shape)
}

// OnDevice reports whether the tensor lies in a device's memory.
func (t *Tensor) OnDevice() bool { return t.memory.device != nil }

// Write copies the bytes of the current shape, little-endian, into the tensor, wherever it lies.
func (t *Tensor) Write(src []byte) error { return t.transfer("write", src, true) }

// Read copies the bytes of the current shape out of the tensor, wherever it lies.
func (t *Tensor) Read(dst []byte) error { return t.transfer("read", dst, false) }

func (t *Tensor) transfer(what string, host []byte, in bool) error {
	if err := t.acquire(); err != nil {
		return fmt.Errorf("%s a tensor: %w", what, err)
	}
	defer t.release()
	if len(host) != t.bytes {
		return fmt.Errorf("%s %v: %d bytes given, it has %d", what, t, len(host), t.bytes)
	}
	if len(host) == 0 {
		return nil
	}
	ordinary := &block{}
	c := BlockCopy{To: t.start, From: unsafe.Pointer(&host[0]), Width: int64(len(host)), Rows: 1}
	if in {
		return copyBlocks(t.memory, ordinary, []BlockCopy{c})
	}
	c.To, c.From = c.From, c.To
	return copyBlocks(ordinary, t.memory, []BlockCopy{c})
}

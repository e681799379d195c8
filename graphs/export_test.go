package graphs

// Pinned tells whether a run is using the tensor.
func Pinned(t *Tensor) bool { return t.state.Load() > 0 }

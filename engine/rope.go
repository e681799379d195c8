// The rotary tables as tensors.

package engine

import (
	"errors"
	"fmt"

	"glimpse/graphs"
	"glimpse/manifest"
	"glimpse/preprocess"
)

// ropeDynamic is the scaling whose tables depend on the length of the sequence.
const ropeDynamic = "dynamic"

// Tables of layers with a sliding window, where they have their own.
const (
	ropeCosLocal = "rope_cos_local"
	ropeSinLocal = "rope_sin_local"
)

// ropeTables makes cos and sin tables [positions, rope_dim/2]. length is that of the sequence, for dynamic NTK scaling;
// 0 stands for any length within the original context.
func ropeTables(rt *graphs.Runtime, spec manifest.Decoder, positions, length int) (cos, sin *graphs.Tensor, err error) {
	c, s, err := preprocess.RopeTables(*spec.Rope, positions, length)
	if err != nil {
		return nil, nil, fmt.Errorf("rotary tables: %w", err)
	}
	shape := []int64{int64(positions), int64(spec.Rope.Dim / 2)}
	if cos, err = rt.FromFloat32(c, shape...); err != nil {
		return nil, nil, err
	}
	if sin, err = rt.FromFloat32(s, shape...); err != nil {
		return nil, nil, errors.Join(err, cos.Close())
	}
	return cos, sin, nil
}

// ropeTables makes tables where the decoder's steps read them.
func (d *decoder) ropeTables(spec manifest.Decoder, positions, length int) (cos, sin *graphs.Tensor, err error) {
	c, s, err := ropeTables(d.runtime, spec, positions, length)
	if err != nil || d.memory == nil {
		return c, s, err
	}
	defer func() { err = errors.Join(err, c.Close(), s.Close()) }()
	if cos, err = d.copyToDevice(c); err != nil {
		return nil, nil, err
	}
	if sin, err = d.copyToDevice(s); err != nil {
		return nil, nil, errors.Join(err, cos.Close())
	}
	return cos, sin, nil
}

// copyToDevice copies a tensor to the memory that the steps compute in.
func (d *decoder) copyToDevice(t *graphs.Tensor) (*graphs.Tensor, error) {
	there, err := d.runtime.NewTensorIn(d.memory, t.DType(), t.Shape()...)
	if err == nil {
		err = there.Write(t.Bytes())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("rotary tables: %w", err), there.Close())
	}
	return there, nil
}

// ropeLimit returns the length beyond which tables depend on the length of the sequence, 0 when they never do.
func ropeLimit(spec manifest.Decoder) int {
	if spec.Rope == nil || spec.Rope.Type != ropeDynamic && spec.Rope.Type != manifest.RopePromptNTK {
		return 0
	}
	return spec.Rope.OriginalMaxPositions
}

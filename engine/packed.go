// What a decoder takes for each packed token beside its embedding: rows of rotary tables where positions have three axes,
// and rows of picture features that are added behind its first layers (deepstack).

package engine

import (
	"fmt"
	"slices"

	"glimpse/graphs"
	"glimpse/manifest"
)

// deepstackName is the tensor that picture stages make and the decoder adds behind layer i.
func deepstackName(i int) string { return fmt.Sprintf("deepstack_%d", i) }

// deepstackLevels counts them.
func deepstackLevels(m *manifest.Manifest) int {
	if m.Decoder == nil {
		return 0
	}
	n := 0
	for slices.ContainsFunc(m.Components[m.Decoder.Component].Inputs, func(p manifest.Port) bool { return p.Name == deepstackName(n) }) {
		n++
	}
	return n
}

// allocatePacked makes the buffers for steps of up to tokens packed tokens.
func (d *decoder) allocatePacked(tokens int64) (err error) {
	for i := 0; d.hasInput(deepstackName(i)); i++ {
		t, err := d.runtime.NewTensor(graphs.Float32, tokens, int64(d.spec.HiddenSize))
		if err != nil {
			return fmt.Errorf("allocate the decoder's buffers: %w", err)
		}
		d.deepstack = append(d.deepstack, t)
	}
	if d.axes == nil {
		return nil
	}
	for _, to := range []**graphs.Tensor{&d.cos, &d.sin} {
		if *to, err = d.runtime.NewTensor(graphs.Float32, tokens, int64(d.spec.Rope.Dim/2)); err != nil {
			return fmt.Errorf("allocate the decoder's rotary tables: %w", err)
		}
	}
	return nil
}

// layOutPacked writes the rows of the step's tokens.
func (d *decoder) layOutPacked(s *step) error {
	hidden := d.spec.HiddenSize
	for i, t := range d.deepstack {
		if err := t.Reshape(int64(s.tokens), int64(hidden)); err != nil {
			return fmt.Errorf("lay out a step: %w", err)
		}
		rows := t.Float32()
		clear(rows) // nothing is added to text
		for _, r := range s.deep {
			if len(r.levels) != len(d.deepstack) {
				return fmt.Errorf("lay out a step: the pictures have %d levels of features and the decoder takes %d", len(r.levels), len(d.deepstack))
			}
			copy(rows[r.token*hidden:(r.token+1)*hidden], r.levels[i][r.row*hidden:])
		}
	}
	if d.axes == nil {
		return nil
	}
	if len(s.positions) != s.tokens {
		return fmt.Errorf("lay out a step: %d of its %d tokens have positions", len(s.positions), s.tokens)
	}
	half := d.spec.Rope.Dim / 2
	for _, t := range []*graphs.Tensor{d.cos, d.sin} {
		if err := t.Reshape(int64(s.tokens), int64(half)); err != nil {
			return fmt.Errorf("lay out a step: %w", err)
		}
	}
	cos, sin := d.cos.Float32(), d.sin.Float32()
	for i, p := range s.positions {
		d.axes.Row(cos[i*half:(i+1)*half], sin[i*half:(i+1)*half], p)
	}
	return nil
}

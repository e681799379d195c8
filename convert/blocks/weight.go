// Symbolic weights: references to checkpoint tensors with the transforms a layer needs. Building one reads nothing;
// reading one streams any range of its elements, row-major, as float32.

package blocks

import (
	"context"
	"fmt"
	"strings"
)

// Weight is a tensor that a layer uses.
type Weight struct {
	src   source
	shape []int64
}

// source yields elements first, first+1, … of a weight in row-major order.
type source interface {
	read(ctx context.Context, first int64, dst []float32) error
	release() // lets go of the pages it was read from
	String() string
}

// Shape returns the weight's dimensions.
func (w Weight) Shape() []int64 { return w.shape }

// Elements returns the number of the weight's elements.
func (w Weight) Elements() int64 {
	n := int64(1)
	for _, d := range w.shape {
		n *= d
	}
	return n
}

func (w Weight) String() string { return w.src.String() }

// Reshape views the same elements, in the same order, with other dimensions.
func (w Weight) Reshape(shape ...int64) Weight {
	v := Weight{w.src, shape}
	if v.Elements() != w.Elements() {
		panic(fmt.Sprintf("blocks: %s: reshape %v to %v", w, w.shape, shape))
	}
	return v
}

// Rows returns rows lo..hi−1 of the first dimension.
func (w Weight) Rows(lo, hi int64) Weight {
	shape := append([]int64{hi - lo}, w.shape[1:]...)
	stride := w.rowElements()
	return Weight{window{w.src, lo * stride, fmt.Sprintf("%s[%d:%d]", w.src, lo, hi)}, shape}
}

func (w Weight) rowElements() int64 { return w.Elements() / max(w.shape[0], 1) }

type window struct {
	source
	offset int64
	text   string
}

func (s window) read(ctx context.Context, first int64, dst []float32) error {
	return s.source.read(ctx, s.offset+first, dst)
}

func (s window) String() string { return s.text }

// ConcatRows joins weights along their first dimension; the others must agree.
func ConcatRows(parts ...Weight) Weight {
	shape := append([]int64{}, parts[0].shape...)
	joined := concat{}
	for i, p := range parts {
		if i > 0 {
			shape[0] += p.shape[0]
		}
		joined.parts = append(joined.parts, p)
	}
	return Weight{joined, shape}
}

type concat struct{ parts []Weight }

func (s concat) read(ctx context.Context, first int64, dst []float32) error {
	for _, p := range s.parts {
		n := p.Elements()
		if first >= n {
			first -= n
			continue
		}
		take := min(n-first, int64(len(dst)))
		if err := p.src.read(ctx, first, dst[:take]); err != nil {
			return err
		}
		dst, first = dst[take:], 0
		if len(dst) == 0 {
			return nil
		}
	}
	return fmt.Errorf("read past the end of %s", s)
}

func (s concat) release() {
	for _, p := range s.parts {
		p.src.release()
	}
}

func (s concat) String() string {
	names := make([]string, len(s.parts))
	for i, p := range s.parts {
		names[i] = p.String()
	}
	return "rows(" + strings.Join(names, ", ") + ")"
}

// PermuteRows returns the weight whose i-th row is row order[i] of w.
func (w Weight) PermuteRows(text string, order []int64) Weight {
	shape := append([]int64{int64(len(order))}, w.shape[1:]...)
	return Weight{permuted{w.src, w.rowElements(), order, text}, shape}
}

type permuted struct {
	source
	stride int64
	order  []int64
	text   string
}

func (s permuted) read(ctx context.Context, first int64, dst []float32) error {
	for len(dst) > 0 {
		row, within := first/s.stride, first%s.stride
		take := min(s.stride-within, int64(len(dst)))
		if err := s.source.read(ctx, s.order[row]*s.stride+within, dst[:take]); err != nil {
			return err
		}
		dst, first = dst[take:], first+take
	}
	return nil
}

func (s permuted) String() string { return fmt.Sprintf("%s(%s)", s.text, s.source) }

// Transposed returns the [k, n] weight of a [n, k] one. It reads the whole weight for every range, so it is for the few
// small matrices that upstream stores as x @ W.
func (w Weight) Transposed() Weight {
	return Weight{transposed{w.src, w.shape[0], w.shape[1]}, []int64{w.shape[1], w.shape[0]}}
}

type transposed struct {
	source
	rows, cols int64 // of the stored matrix
}

func (s transposed) read(ctx context.Context, first int64, dst []float32) error {
	all := make([]float32, s.rows*s.cols)
	if err := s.source.read(ctx, 0, all); err != nil {
		return err
	}
	for i := range dst {
		r, c := (first+int64(i))/s.rows, (first+int64(i))%s.rows
		dst[i] = all[c*s.cols+r]
	}
	return nil
}

func (s transposed) String() string { return fmt.Sprintf("transpose(%s)", s.source) }

// Plus adds a constant to every element (norms that multiply by 1 + weight).
func (w Weight) Plus(c float32) Weight { return Weight{plus{w.src, c}, w.shape} }

type plus struct {
	source
	c float32
}

func (s plus) read(ctx context.Context, first int64, dst []float32) error {
	if err := s.source.read(ctx, first, dst); err != nil {
		return err
	}
	for i := range dst {
		dst[i] += s.c
	}
	return nil
}

func (s plus) String() string { return fmt.Sprintf("(%s + %v)", s.source, s.c) }

// Times multiplies every element by a constant.
func (w Weight) Times(c float32) Weight { return Weight{times{w.src, c}, w.shape} }

type times struct {
	source
	c float32
}

func (s times) read(ctx context.Context, first int64, dst []float32) error {
	if err := s.source.read(ctx, first, dst); err != nil {
		return err
	}
	for i := range dst {
		dst[i] *= s.c
	}
	return nil
}

func (s times) String() string { return fmt.Sprintf("(%s × %v)", s.source, s.c) }

// Zeros is a weight that no checkpoint stores.
func Zeros(shape ...int64) Weight { return Weight{zeros{}, shape} }

type zeros struct{}

func (zeros) read(_ context.Context, _ int64, dst []float32) error { clear(dst); return nil }
func (zeros) release()                                             {}
func (zeros) String() string                                       { return "zeros" }

// Float32s reads the whole weight; for the small ones that are worked on while planning is over.
func (w Weight) Float32s(ctx context.Context) ([]float32, error) {
	all := make([]float32, w.Elements())
	return all, w.src.read(ctx, 0, all)
}

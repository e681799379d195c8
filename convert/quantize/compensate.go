package quantize

// Rounding with error compensation (GPTQ: Frantar et al. 2022, after Hassibi and Stork's optimal brain surgeon). The weights
// of a row are rounded one after the other, and what a rounding makes of the row's output is made up for, as well as can
// be, by those that are still to be rounded. H = mean xᵀx of the layer's inputs says how: with H⁻¹ = UᵀU, U upper
// triangular, an error e of weight j is taken up by adding −e/U[j,j] · U[j, j+1:] to the weights behind it.

import (
	"errors"
	"fmt"

	"gonum.org/v1/gonum/blas/blas32"
	"gonum.org/v1/gonum/mat"
)

// damping is added to the diagonal of H as this share of its mean, so that channels which the samples hardly used neither
// make H singular nor take up everything.
const damping = 0.01

// Compensator is the factor of one layer's H. It is read-only: many goroutines may use it.
type Compensator struct {
	k          int
	upper      []float32 // [k, k]: row j holds U[j, j+1:]/U[j,j] from column j+1 on
	importance []float32 // 1/U[j,j]²: what a squared error of weight j costs when the rest makes up for it
}

// NewCompensator factors hessian [k, k], which it does not change. It takes 24·k² bytes while it works and keeps 4·k².
func NewCompensator(hessian []float32, k int) (*Compensator, error) {
	if k < 1 || len(hessian) != k*k {
		return nil, fmt.Errorf("a Hessian of %d values for %d channels", len(hessian), k)
	}
	trace := 0.0
	for j := range k {
		trace += float64(hessian[j*k+j])
	}
	if !(trace > 0) {
		return nil, errors.New("the Hessian is zero: no sample reached the layer")
	}
	h := mat.NewSymDense(k, nil)
	for i := range k {
		for j := i; j < k; j++ {
			v := float64(hessian[i*k+j])
			if i == j {
				v += damping * trace / float64(k)
			}
			h.SetSym(i, j, v)
		}
	}
	var factor mat.Cholesky
	if !factor.Factorize(h) {
		return nil, errors.New("the Hessian is not positive definite")
	}
	if err := factor.InverseTo(h); err != nil {
		return nil, fmt.Errorf("invert the Hessian: %w", err)
	}
	if !factor.Factorize(h) {
		return nil, errors.New("the inverse of the Hessian is not positive definite")
	}
	var u mat.TriDense
	factor.UTo(&u)
	c := &Compensator{k: k, upper: make([]float32, k*k), importance: make([]float32, k)}
	for i := range k {
		d := u.At(i, i)
		c.importance[i] = float32(1 / (d * d))
		for j := i + 1; j < k; j++ {
			c.upper[i*k+j] = float32(u.At(i, j) / d)
		}
	}
	return c, nil
}

// QuantizeCompensated is Quantize with the errors of each row compensated. Rows are independent of each other.
func (b Blocks) QuantizeCompensated(c *Compensator, src []float32, n, k int, packed []byte, scales []float32, zeroPoints []byte) error {
	if c.k != k {
		return fmt.Errorf("quantizing rows of %d weights with the Hessian of %d channels", k, c.k)
	}
	b.Importance = c.importance
	b.rounded = c.round
	return b.Quantize(src, n, k, packed, scales, zeroPoints)
}

// round rounds the block of row at first, and adds to the weights behind what makes up for it.
func (c *Compensator) round(row []float32, first, count int, g grid) {
	for j := first; j < first+count; j++ {
		v := row[j]
		q := g.nearest(v)
		row[j] = q
		if d := v - q; d != 0 && j+1 < c.k {
			rest := blas32.Vector{N: c.k - j - 1, Inc: 1, Data: row[j+1:]}
			blas32.Axpy(-d, blas32.Vector{N: rest.N, Inc: 1, Data: c.upper[j*c.k+j+1 : (j+1)*c.k]}, rest)
		}
	}
}

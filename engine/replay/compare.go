package replay

import (
	"fmt"
	"math"
)

// Comparison is how far the answers of a graph are from those of a reference, over the tokens that were added.
type Comparison struct {
	Tokens    int     // rows compared
	KL        float64 // mean Kullback–Leibler divergence from the reference, in nats a token
	Agreement float64 // share of rows whose most probable token is the reference's
	Targets   int     // rows that had a next token
	Loss      float64 // mean negative log-likelihood of the next token
	Reference float64 // the same of the reference

	kl, loss, reference float64
	agreed              int
}

// Add compares rows of logits [rows, vocab] with the reference's. next holds the token that follows each row, −1 for none;
// nil for none at all.
func (c *Comparison) Add(reference, logits []float32, vocab int, next []int32) error {
	if len(reference) != len(logits) || vocab < 1 || len(logits)%vocab != 0 {
		return fmt.Errorf("compare %d logits with %d of the reference, in rows of %d", len(logits), len(reference), vocab)
	}
	for row := 0; row*vocab < len(logits); row++ {
		p, q := reference[row*vocab:][:vocab], logits[row*vocab:][:vocab]
		pTop, pSum := softmaxSum(p)
		qTop, qSum := softmaxSum(q)
		if math.IsNaN(pSum) || math.IsNaN(qSum) {
			return fmt.Errorf("row %d of the logits is not finite", c.Tokens)
		}
		pBase, qBase := float64(p[pTop])+math.Log(pSum), float64(q[qTop])+math.Log(qSum)
		kl := 0.0
		for i, v := range p {
			if d := float64(v) - pBase; d > -30 { // what is left out is below 1e-13 a token
				kl += math.Exp(d) * (d - float64(q[i]) + qBase)
			}
		}
		c.kl += kl
		c.Tokens++
		if pTop == qTop {
			c.agreed++
		}
		if row < len(next) && next[row] >= 0 {
			c.Targets++
			c.loss += qBase - float64(q[next[row]])
			c.reference += pBase - float64(p[next[row]])
		}
	}
	c.KL, c.Agreement = c.kl/float64(c.Tokens), float64(c.agreed)/float64(c.Tokens)
	if c.Targets > 0 {
		c.Loss, c.Reference = c.loss/float64(c.Targets), c.reference/float64(c.Targets)
	}
	return nil
}

// softmaxSum returns the place of the largest value and Σ exp(value − largest).
func softmaxSum(values []float32) (top int, sum float64) {
	for i, v := range values {
		if v > values[top] {
			top = i
		}
	}
	for _, v := range values {
		if d := float64(v - values[top]); d > -40 {
			sum += math.Exp(d)
		} else if d != d {
			return top, math.NaN()
		}
	}
	return top, sum
}

package quantize

// Searching with weights on the error: a channel whose inputs are large makes more of an error than one whose inputs are
// small, so the squared error of each weight counts as much as the mean square of its input (the diagonal of the Hessian of
// the layer's output error; llama.cpp's importance matrix is the same). Everything else is as in search.go.

// weighted returns the best grid for the values when the squared error of values[i] counts importance[i] times.
func (b Blocks) weighted(values, importance []float32, fitted grid, scratch []float32) grid {
	scaled := scratch[:len(values)]
	for i, v := range values {
		scaled[i] = v * fitted.inverse
	}
	best, least := fitted, fitted.weightedError(values, importance)
	for i := range b.Search + 1 {
		multiple := 1 - (1-weightedFloor)*float32(i)/float32(b.Search)
		wq, qq := fitted.scaled(multiple).weightedMoments(scaled, importance)
		if qq <= 0 || wq <= 0 {
			continue
		}
		g := fitted.scaled(wq / qq * fitted.scale)
		if g.scale < negligible && g.scale > -negligible {
			continue
		}
		if e := g.weightedError(values, importance); e < least {
			best, least = g, e
		}
	}
	return best
}

// weightedFloor is the smallest multiple tried: where the block's extreme does not matter, clipping it pays.
const weightedFloor = 0.6

func (g grid) weightedMoments(values, importance []float32) (wq, qq float32) {
	low, high := -g.zero, g.top-g.zero
	for i, v := range values {
		q := float32(min(max(roundToInt(float32(v*g.inverse)), low), high))
		h := float32(importance[i] * q)
		wq += float32(h * v)
		qq += float32(h * q)
	}
	return wq, qq
}

func (g grid) weightedError(values, importance []float32) float64 {
	sum := 0.0
	for i, v := range values {
		d := float64(v) - float64(g.nearest(v))
		sum += float64(importance[i]) * float64(d*d)
	}
	return sum
}

// nearest is the value of the grid that v becomes.
func (g grid) nearest(v float32) float32 {
	q := min(max(roundToInt(float32(v*g.inverse)), -g.zero), g.top-g.zero)
	return float32(float32(q) * g.scale)
}

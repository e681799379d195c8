package quantize

// The scale that fits a block's extremes is not the one with the least error: one outlier stretches the grid for all.
// Smaller scales clip the outlier and serve the rest better. For each block a row of multiples of the fitting scale is
// tried, each improved by the least-squares scale for the codes it gives (q fixed, the best scale is Σwq/Σq²), and the
// one with the least squared error wins; the fitting scale itself takes part, so the result is never worse than rounding.

// searchFloor is the smallest multiple tried. Below, blocks of 16 to 128 weights of any common distribution only lose.
const searchFloor = 0.7

// search returns the best grid for the values.
func (b Blocks) search(values []float32, fitted grid, asymmetric bool) grid {
	best, least := fitted, fitted.squaredError(values)
	consider := func(g grid) {
		if e := g.squaredError(values); e < least {
			best, least = g, e
		}
		if refined, ok := g.leastSquares(values); ok {
			if e := refined.squaredError(values); e < least {
				best, least = refined, e
			}
		}
	}
	consider(fitted)
	for i := 1; i <= b.Search; i++ {
		multiple := 1 - (1-searchFloor)*float32(i)/float32(b.Search)
		g := fitted.scaled(fitted.scale * multiple)
		consider(g)
		if asymmetric {
			// A smaller scale shifts where 0 falls: either end may be the one to clip.
			for _, zero := range [2]int32{fitted.zero - 1, fitted.zero + 1} {
				if zero >= 0 && zero <= g.top {
					g.zero = zero
					consider(g)
				}
			}
			continue
		}
		g.scale, g.inverse = -g.scale, -g.inverse // the long side for the other sign
		consider(g)
	}
	return best
}

func (g grid) squaredError(values []float32) float64 {
	sum := 0.0
	for _, v := range values {
		d := float64(v) - float64(float32(float32(g.code(v)-g.zero)*g.scale))
		sum += d * d
	}
	return sum
}

// leastSquares keeps the codes of g and finds their best scale.
func (g grid) leastSquares(values []float32) (grid, bool) {
	var wq, qq float64
	for _, v := range values {
		q := float64(g.code(v) - g.zero)
		wq += float64(v) * q
		qq += q * q
	}
	if qq == 0 || wq == 0 {
		return g, false
	}
	refined := g.scaled(float32(wq / qq))
	usable := refined.scale >= negligible || refined.scale <= -negligible
	return refined, usable
}

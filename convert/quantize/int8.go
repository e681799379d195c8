package quantize

// Symmetric int8 with one scale for each output channel: the weight and scale of RowLinear (convert/blocks).

// Int8Rows quantizes src [n, k]: q = round(w/scale) in [-127, 127], scale = absmax/127 of the row, so that every weight is
// within scale/2 of its value. A row of zeros has scale 0. len(q) is n·k, len(scale) is n.
func Int8Rows(src []float32, n, k int, q []int8, scale []float32) error {
	for r := range n {
		row := src[r*k : (r+1)*k]
		low, high, finite := extremes(row)
		if !finite {
			return findNonFinite(row, r)
		}
		out := q[r*k : (r+1)*k]
		largest := max(-low, high)
		if largest < negligible {
			clear(out)
			scale[r] = 0
			continue
		}
		scale[r] = largest / 127
		inverse := 127 / largest
		for i, v := range row {
			out[i] = int8(roundToInt(float32(v * inverse)))
		}
	}
	return nil
}

package quantize

// Symmetric int8 with one scale for each output channel: B and b_scale of MatMulIntegerToFloat (which wants B as [k, n],
// see Transpose), b_zero_point absent.

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

// Int8Columns quantizes like Int8Rows, but leaves q transposed, [k, columns], in its columns first to first+n: the layout
// that MatMulInteger and MatMulIntegerToFloat want. columns is the output channels of the whole matrix; len(scale) is n.
func Int8Columns(src []float32, n, k int, q []int8, columns, first int, scale []float32) error {
	const rows = 64 // a run of bytes in the destination, and few enough rows to stay in the cache
	buffer := make([]int8, min(rows, n)*k)
	for r := 0; r < n; r += rows {
		count := min(rows, n-r)
		part := buffer[:count*k]
		if err := Int8Rows(src[r*k:(r+count)*k], count, k, part, scale[r:r+count]); err != nil {
			return shiftRow(err, r)
		}
		Transpose(q, columns, first+r, part, count, k)
	}
	return nil
}

// shiftRow makes the row of an error count from the start of the caller's slice.
func shiftRow(err error, rows int) error {
	if e, ok := err.(*NonFiniteError); ok {
		e.Row += rows
	}
	return err
}

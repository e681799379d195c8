package quantize

// Transpose writes src [rows, k] into the columns first to first+rows of dst [k, columns]. It goes by tiles, so that both
// sides stay in the cache. Pieces of one dst may be written by several goroutines when their columns differ.
func Transpose[T int8 | uint8 | uint16 | int32 | float32](dst []T, columns, first int, src []T, rows, k int) {
	const tile = 32
	for r0 := 0; r0 < rows; r0 += tile {
		r1 := min(r0+tile, rows)
		for c0 := 0; c0 < k; c0 += tile {
			c1 := min(c0+tile, k)
			for c := c0; c < c1; c++ {
				out := dst[c*columns+first+r0 : c*columns+first+r1]
				for i := range out {
					out[i] = src[(r0+i)*k+c]
				}
			}
		}
	}
}

package preprocess

import (
	"fmt"
	"image"
	"runtime"
	"sync"
)

// The resampler works in two passes with 8 bits between them, horizontal first, as Pillow's ImagingResample does.
// Equality with Pillow to the last bit is the point of this file: both passes clamp and round, a pass is skipped when
// it would change nothing, and the vertical pass sees only what the horizontal one left.

// Resize returns the picture at width × height pixels. It equals Pillow's Image.resize((width, height), filter).
func Resize(src *RGB, width, height int, filter Filter) (*RGB, error) {
	if err := src.check(); err != nil {
		return nil, fmt.Errorf("resize to %d×%d: %w", width, height, err)
	}
	return ResizeBox(src, [4]float32{0, 0, float32(src.Width), float32(src.Height)}, width, height, filter)
}

// ResizeBox resizes the part of the picture inside box (left, top, right, bottom; in pixels, fractions allowed). It
// equals Pillow's Image.resize((width, height), filter, box=box).
func ResizeBox(src *RGB, box [4]float32, width, height int, filter Filter) (*RGB, error) {
	if err := src.check(); err != nil {
		return nil, fmt.Errorf("resize to %d×%d: %w", width, height, err)
	}
	if width <= 0 || height <= 0 {
		return nil, fmt.Errorf("resize to %d×%d: both sides must be at least 1", width, height)
	}
	// Written so that a NaN in the box fails too.
	inside := box[0] >= 0 && box[1] >= 0 && box[2] <= float32(src.Width) && box[3] <= float32(src.Height)
	if !inside || !(box[2] > box[0]) || !(box[3] > box[1]) {
		return nil, fmt.Errorf("resize to %d×%d: box %v is empty or outside the picture of %d×%d", width, height, box, src.Width, src.Height)
	}
	if filter.kernel == nil {
		return nil, fmt.Errorf("resize to %d×%d: no filter given", width, height)
	}
	r := resampling{canvas: canvasOf(src), box: box, width: width, height: height, filter: filter}
	return r.window(image.Rect(0, 0, width, height)), nil
}

// canvas is a picture lying on a background of one colour. The background is never stored: a strip of 1×60,000 pixels
// padded to a square costs no more than the strip.
type canvas struct {
	picture       *RGB
	width, height int
	left, top     int // of the picture, which lies inside
	background    [3]uint8
}

func canvasOf(p *RGB) canvas { return canvas{picture: p, width: p.Width, height: p.Height} }

// empty reports whether row y holds background only. All such rows are alike.
func (c *canvas) empty(y int) bool { return y < c.top || y >= c.top+c.picture.Height }

// row returns row y, in scratch (3*width bytes) unless the picture has it as it is.
func (c *canvas) row(y int, scratch []uint8) []uint8 {
	if c.empty(y) {
		fill(scratch, c.background)
		return scratch
	}
	row := c.picture.Row(y - c.top)
	if c.width == c.picture.Width {
		return row
	}
	fill(scratch[:3*c.left], c.background)
	n := 3*c.left + copy(scratch[3*c.left:], row)
	fill(scratch[n:], c.background)
	return scratch
}

func fill(pix []uint8, color [3]uint8) {
	for i := 0; i+2 < len(pix); i += 3 {
		pix[i], pix[i+1], pix[i+2] = color[0], color[1], color[2]
	}
}

// resampling describes a resize of the whole canvas, any window of which can be asked for: a model that crops the
// centre out of a resized strip never makes the strip.
type resampling struct {
	canvas        canvas
	box           [4]float32
	width, height int // of the whole result
	filter        Filter
}

func resizeOf(c canvas, width, height int, filter Filter) *resampling {
	return &resampling{canvas: c, box: [4]float32{0, 0, float32(c.width), float32(c.height)}, width: width, height: height, filter: filter}
}

// window returns the pixels of the result inside r, which must lie within it.
func (s *resampling) window(r image.Rectangle) *RGB {
	c := &s.canvas
	horizontal := s.width != c.width || s.box[0] != 0 || s.box[2] != float32(s.width)
	vertical := s.height != c.height || s.box[1] != 0 || s.box[3] != float32(s.height)

	low, high := r.Min.Y, r.Max.Y
	var down *weights
	if vertical {
		down = newWeights(c.height, s.box[1], s.box[3], s.height, r.Min.Y, r.Max.Y, s.filter)
		low, high = down.span()
	}
	var across *weights
	if horizontal {
		across = newWeights(c.width, s.box[0], s.box[2], s.width, r.Min.X, r.Max.X, s.filter)
	}
	lines := s.lines(across, r.Min.X, r.Max.X, low, high)

	out := NewRGB(r.Dx(), r.Dy())
	if !vertical {
		for y := range out.Height {
			copy(out.Row(y), lines[y])
		}
		return out
	}
	parallel(out.Height, 3*out.Width*len(down.values)/out.Height, func(from, to int) {
		sums := make([]int32, 3*out.Width)
		for y := from; y < to; y++ {
			first := down.first[y] - low
			k := down.values[down.start[y]:down.start[y+1]]
			blendRows(out.Row(y), sums, lines[first:first+len(k)], k)
		}
	})
	return out
}

// lines returns rows [low, high) of the canvas after the horizontal pass, columns [x0, x1) of it. Rows of background
// share one line. across is nil when the pass changes nothing.
func (s *resampling) lines(across *weights, x0, x1, low, high int) [][]uint8 {
	c := &s.canvas
	lines := make([][]uint8, high-low)
	pass := func(y int, scratch, into []uint8) []uint8 {
		row := c.row(y, scratch)
		if across != nil {
			blendColumns(into, row, across)
			return into
		}
		if len(scratch) == 0 { // the row is the picture's own and stays as it is
			return row[3*x0 : 3*x1]
		}
		copy(into, row[3*x0:3*x1])
		return into
	}
	scratchSize := 0
	if c.width != c.picture.Width || c.height != c.picture.Height {
		scratchSize = 3 * c.width
	}
	var background []uint8
	for y := low; y < high; y++ {
		if c.empty(y) {
			background = pass(y, make([]uint8, scratchSize), make([]uint8, 3*(x1-x0)))
			break
		}
	}
	work := 0
	if across != nil {
		work = 3 * len(across.values)
	}
	parallel(high-low, work, func(from, to int) {
		scratch := make([]uint8, scratchSize)
		var store []uint8
		if across != nil || scratchSize > 0 {
			store = make([]uint8, 3*(x1-x0)*(to-from))
		}
		for i := from; i < to; i++ {
			if c.empty(low + i) {
				lines[i] = background
				continue
			}
			var into []uint8
			if store != nil {
				into, store = store[:3*(x1-x0)], store[3*(x1-x0):]
			}
			lines[i] = pass(low+i, scratch, into)
		}
	})
	return lines
}

// blendColumns is the horizontal pass over one row.
func blendColumns(dst, src []uint8, w *weights) {
	const half = 1 << (precisionBits - 1)
	for i := range w.first {
		k := w.values[w.start[i]:w.start[i+1]]
		p := src[3*w.first[i]:]
		p = p[:3*len(k)]
		r, g, b := int32(half), int32(half), int32(half)
		for _, v := range k {
			if len(p) < 3 { // never: tells the compiler that the three reads are in range
				break
			}
			r += int32(p[0]) * v
			g += int32(p[1]) * v
			b += int32(p[2]) * v
			p = p[3:]
		}
		o := dst[3*i : 3*i+3 : 3*i+3]
		o[0], o[1], o[2] = clip8(r), clip8(g), clip8(b)
	}
}

// blendRows is the vertical pass for one row of output: rows weighted by k, summed in sums (as long as dst).
func blendRows(dst []uint8, sums []int32, rows [][]uint8, k []int32) {
	sums = sums[:len(dst)]
	for i := range sums {
		sums[i] = 1 << (precisionBits - 1)
	}
	for len(k) >= 2 {
		a, b := rows[0][:len(dst)], rows[1][:len(dst)]
		ka, kb := k[0], k[1]
		for i := range sums {
			sums[i] += int32(a[i])*ka + int32(b[i])*kb
		}
		rows, k = rows[2:], k[2:]
	}
	if len(k) == 1 {
		a, ka := rows[0][:len(dst)], k[0]
		for i := range sums {
			sums[i] += int32(a[i]) * ka
		}
	}
	for i, sum := range sums {
		dst[i] = clip8(sum)
	}
}

// maxWorkers bounds the goroutines of one picture: many pictures are prepared side by side, and more workers than this
// gain nothing on one.
const maxWorkers = 4

// parallel calls do on contiguous parts of [0, n), at once where the work (multiplications for one of the n) is worth it.
func parallel(n, work int, do func(from, to int)) {
	const grain = 1 << 20
	workers := min(maxWorkers, runtime.GOMAXPROCS(0), n, n*work/grain)
	if workers <= 1 {
		do(0, n)
		return
	}
	var wait sync.WaitGroup
	for i := range workers {
		wait.Go(func() { do(n*i/workers, n*(i+1)/workers) })
	}
	wait.Wait()
}

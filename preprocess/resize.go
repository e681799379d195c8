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
	if s.verticalFirst() {
		return s.transposed().window(image.Rect(r.Min.Y, r.Min.X, r.Max.Y, r.Max.X)).transposed()
	}
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

// verticalFirst reports whether the filter swaps the passes for this picture: since release 13 Pillow does where the height
// loses more than twice as many pixels as the width.
func (s *resampling) verticalFirst() bool {
	lost := s.canvas.height - s.height
	return s.filter.tallFirst && lost > 0 && lost > 2*(s.canvas.width-s.width)
}

// transposed is the same resampling with rows as columns, so that its horizontal pass is the vertical one of s.
func (s *resampling) transposed() *resampling {
	c := s.canvas
	filter := s.filter
	filter.tallFirst = false
	return &resampling{
		canvas: canvas{picture: c.picture.transposed(), width: c.height, height: c.width, left: c.top, top: c.left, background: c.background},
		box:    [4]float32{s.box[1], s.box[0], s.box[3], s.box[2]}, width: s.height, height: s.width, filter: filter,
	}
}

// transposed swaps rows and columns.
func (p *RGB) transposed() *RGB {
	out := NewRGB(p.Height, p.Width)
	for y := range p.Height {
		row := p.Row(y)
		for x := range p.Width {
			copy(out.Row(x)[3*y:3*y+3], row[3*x:3*x+3])
		}
	}
	return out
}

// lines returns rows [low, high) of the canvas after the horizontal pass, columns [x0, x1) of it. Rows of background
// share one line. across is nil when the pass changes nothing.
func (s *resampling) lines(across *weights, x0, x1, low, high int) [][]uint8 {
	c := &s.canvas
	lines := make([][]uint8, high-low)
	size := 3 * (x1 - x0)
	background := make([]uint8, size)
	var resample *columns
	work := size
	if across == nil {
		fill(background, c.background)
	} else {
		resample = across.over(c)
		resample.fill(background)
		work = 3 * resample.taps
	}
	parallel(high-low, work, func(from, to int) {
		for i := from; i < to; i++ {
			if c.empty(low + i) {
				lines[i] = background
			}
		}
		// The rows of the picture among them, as indices of lines.
		from, to = max(from, c.top-low), min(to, c.top+c.picture.Height-low)
		switch {
		case from >= to:
		case resample != nil:
			resample.rows(lines[from:to], size, c.picture, low+from-c.top)
		default:
			c.rows(lines[from:to], x0, x1, low+from-c.top)
		}
	})
	return lines
}

// rows sets lines to columns [x0, x1) of the canvas where rows y, y+1, … of the picture lie.
func (c *canvas) rows(lines [][]uint8, x0, x1, y int) {
	from, to := max(x0, c.left), min(x1, c.left+c.picture.Width)
	for i := range lines {
		row := c.picture.Row(y + i)
		if from == x0 && to == x1 {
			lines[i] = row[3*(x0-c.left) : 3*(x1-c.left)]
			continue
		}
		line := make([]uint8, 3*(x1-x0))
		fill(line, c.background)
		if from < to {
			copy(line[3*(from-x0):], row[3*(from-c.left):3*(to-c.left)])
		}
		lines[i] = line
	}
}

// columns is the horizontal pass over the rows of a canvas's picture. What the background beside the picture adds is
// the same in every row and summed up beforehand (sums are integers: their order does not matter), so that a row costs
// what the picture's own pixels cost, however wide the canvas is.
type columns struct {
	values     []int32
	spans      []span
	background [3]uint8
	taps       int // weights that fall on the picture
}

// span is one output column: weights values[start:end] fall on the picture's columns from first on.
type span struct {
	first, start, end int
	base              [3]int32 // one half, and the background's part
	whole             int32    // sum of all weights, those on the background too
}

func (w *weights) over(c *canvas) *columns {
	out := &columns{values: w.values, spans: make([]span, len(w.first)), background: c.background}
	for i, first := range w.first {
		s := &out.spans[i]
		start, end := w.start[i], w.start[i+1]
		// Weight j falls on column first+j-left of the picture.
		s.start = min(max(start, start+c.left-first), end)
		s.end = min(max(s.start, start+c.left+c.picture.Width-first), end)
		s.first = min(max(first-c.left, 0), c.picture.Width)
		var inside int32
		for j, v := range w.values[start:end] {
			s.whole += v
			if start+j >= s.start && start+j < s.end {
				inside += v
			}
		}
		for ch, b := range c.background {
			s.base[ch] = 1<<(precisionBits-1) + int32(b)*(s.whole-inside)
		}
		out.taps += s.end - s.start
	}
	return out
}

// pair holds two rows of the picture, a plane a channel: the first row in the low half of each value, the second in
// the high half. One 64-bit multiplication then weighs both, exactly: the low half of a sum stays within 32 bits, and
// what it borrows from the high half is given back when the two are taken apart.
type pair [3][]int64

func newPair(width int) (p pair) {
	for ch := range p {
		p[ch] = make([]int64, width)
	}
	return p
}

func (p *pair) load(a, b []uint8) {
	red, green, blue := p[0], p[1][:len(p[0])], p[2][:len(p[0])]
	for x := range red {
		s, t := a[3*x:3*x+3:3*x+3], b[3*x:3*x+3:3*x+3]
		red[x] = int64(s[0]) | int64(t[0])<<32
		green[x] = int64(s[1]) | int64(t[1])<<32
		blue[x] = int64(s[2]) | int64(t[2])<<32
	}
}

// blend resamples two rows of the picture.
func (c *columns) blend(first, second []uint8, p *pair) {
	const both = 1 + 1<<32
	for i := range c.spans {
		s := &c.spans[i]
		k := c.values[s.start:s.end]
		red, green, blue := p[0][s.first:][:len(k)], p[1][s.first:][:len(k)], p[2][s.first:][:len(k)]
		r, g, b := int64(s.base[0])*both, int64(s.base[1])*both, int64(s.base[2])*both
		for j, v := range k {
			w := int64(v)
			r += red[j] * w
			g += green[j] * w
			b += blue[j] * w
		}
		o := first[3*i : 3*i+3 : 3*i+3]
		o[0], o[1], o[2] = clip8(int32(r)), clip8(int32(g)), clip8(int32(b))
		o = second[3*i : 3*i+3 : 3*i+3]
		o[0], o[1], o[2] = clip8(upper(r)), clip8(upper(g)), clip8(upper(b))
	}
}

// upper takes the second of two packed sums, int32(sum) being the first.
func upper(sum int64) int32 { return int32((sum - int64(int32(sum))) >> 32) }

// rows sets lines to rows y, y+1, … of the picture, resampled; each has size bytes.
func (c *columns) rows(lines [][]uint8, size int, picture *RGB, y int) {
	store := make([]uint8, size*len(lines))
	for i := range lines {
		lines[i] = store[i*size : (i+1)*size : (i+1)*size]
	}
	p := newPair(picture.Width)
	for i := 0; i < len(lines); i += 2 {
		j := min(i+1, len(lines)-1) // an odd last row is paired with itself
		p.load(picture.Row(y+i), picture.Row(y+j))
		c.blend(lines[i], lines[j], &p)
	}
}

// fill resamples a row of background.
func (c *columns) fill(dst []uint8) {
	for i := range c.spans {
		for ch, b := range c.background {
			dst[3*i+ch] = clip8(1<<(precisionBits-1) + int32(b)*c.spans[i].whole)
		}
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
	var once sync.Once
	var failure any
	for i := range workers {
		wait.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					once.Do(func() { failure = r })
				}
			}()
			do(n*i/workers, n*(i+1)/workers)
		})
	}
	wait.Wait()
	if failure != nil {
		panic(failure) // on the caller's goroutine, where it can be recovered
	}
}

package media

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/gif"

	"glimpse/preprocess"
)

// gif chooses frames of an animated GIF. Frames are drawn over each other as their disposal says, on black; times come from
// the delays, which are hundredths of a second.
func (r *Reader) gif(ctx context.Context, in Input, c Choice) (*Video, error) {
	data, err := r.bytes(in)
	if err != nil {
		return nil, err
	}
	info, err := preprocess.Header(bytes.NewReader(data))
	if err != nil {
		return nil, in.errorf(err, "read GIF")
	}
	if info.Frames > maxFiles || int64(info.Width)*int64(info.Height) > r.limits.MaxPixels/int64(max(1, info.Frames)) {
		return nil, in.errorf(nil, "%d frames of %d×%d pixels are more than the limits allow", info.Frames, info.Width, info.Height)
	}
	animation, err := decodeGIF(data)
	if err != nil {
		return nil, in.errorf(err, "read GIF")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	times, total := make([]float64, len(animation.Image)), 0.0
	for i, delay := range animation.Delay {
		times[i] = total
		total += float64(max(delay, 0)) / 100
	}
	fps := 0.0
	if total > 0 {
		fps = float64(len(times)) / total
	}
	places, err := r.choose(in, c, len(animation.Image), fps)
	if err != nil {
		return nil, err
	}
	v := &Video{Indices: places, Total: len(animation.Image), FPS: fps}
	canvas := newCanvas(animation, info.Width, info.Height)
	next := 0
	for _, place := range places {
		for ; next <= place; next++ {
			canvas.draw(animation, next)
		}
		v.Frames = append(v.Frames, bitmap(info.Width, info.Height, canvas.rgb))
		v.Names = append(v.Names, fmt.Sprintf("%s, frame %d", in.name(), place))
		if fps > 0 {
			v.Seconds = append(v.Seconds, times[place])
		}
	}
	return v, nil
}

// decodeGIF keeps a decoder that panics on hostile input from taking the process with it.
func decodeGIF(data []byte) (g *gif.GIF, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder gave up: %v", r)
		}
	}()
	return gif.DecodeAll(bytes.NewReader(data))
}

// canvas is what an animation shows.
type canvas struct {
	width, height int
	rgb           []byte
	before        []byte // what was there before a frame that is taken away again
	last          int    // the frame drawn last; −1 for none
}

func newCanvas(_ *gif.GIF, width, height int) *canvas {
	return &canvas{width: width, height: height, rgb: make([]byte, 3*width*height), last: -1}
}

// draw lays frame i, the one behind the last, over what is left of that.
func (c *canvas) draw(g *gif.GIF, i int) {
	if c.last >= 0 {
		switch g.Disposal[c.last] {
		case gif.DisposalBackground:
			c.each(g.Image[c.last].Rect, func(at, _, _ int) { clear(c.rgb[at : at+3]) })
		case gif.DisposalPrevious:
			copy(c.rgb, c.before)
		}
	}
	if g.Disposal[i] == gif.DisposalPrevious {
		c.before = append(c.before[:0], c.rgb...)
	}
	m := g.Image[i]
	var palette [256]color.NRGBA
	for k, p := range m.Palette[:min(len(m.Palette), 256)] {
		palette[k] = color.NRGBAModel.Convert(p).(color.NRGBA)
	}
	c.each(m.Rect, func(at, x, y int) {
		if p := palette[m.ColorIndexAt(x, y)]; p.A != 0 {
			c.rgb[at], c.rgb[at+1], c.rgb[at+2] = p.R, p.G, p.B
		}
	})
	c.last = i
}

// each visits the pixels of a rectangle that are on the canvas.
func (c *canvas) each(r image.Rectangle, visit func(at, x, y int)) {
	r = r.Intersect(image.Rect(0, 0, c.width, c.height))
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			visit(3*(y*c.width+x), x, y)
		}
	}
}

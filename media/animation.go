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

// animation chooses frames of an animation by the seconds that each is shown. next draws them one after the other.
func (r *Reader) animation(ctx context.Context, in Input, c Choice, width, height int, shown []float64, next func() ([]byte, error)) (*Video, error) {
	times, total := make([]float64, len(shown)), 0.0
	for i, s := range shown {
		times[i] = total
		total += max(s, 0)
	}
	fps := 0.0
	if total > 0 {
		fps = float64(len(times)) / total
	}
	places, err := r.choose(in, c, len(shown), fps)
	if err != nil {
		return nil, err
	}
	if err := c.hold(ctx, len(places), width, height); err != nil {
		return nil, err
	}
	v := &Video{Indices: places, Total: len(shown), FPS: fps, Width: width, Height: height, Duration: total}
	drawn := 0
	var rgb []byte
	for _, place := range places {
		for ; drawn <= place; drawn++ {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if rgb, err = next(); err != nil {
				return nil, in.errorf(KindCorrupt, err, "frame %d", drawn)
			}
		}
		v.Frames = append(v.Frames, bitmap(width, height, rgb))
		v.Names = append(v.Names, fmt.Sprintf("%s, frame %d", in.name(), place))
		if fps > 0 {
			v.Seconds = append(v.Seconds, times[place])
		}
	}
	return v, nil
}

// tooLarge refuses an animation by its header.
func (r *Reader) tooLarge(in Input, frames, width, height int) error {
	if frames <= maxFiles && int64(width)*int64(height) <= r.limits.MaxPixels/int64(max(1, frames)) {
		return nil
	}
	return in.errorf(KindTooLarge, nil, "%d frames of %d×%d pixels are more than the limits allow", frames, width, height)
}

// webp chooses frames of an animated WebP.
func (r *Reader) webp(ctx context.Context, in Input, c Choice) (*Video, error) {
	data, err := r.bytes(in)
	if err != nil {
		return nil, err
	}
	a, err := preprocess.OpenWebPAnimation(data, preprocess.Limits{})
	if err != nil {
		return nil, in.errorf(KindCorrupt, err, "read WebP")
	}
	if err := r.tooLarge(in, len(a.Seconds), a.Width, a.Height); err != nil {
		return nil, err
	}
	release, err := r.reserve(ctx, len(a.Seconds), a.Width, a.Height)
	if err != nil {
		return nil, err
	}
	defer release()
	return r.animation(ctx, in, c, a.Width, a.Height, a.Seconds, func() ([]byte, error) {
		picture, err := a.Next()
		if err != nil {
			return nil, err
		}
		return picture.Pix, nil
	})
}

// gif chooses frames of an animated GIF. Frames are drawn over each other as their disposal says, on black; times come from
// the delays, which are hundredths of a second.
func (r *Reader) gif(ctx context.Context, in Input, c Choice) (*Video, error) {
	data, err := r.bytes(in)
	if err != nil {
		return nil, err
	}
	info, err := preprocess.Header(bytes.NewReader(data))
	if err != nil {
		return nil, in.errorf(KindCorrupt, err, "read GIF")
	}
	if err := r.tooLarge(in, info.Frames, info.Width, info.Height); err != nil {
		return nil, err
	}
	release, err := r.reserve(ctx, info.Frames, info.Width, info.Height)
	if err != nil {
		return nil, err
	}
	defer release()
	moving, err := decodeGIF(data)
	if err != nil {
		return nil, in.errorf(KindCorrupt, err, "read GIF")
	}
	shown := make([]float64, len(moving.Image))
	for i := range shown {
		shown[i] = float64(moving.Delay[i]) / 100
	}
	canvas, next := newCanvas(info.Width, info.Height), 0
	return r.animation(ctx, in, c, info.Width, info.Height, shown, func() ([]byte, error) {
		canvas.draw(moving, next)
		next++
		return canvas.rgb, nil
	})
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

func newCanvas(width, height int) *canvas {
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

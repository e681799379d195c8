package preprocess

import (
	"bytes"
	"encoding/binary"
	"image"

	"golang.org/x/image/vp8l"
	"golang.org/x/image/webp"
)

// WebPAnimation is an animated WebP that is drawn frame by frame, as libwebp's decoder does. It is for one goroutine.
type WebPAnimation struct {
	Width, Height int
	Seconds       []float64 // how long each frame is shown

	frames []animatedFrame
	canvas []uint8 // R, G, B, A, not premultiplied
	next   int
	key    bool // the frame before next began anew
}

// animatedFrame is an ANMF chunk.
type animatedFrame struct {
	webpFrame
	alpha   []byte // body of its ALPH chunk; nil without
	replace bool   // the frame is not blended with what is there
	dispose bool   // its place is cleared before the next frame
}

// OpenWebPAnimation reads the structure of an animated WebP. Errors are *Error; one that is not animated is KindUnsupported.
func OpenWebPAnimation(data []byte, limits Limits) (*WebPAnimation, error) {
	limits = limits.withDefaults()
	if err := limits.checkBytes(int64(len(data))); err != nil {
		return nil, err
	}
	info, err := readHeader(data)
	if err != nil {
		return nil, err
	}
	if err := limits.checkSize(info.Format, info.Width, info.Height); err != nil {
		return nil, err
	}
	a := &WebPAnimation{Width: info.Width, Height: info.Height}
	if info.Format != WebP {
		return nil, failf(KindUnsupported, info.Format, "it is no WebP")
	}
	for rest := data[12:]; ; {
		name, body, after, ok := webpChunk(rest)
		if !ok {
			break
		}
		if rest = after; name != "ANMF" {
			continue
		}
		f, seconds, err := parseAnimated(body)
		if err != nil {
			return nil, err
		}
		if f.x+f.width > a.Width || f.y+f.height > a.Height {
			return nil, failf(KindCorrupt, WebP, "frame %d of %d×%d at (%d, %d) on a canvas of %d×%d", len(a.frames), f.width, f.height, f.x, f.y, a.Width, a.Height)
		}
		a.frames, a.Seconds = append(a.frames, *f), append(a.Seconds, seconds)
	}
	if len(a.frames) == 0 {
		return nil, failf(KindUnsupported, WebP, "it is not animated")
	}
	return a, nil
}

func parseAnimated(body []byte) (*animatedFrame, float64, error) {
	first, err := animationFrame(body)
	if err != nil {
		return nil, 0, err
	}
	if err := first.size(); err != nil {
		return nil, 0, err
	}
	f := &animatedFrame{webpFrame: *first, replace: body[15]&2 != 0, dispose: body[15]&1 != 0}
	if name, chunk, _, ok := webpChunk(body[16:]); ok && name == "ALPH" {
		f.alpha = chunk
	}
	return f, float64(uint24(body[12:])) / 1000, nil
}

// Next draws the next frame and returns what the animation then shows, alpha dropped. It must be called at most as often
// as there are frames.
func (a *WebPAnimation) Next() (picture *RGB, err error) {
	defer func() { // decoders that panic on hostile input
		if r := recover(); r != nil {
			picture, err = nil, failf(KindCorrupt, WebP, "the decoder gave up: %v", r)
		}
	}()
	f := a.frames[a.next]
	cleared := image.Rectangle{} // there is nothing to blend with
	if a.key = a.begins(); a.key {
		a.canvas, f.replace = make([]uint8, 4*a.Width*a.Height), true
	} else if before := a.frames[a.next-1]; before.dispose {
		cleared = image.Rect(before.x, before.y, before.x+before.width, before.y+before.height)
		for y := range before.height {
			at := 4 * ((before.y+y)*a.Width + before.x)
			clear(a.canvas[at : at+4*before.width])
		}
	}
	pix, err := f.pixels()
	if err != nil {
		return nil, err
	}
	a.next++
	for y := range f.height {
		row := a.canvas[4*((f.y+y)*a.Width+f.x):]
		for x := range f.width {
			blend(row[4*x:4*x+4:4*x+4], pix[4*(y*f.width+x):], f.replace || image.Pt(f.x+x, f.y+y).In(cleared))
		}
	}
	out := NewRGB(a.Width, a.Height)
	for i := range a.Width * a.Height {
		copy(out.Pix[3*i:3*i+3], a.canvas[4*i:])
	}
	return out, nil
}

// begins reports whether the next frame shows nothing of those before it. It is then not blended, which decides what colour
// pixels have that nobody sees: alpha is dropped.
func (a *WebPAnimation) begins() bool {
	if a.next == 0 {
		return true
	}
	whole := func(f *animatedFrame) bool { return f.width == a.Width && f.height == a.Height }
	f, before := &a.frames[a.next], &a.frames[a.next-1]
	opaque := !f.lossless && f.alpha == nil
	return (opaque || f.replace) && whole(f) || before.dispose && (whole(before) || a.key)
}

// blend lays a pixel over another in libwebp's integers.
func blend(dst, src []uint8, replace bool) {
	alpha := uint32(src[3])
	if replace || alpha == 255 {
		copy(dst, src[:4])
		return
	}
	if alpha == 0 {
		return
	}
	below := uint32(dst[3]) * (256 - alpha) >> 8
	scale := uint32(1<<24) / (alpha + below)
	for c := range 3 {
		dst[c] = uint8((uint32(src[c])*alpha + uint32(dst[c])*below) * scale >> 24)
	}
	dst[3] = uint8(alpha + below)
}

// pixels decodes the frame: R, G, B, A.
func (f *animatedFrame) pixels() ([]uint8, error) {
	if f.lossless {
		m, err := vp8l.Decode(bytes.NewReader(f.stream))
		if err != nil {
			return nil, decodeError(WebP, err)
		}
		n, ok := m.(*image.NRGBA)
		if !ok || n.Rect.Dx() != f.width || n.Rect.Dy() != f.height || n.Stride != 4*f.width {
			return nil, failf(KindCorrupt, WebP, "a frame decoded to %T of %v", m, m.Bounds())
		}
		return n.Pix, nil
	}
	rgb, err := f.decode()
	if err != nil {
		return nil, err
	}
	out := make([]uint8, 4*f.width*f.height)
	for i := range f.width * f.height {
		copy(out[4*i:], rgb.Pix[3*i:3*i+3])
		out[4*i+3] = 255
	}
	if f.alpha == nil {
		return out, nil
	}
	m, err := webp.Decode(bytes.NewReader(f.alone()))
	if err != nil {
		return nil, decodeError(WebP, err)
	}
	with, ok := m.(*image.NYCbCrA)
	if !ok || with.Rect.Dx() != f.width || with.Rect.Dy() != f.height {
		return nil, failf(KindCorrupt, WebP, "a frame with alpha decoded to %T of %v", m, m.Bounds())
	}
	for y := range f.height {
		for x := range f.width {
			out[4*(y*f.width+x)+3] = with.A[y*with.AStride+x]
		}
	}
	return out, nil
}

// alone is the frame as a file of its own, for a decoder that knows alpha.
func (f *animatedFrame) alone() []byte {
	le := binary.LittleEndian
	chunk := func(to []byte, name string, body []byte) []byte {
		to = le.AppendUint32(append(to, name...), uint32(len(body)))
		if to = append(to, body...); len(body)&1 == 1 {
			to = append(to, 0)
		}
		return to
	}
	head := make([]byte, 10)
	head[0] = 0x10 // there is alpha
	w, h := uint32(f.width-1), uint32(f.height-1)
	head[4], head[5], head[6] = uint8(w), uint8(w>>8), uint8(w>>16)
	head[7], head[8], head[9] = uint8(h), uint8(h>>8), uint8(h>>16)
	body := chunk([]byte("WEBP"), "VP8X", head)
	body = chunk(body, "ALPH", f.alpha)
	body = chunk(body, "VP8 ", f.stream)
	return append(le.AppendUint32([]byte("RIFF"), uint32(len(body))), body...)
}

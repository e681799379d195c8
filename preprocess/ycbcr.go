package preprocess

import "image"

// Chroma planes are smaller than the picture. libjpeg and libwebp interpolate them ("fancy upsampling"), Go's decoders
// hand them over as they are, so it is done here, in both libraries' own arithmetic: repeating samples instead would be
// up to a tenth of the value range off at coloured edges.

// chroma is one colour plane and how it is to be enlarged: a factor of 1, 2 or 4 in each direction.
type chroma struct {
	pix           []uint8
	stride        int
	width, height int // of the samples that belong to the picture; blocks may hold more
	fx, fy        int
}

func (c *chroma) row(y int) []uint8 {
	y = min(max(y, 0), c.height-1)
	return c.pix[y*c.stride : y*c.stride+c.width]
}

// chromaOf returns the two chroma planes of a decoded picture.
func chromaOf(m *image.YCbCr) (cb, cr chroma, ok bool) {
	fx, fy := 1, 1
	switch m.SubsampleRatio {
	case image.YCbCrSubsampleRatio444:
	case image.YCbCrSubsampleRatio422:
		fx = 2
	case image.YCbCrSubsampleRatio420:
		fx, fy = 2, 2
	case image.YCbCrSubsampleRatio440:
		fy = 2
	case image.YCbCrSubsampleRatio411:
		fx = 4
	case image.YCbCrSubsampleRatio410:
		fx, fy = 4, 2
	default:
		return cb, cr, false
	}
	cb = chroma{stride: m.CStride, width: (m.Rect.Dx() + fx - 1) / fx, height: (m.Rect.Dy() + fy - 1) / fy, fx: fx, fy: fy}
	cr = cb
	cb.pix, cr.pix = m.Cb, m.Cr
	need := (cb.height-1)*cb.stride + cb.width
	return cb, cr, m.Rect.Min == image.Point{} && len(m.Cb) >= need && len(m.Cr) >= need
}

// upsampleJPEG writes row y of the enlarged plane to dst, as libjpeg-turbo does by default: triangle weights 3/4 and 1/4
// for factors of 2, with roundings that alternate so that they do not drift (jdsample.c); repetition for the rest, and
// for planes of up to two columns. sums has room for the plane's width.
func (c *chroma) upsampleJPEG(dst []uint8, y int, sums []int32) {
	smooth := c.width > 2
	switch {
	case c.fx == 2 && c.fy == 2 && smooth:
		near, far := c.nearFar(y)
		for i := range sums {
			sums[i] = 3*int32(near[i]) + int32(far[i])
		}
		tent(dst, sums, 4, 8, 7)
	case c.fx == 2 && c.fy == 1 && smooth:
		for i, v := range c.row(y) {
			sums[i] = int32(v)
		}
		tent(dst, sums, 2, 1, 2)
	case c.fx == 1 && c.fy == 2:
		near, far := c.nearFar(y)
		bias := int32(1 + y&1)
		for i := range dst {
			dst[i] = uint8((3*int32(near[i]) + int32(far[i]) + bias) >> 2)
		}
	case c.fx == 1:
		copy(dst, c.row(y/c.fy))
	default:
		row := c.row(y / c.fy)
		for x := range dst {
			dst[x] = row[x/c.fx]
		}
	}
}

// nearFar returns the two plane rows between which row y of the picture lies, for a vertical factor of 2.
func (c *chroma) nearFar(y int) (near, far []uint8) {
	return c.row(y / 2), c.row(y/2 - 1 + y&1*2)
}

// tent doubles v horizontally: each output is 3/4 of its sample and 1/4 of the neighbour on its side. Samples carry a
// scale of 1<<(shift-2); biasEven and biasOdd are added before it is shifted out.
func tent(dst []uint8, v []int32, shift uint, biasEven, biasOdd int32) {
	last := len(v) - 1
	for i, s := range v {
		left, right := v[max(i-1, 0)], v[min(i+1, last)]
		dst[2*i] = uint8((3*s + left + biasEven) >> shift)
		if 2*i+1 < len(dst) {
			dst[2*i+1] = uint8((3*s + right + biasOdd) >> shift)
		}
	}
}

// fromJPEG converts to RGB with JFIF's full-range BT.601 in libjpeg's 16-bit fixed point (jdcolor.c).
func fromJPEG(m *image.YCbCr) (*RGB, error) {
	cb, cr, ok := chromaOf(m)
	if !ok {
		return nil, failf(KindUnsupported, JPEG, "chroma subsampling %v", m.SubsampleRatio)
	}
	out := NewRGB(m.Rect.Dx(), m.Rect.Dy())
	parallel(out.Height, 16*out.Width, func(from, to int) {
		blue, red, sums := make([]uint8, out.Width), make([]uint8, out.Width), make([]int32, cb.width)
		for y := from; y < to; y++ {
			cb.upsampleJPEG(blue, y, sums)
			cr.upsampleJPEG(red, y, sums)
			luma := m.Y[y*m.YStride : y*m.YStride+out.Width]
			convertJPEG(out.Row(y), luma, blue, red)
		}
	})
	return out, nil
}

func convertJPEG(dst, luma, blue, red []uint8) {
	const half = 1 << 15
	blue, red = blue[:len(luma)], red[:len(luma)]
	for x, v := range luma {
		y, b, r := int32(v), int32(blue[x])-128, int32(red[x])-128
		d := dst[:3:3]
		d[0] = clamp8(y + (91881*r+half)>>16)
		d[1] = clamp8(y + (-22554*b-46802*r+half)>>16)
		d[2] = clamp8(y + (116130*b+half)>>16)
		dst = dst[3:]
	}
}

func clamp8(v int32) uint8 {
	if uint32(v) > 255 {
		if v < 0 {
			return 0
		}
		return 255
	}
	return uint8(v)
}

// fromVP8 converts to RGB with video-range BT.601 in libwebp's 14-bit fixed point (src/dsp/yuv.h).
func fromVP8(m *image.YCbCr) (*RGB, error) {
	cb, cr, ok := chromaOf(m)
	if !ok || cb.fx != 2 || cb.fy != 2 {
		return nil, failf(KindCorrupt, WebP, "VP8 decoded to chroma subsampling %v", m.SubsampleRatio)
	}
	out := NewRGB(m.Rect.Dx(), m.Rect.Dy())
	parallel(out.Height, 16*out.Width, func(from, to int) {
		blue, red := make([]uint8, out.Width), make([]uint8, out.Width)
		for y := from; y < to; y++ {
			cb.upsampleVP8(blue, y)
			cr.upsampleVP8(red, y)
			luma := m.Y[y*m.YStride : y*m.YStride+out.Width]
			convertVP8(out.Row(y), luma, blue, red)
		}
	})
	return out, nil
}

// upsampleVP8 writes row y of the doubled plane to dst: weights 9, 3, 3, 1 of 16, rounded in libwebp's two steps
// (src/dsp/upsampling.c).
func (c *chroma) upsampleVP8(dst []uint8, y int) {
	near, far := c.nearFar(y)
	last := c.width - 1
	for x := range dst {
		i := x / 2
		j := min(max(i-1+x&1*2, 0), last)
		a, b, v, d := uint32(near[i]), uint32(near[j]), uint32(far[i]), uint32(far[j])
		diagonal := (a + 3*b + 3*v + d + 8) >> 3
		dst[x] = uint8((diagonal + a) >> 1)
	}
}

func convertVP8(dst, luma, blue, red []uint8) {
	clip := func(v int32) uint8 { return clamp8(v >> 6) }
	blue, red = blue[:len(luma)], red[:len(luma)]
	for x, v := range luma {
		y, u, v := int32(v)*19077>>8, int32(blue[x]), int32(red[x])
		d := dst[:3:3]
		d[0] = clip(y + v*26149>>8 - 14234)
		d[1] = clip(y - u*6419>>8 - v*13320>>8 + 8708)
		d[2] = clip(y + u*33050>>8 - 17685)
		dst = dst[3:]
	}
}

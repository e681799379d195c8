package preprocess

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"

	"golang.org/x/image/bmp"
)

// DecodeOptions are the choices of a Decode.
type DecodeOptions struct {
	Limits Limits
	// IgnoreEXIF leaves the picture as it is stored. The authors' own code of some models does that.
	IgnoreEXIF bool
}

// Decode turns an encoded picture into RGB and, unless told otherwise, turns it upright. Of animations and multi-page
// files it takes the first frame.
//
// Colours are those of Pillow's Image.open(…).convert("RGB"): alpha is dropped, not blended; grey is repeated; of
// 16 bits a channel the high byte is taken, except in pictures that are grey alone, where Pillow clamps at 255 and so do we;
// CMYK is multiplied out. Embedded colour profiles are not applied. PNG, GIF, BMP, TIFF and WebP are exact;
// JPEG differs by a level or two where inverse transforms round differently.
//
// Errors are *Error, except ctx's own. ctx is looked at between the steps, not inside a decoder.
func Decode(ctx context.Context, data []byte, options DecodeOptions) (*RGB, error) {
	limits := options.Limits.withDefaults()
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
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("decode %s of %d×%d: %w", info.Format, info.Width, info.Height, err)
	}
	picture, err := decodePixels(data, info)
	if err != nil {
		return nil, err
	}
	if picture.Width != info.Width || picture.Height != info.Height {
		return nil, failf(KindCorrupt, info.Format, "its header says %d×%d pixels, it holds %d×%d", info.Width, info.Height, picture.Width, picture.Height)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("decode %s of %d×%d: %w", info.Format, info.Width, info.Height, err)
	}
	if options.IgnoreEXIF {
		return picture, nil
	}
	return upright(picture, info.Orientation), nil
}

// decodePixels keeps a decoder that panics on hostile input from taking the process with it.
func decodePixels(data []byte, info Info) (picture *RGB, err error) {
	defer func() {
		if r := recover(); r != nil {
			picture, err = nil, failf(KindCorrupt, info.Format, "the decoder gave up: %v", r)
		}
	}()
	switch info.Format {
	case PNG:
		return decodePNG(data, info)
	case JPEG:
		return decodeJPEG(data, info)
	case WebP:
		return decodeWebP(data, info)
	case GIF:
		return decodeGIF(data, info)
	case TIFF:
		return decodeTIFF(data, info)
	case BMP:
		m, err := bmp.Decode(bytes.NewReader(data))
		if errors.Is(err, bmp.ErrUnsupported) {
			return nil, &Error{Kind: KindUnsupported, Format: string(BMP), Err: err}
		} else if err != nil {
			return nil, decodeError(BMP, err)
		}
		if opaque, ok := m.(*image.RGBA); ok {
			return fromRGBA(opaque), nil
		}
		return fromImage(BMP, m)
	}
	return nil, failf(KindUnsupported, info.Format, "no decoder")
}

func decodePNG(data []byte, info Info) (*RGB, error) {
	m, err := png.Decode(bytes.NewReader(data))
	if err == nil {
		return fromImage(PNG, m)
	}
	var unsupported png.UnsupportedError
	if errors.As(err, &unsupported) {
		return nil, &Error{Kind: KindUnsupported, Format: string(PNG), Err: err}
	}
	failure := decodeError(PNG, err)
	if info.cut {
		failure.Kind = KindTruncated // the decoder only says that it got too few pixels
	}
	return nil, failure
}

// maxScans bounds the passes over a JPEG. Progressive files have about ten; one of thousands of empty scans would keep
// a processor busy for hours.
const maxScans = 500

func decodeJPEG(data []byte, info Info) (*RGB, error) {
	if info.scans > maxScans {
		return nil, failf(KindTooLarge, JPEG, "%d scans; the limit is %d", info.scans, maxScans)
	}
	m, err := jpeg.Decode(bytes.NewReader(data))
	if err != nil && !info.progressive && !bytes.HasSuffix(data, []byte{0xff, 0xd9}) {
		// Cameras and crawlers lose the end marker. libjpeg supplies it; a file that lacks more still fails.
		m, err = jpeg.Decode(bytes.NewReader(append(data[:len(data):len(data)], 0xff, 0xd9)))
	}
	if err != nil {
		var unsupported jpeg.UnsupportedError
		if errors.As(err, &unsupported) {
			return nil, &Error{Kind: KindUnsupported, Format: string(JPEG), Err: err}
		}
		failure := decodeError(JPEG, err)
		if !bytes.Contains(data[len(data)-min(len(data), 64):], []byte{0xff, 0xd9}) {
			failure.Kind = KindTruncated // the decoder calls a scan that just stops a bad Huffman code
		}
		return nil, failure
	}
	switch m := m.(type) {
	case *image.YCbCr:
		return fromJPEG(m)
	case *image.RGBA:
		return fromRGBA(m), nil
	}
	return fromImage(JPEG, m)
}

// fromRGBA undoes the premultiplication of image.RGBA, as Pillow's "RGBa" does: 255·c/a, rounded down.
func fromRGBA(m *image.RGBA) *RGB {
	out := NewRGB(m.Rect.Dx(), m.Rect.Dy())
	for y := range out.Height {
		src, dst := m.Pix[y*m.Stride:], out.Row(y)
		for x := range out.Width {
			s, d := src[4*x:4*x+4:4*x+4], dst[3*x:3*x+3:3*x+3]
			switch a := int32(s[3]); a {
			case 255:
				d[0], d[1], d[2] = s[0], s[1], s[2]
			case 0:
			default:
				d[0], d[1], d[2] = clamp8(255*int32(s[0])/a), clamp8(255*int32(s[1])/a), clamp8(255*int32(s[2])/a)
			}
		}
	}
	return out
}

// fromImage converts what a decoder returned without ever going through premultiplied colour.
func fromImage(format Format, m image.Image) (*RGB, error) {
	b := m.Bounds()
	if b.Min != (image.Point{}) || b.Empty() {
		return nil, failf(KindCorrupt, format, "decoded to bounds %v", b)
	}
	out := NewRGB(b.Dx(), b.Dy())
	switch m := m.(type) {
	case *image.Gray:
		eachRow(out, m.Pix, m.Stride, 1, func(d, s []uint8) { d[0], d[1], d[2] = s[0], s[0], s[0] })
	case *image.Gray16:
		eachRow(out, m.Pix, m.Stride, 2, func(d, s []uint8) {
			v := s[1]
			if s[0] != 0 {
				v = 255 // Pillow's conversion of mode "I;16" clamps where one would expect it to scale
			}
			d[0], d[1], d[2] = v, v, v
		})
	case *image.RGBA: // of PNG: opaque
		eachRow(out, m.Pix, m.Stride, 4, func(d, s []uint8) { d[0], d[1], d[2] = s[0], s[1], s[2] })
	case *image.NRGBA:
		eachRow(out, m.Pix, m.Stride, 4, func(d, s []uint8) { d[0], d[1], d[2] = s[0], s[1], s[2] })
	case *image.RGBA64:
		eachRow(out, m.Pix, m.Stride, 8, func(d, s []uint8) { d[0], d[1], d[2] = s[0], s[2], s[4] })
	case *image.NRGBA64:
		eachRow(out, m.Pix, m.Stride, 8, func(d, s []uint8) { d[0], d[1], d[2] = s[0], s[2], s[4] })
	case *image.CMYK:
		eachRow(out, m.Pix, m.Stride, 4, func(d, s []uint8) {
			paper := uint32(255 - s[3])
			d[0], d[1], d[2] = inked(s[0], paper), inked(s[1], paper), inked(s[2], paper)
		})
	case *image.Paletted:
		palette := opaquePalette(m.Palette)
		eachRow(out, m.Pix, m.Stride, 1, func(d, s []uint8) {
			c := &palette[s[0]]
			d[0], d[1], d[2] = c[0], c[1], c[2]
		})
	default:
		return nil, failf(KindUnsupported, format, "colour model %T", m)
	}
	return out, nil
}

func eachRow(out *RGB, pix []uint8, stride, size int, convert func(dst, src []uint8)) {
	for y := range out.Height {
		src, dst := pix[y*stride:], out.Row(y)
		for x := range out.Width {
			convert(dst[3*x:3*x+3:3*x+3], src[size*x:size*x+size])
		}
	}
}

// inked is the light left of a sheet of white level paper under ink c: Pillow's cmyk2rgb with its division by 255.
func inked(c uint8, paper uint32) uint8 {
	t := uint32(c)*paper + 128
	return uint8(paper - (t>>8+t)>>8)
}

// opaquePalette lists the colours of a palette as they are where alpha is ignored; unused indices are black.
func opaquePalette(palette color.Palette) (out [256][3]uint8) {
	for i, c := range palette[:min(len(palette), 256)] {
		switch c := c.(type) {
		case color.NRGBA:
			out[i] = [3]uint8{c.R, c.G, c.B}
		default:
			r, g, b, _ := c.RGBA()
			out[i] = [3]uint8{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8)}
		}
	}
	return out
}

package preprocess

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/image/vp8"
	"golang.org/x/image/vp8l"
)

// webpFrame is the first frame of a WebP: one bit stream and where it lies on the canvas. The alpha plane of lossy
// frames is a chunk of its own, which nobody here needs to decode. (WebP container specification; RFC 9649.)
type webpFrame struct {
	lossless      bool
	stream        []byte
	x, y          int
	width, height int
}

func uint24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

func webpHeader(data []byte, info *Info) error {
	_, err := walkWebP(data, info)
	return err
}

// walkWebP fills info and finds the first frame.
func walkWebP(data []byte, info *Info) (*webpFrame, error) {
	var frame *webpFrame
	canvas := false
	frames := 0
	for rest := data[12:]; len(rest) > 0; {
		name, body, after, ok := webpChunk(rest)
		if !ok {
			break
		}
		rest = after
		switch name {
		case "VP8X":
			if len(body) < 10 {
				return nil, truncated(WebP, "header")
			}
			canvas = true
			info.Width, info.Height = uint24(body[4:])+1, uint24(body[7:])+1
		case "VP8 ", "VP8L":
			if frame == nil {
				frame = &webpFrame{lossless: name == "VP8L", stream: body}
			}
		case "ANMF":
			frames++
			if frame == nil {
				f, err := animationFrame(body)
				if err != nil {
					return nil, err
				}
				frame = f
			}
		case "EXIF":
			info.Orientation = exifOrientation(body)
		}
	}
	info.Frames = max(1, frames)
	if frame == nil {
		return nil, truncated(WebP, "first frame")
	}
	if err := frame.size(); err != nil {
		return nil, err
	}
	if !canvas {
		info.Width, info.Height = frame.width, frame.height
	}
	if frames == 0 && (frame.width != info.Width || frame.height != info.Height) || frame.x+frame.width > info.Width || frame.y+frame.height > info.Height {
		return nil, failf(KindCorrupt, WebP, "a frame of %d×%d at (%d, %d) on a canvas of %d×%d", frame.width, frame.height, frame.x, frame.y, info.Width, info.Height)
	}
	return frame, nil
}

// webpChunk splits off the first RIFF chunk. A chunk that the file cuts short is returned as far as it goes: the
// decoder of its stream says what is missing.
func webpChunk(data []byte) (name string, body, rest []byte, ok bool) {
	if len(data) < 8 {
		return "", nil, nil, false
	}
	n := int64(binary.LittleEndian.Uint32(data[4:]))
	body = data[8:]
	if n >= int64(len(body)) {
		return string(data[:4]), body, nil, true
	}
	rest = body[n:]
	if n&1 == 1 {
		rest = rest[1:]
	}
	return string(data[:4]), body[:n], rest, true
}

func animationFrame(body []byte) (*webpFrame, error) {
	if len(body) < 16 {
		return nil, truncated(WebP, "first frame")
	}
	f := &webpFrame{x: 2 * uint24(body), y: 2 * uint24(body[3:])}
	for rest := body[16:]; ; {
		name, chunk, after, ok := webpChunk(rest)
		if !ok {
			return nil, truncated(WebP, "first frame")
		}
		if name == "VP8 " || name == "VP8L" {
			f.lossless, f.stream = name == "VP8L", chunk
			return f, nil
		}
		rest = after
	}
}

// size reads the frame's size from its bit stream: the one that the decoder will allocate.
func (f *webpFrame) size() error {
	s := f.stream
	if f.lossless {
		if len(s) < 5 {
			return truncated(WebP, "first frame")
		}
		bits := binary.LittleEndian.Uint32(s[1:])
		f.width, f.height = int(bits&0x3fff)+1, int(bits>>14&0x3fff)+1
		return nil
	}
	if len(s) < 10 {
		return truncated(WebP, "first frame")
	}
	if s[0]&1 != 0 || s[3] != 0x9d || s[4] != 0x01 || s[5] != 0x2a {
		return failf(KindCorrupt, WebP, "its first frame is no VP8 key frame")
	}
	f.width, f.height = int(binary.LittleEndian.Uint16(s[6:]))&0x3fff, int(binary.LittleEndian.Uint16(s[8:]))&0x3fff
	return nil
}

// decodeWebP decodes the first frame and lays it on a black canvas, as Pillow does when alpha is dropped.
func decodeWebP(data []byte, info Info) (*RGB, error) {
	frame, err := walkWebP(data, &info)
	if err != nil {
		return nil, err
	}
	picture, err := frame.decode()
	if err != nil {
		return nil, err
	}
	if picture.Width == info.Width && picture.Height == info.Height {
		return picture, nil
	}
	out := NewRGB(info.Width, info.Height)
	for y := range picture.Height {
		copy(out.Row(frame.y + y)[3*frame.x:], picture.Row(y))
	}
	return out, nil
}

func (f *webpFrame) decode() (*RGB, error) {
	r := bytes.NewReader(f.stream)
	if f.lossless {
		m, err := vp8l.Decode(r)
		if err != nil {
			return nil, decodeError(WebP, err)
		}
		return fromImage(WebP, m)
	}
	d := vp8.NewDecoder()
	d.Init(r, len(f.stream))
	if _, err := d.DecodeFrameHeader(); err != nil {
		return nil, decodeError(WebP, err)
	}
	m, err := d.DecodeFrame()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, decodeError(WebP, err)
	}
	return fromVP8(m)
}

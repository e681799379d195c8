package preprocess

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/gif"
)

// gifFrame is where the first frame of a GIF lies in its file, and the colours it uses. (GIF89a specification.)
type gifFrame struct {
	bounds      image.Rectangle
	palette     []byte // RGB triples: the frame's own or the file's; nil when there is neither
	descriptor  []byte // the 10 bytes of the image descriptor
	data        []byte // from the LZW code size to the block terminator or the end of the file
	transparent int    // palette index, -1 for none
}

// gifHeader counts frames by their block structure. The canvas is the logical screen, grown where the first frame
// reaches over its edge, as Pillow does.
func gifHeader(data []byte, info *Info) error {
	frame, frames, err := walkGIF(data)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	info.Width = max(int(le.Uint16(data[6:])), frame.bounds.Max.X)
	info.Height = max(int(le.Uint16(data[8:])), frame.bounds.Max.Y)
	info.Frames = frames
	return nil
}

func walkGIF(data []byte) (first gifFrame, frames int, err error) {
	if len(data) < 13 {
		return first, 0, truncated(GIF, "header")
	}
	rest := data[13:]
	var global []byte
	if flags := data[10]; flags&0x80 != 0 {
		n := 3 << (1 + flags&7)
		if len(rest) < n {
			return first, 0, truncated(GIF, "colour table")
		}
		global, rest = rest[:n], rest[n:]
	}
	first.transparent = -1
	for len(rest) > 0 {
		kind := rest[0]
		switch {
		case kind == 0x21 && len(rest) >= 2:
			if frames == 0 && rest[1] == 0xf9 && len(rest) >= 7 && rest[2] >= 4 && rest[3]&1 != 0 {
				first.transparent = int(rest[6])
			}
			_, rest = subBlocks(rest[2:])
		case kind == 0x2c:
			if len(rest) < 10 {
				rest = nil
				break
			}
			descriptor := rest[:10]
			rest = rest[10:]
			palette := global
			if flags := descriptor[9]; flags&0x80 != 0 {
				n := 3 << (1 + flags&7)
				if len(rest) < n {
					rest = nil
					break
				}
				palette, rest = rest[:n], rest[n:]
			}
			if len(rest) == 0 {
				break
			}
			frames++
			blocks, after := subBlocks(rest[1:])
			if frames == 1 {
				first.descriptor, first.palette, first.data = descriptor, palette, rest[:1+len(blocks)]
			}
			rest = after
		case kind == 0x3b:
			rest = nil
		default:
			rest = rest[1:] // Pillow, too, looks on
		}
	}
	if frames == 0 {
		return first, 0, truncated(GIF, "first frame")
	}
	le := binary.LittleEndian
	x, y := int(le.Uint16(first.descriptor[1:])), int(le.Uint16(first.descriptor[3:]))
	first.bounds = image.Rect(x, y, x+int(le.Uint16(first.descriptor[5:])), y+int(le.Uint16(first.descriptor[7:])))
	return first, frames, nil
}

// subBlocks splits off a chain of length-prefixed blocks with its terminator.
func subBlocks(data []byte) (blocks, rest []byte) {
	i := 0
	for i < len(data) {
		n := int(data[i])
		i += 1 + n
		if n == 0 {
			break
		}
	}
	i = min(i, len(data))
	return data[:i], data[i:]
}

// decodeGIF decodes the first frame and lays it on its canvas. The decoder gets a file of our own making that holds
// this frame alone and has no transparency: image/gif would otherwise forget the colour of transparent pixels, which
// stays visible when alpha is dropped. The rest of the canvas has the transparent index if there is one, otherwise index 0.
func decodeGIF(data []byte, info Info) (*RGB, error) {
	frame, _, err := walkGIF(data)
	if err != nil {
		return nil, err
	}
	out := NewRGB(info.Width, info.Height)
	palette := frame.palette
	if palette == nil { // Pillow takes the indices for grey levels
		palette = make([]byte, 3*256)
		for i := range palette {
			palette[i] = uint8(i / 3)
		}
	}
	if i := 3 * max(frame.transparent, 0); i+3 <= len(palette) {
		fill(out.Pix, [3]uint8{palette[i], palette[i+1], palette[i+2]})
	}
	if frame.bounds.Empty() {
		return out, nil
	}
	bits := 0
	for 3<<(1+bits) < len(palette) {
		bits++
	}
	size := frame.bounds.Size()
	le := binary.LittleEndian
	alone := make([]byte, 0, 32+len(palette)+len(frame.data))
	alone = append(alone, "GIF89a"...)
	alone = le.AppendUint16(alone, uint16(size.X))
	alone = le.AppendUint16(alone, uint16(size.Y))
	alone = append(alone, 0x80|uint8(bits), 0, 0)
	alone = append(alone, palette...)
	alone = append(alone, 0x2c, 0, 0, 0, 0)
	alone = le.AppendUint16(alone, uint16(size.X))
	alone = le.AppendUint16(alone, uint16(size.Y))
	alone = append(alone, frame.descriptor[9]&0x40) // interlaced or not
	alone = append(alone, frame.data...)
	alone = append(alone, 0x3b)
	m, err := gif.Decode(bytes.NewReader(alone))
	if err != nil {
		if frame.cutShort() {
			return nil, &Error{Kind: KindTruncated, Format: string(GIF), Err: err}
		}
		return nil, decodeError(GIF, err)
	}
	p, ok := m.(*image.Paletted)
	if !ok {
		return nil, failf(KindCorrupt, GIF, "decoded to %T", m)
	}
	for y := range size.Y {
		row := out.Row(frame.bounds.Min.Y + y)[3*frame.bounds.Min.X:]
		for x, index := range p.Pix[y*p.Stride : y*p.Stride+size.X] {
			copy(row[3*x:3*x+3], palette[min(3*int(index), len(palette)-3):])
		}
	}
	return out, nil
}

// cutShort reports whether the file ended before the frame's data did.
func (f gifFrame) cutShort() bool {
	blocks := f.data[1:]
	for len(blocks) > 0 {
		n := int(blocks[0])
		if n == 0 {
			return false
		}
		if n+1 > len(blocks) {
			return true
		}
		blocks = blocks[n+1:]
	}
	return true
}

package preprocess

import (
	"bytes"
	"encoding/binary"
)

// EXIF is a TIFF file inside another: a byte order mark, the offset of a first directory, and in it 12-byte entries.
// One entry matters here. (TIFF 6.0, section 2; Exif 2.32, section 4.6.4.) The copies of it that XMP packets and
// ImageMagick's text chunks hold are not read.

const (
	tagOrientation = 0x0112

	typeByte  = 1
	typeShort = 3
	typeLong  = 4
)

// exifOrientation returns the orientation that an EXIF block gives, and 1 when it gives none or cannot be read: a
// picture is worth showing although its camera wrote nonsense beside it.
func exifOrientation(data []byte) int {
	data = bytes.TrimPrefix(data, []byte("Exif\x00\x00"))
	dir, ok := readDirectory(data)
	if !ok {
		return 1
	}
	return dir.orientation(dir.offset)
}

// directories reads the image file directories of a TIFF structure.
type directories struct {
	data   []byte
	order  binary.ByteOrder
	offset uint32 // of the first directory
}

func readDirectory(data []byte) (directories, bool) {
	if len(data) < 8 {
		return directories{}, false
	}
	d := directories{data: data}
	switch string(data[:4]) {
	case "II*\x00":
		d.order = binary.LittleEndian
	case "MM\x00*":
		d.order = binary.BigEndian
	default:
		return directories{}, false
	}
	d.offset = d.order.Uint32(data[4:])
	return d, true
}

// entries returns the raw 12-byte entries of the directory at offset that lie inside the data, whether all of them do,
// and the offset of the next directory (0 for none).
func (d directories) entries(offset uint32) (entries []byte, whole bool, next uint32) {
	if int64(offset)+2 > int64(len(d.data)) {
		return nil, false, 0
	}
	rest := d.data[offset:]
	n := 12 * int(d.order.Uint16(rest))
	rest = rest[2:]
	if n > len(rest) {
		return rest[:len(rest)/12*12], false, 0
	}
	if len(rest) >= n+4 {
		next = d.order.Uint32(rest[n:])
	}
	return rest[:n], true, next
}

// value returns the single number that an entry holds in itself.
func (d directories) value(entry []byte) (uint32, bool) {
	if d.order.Uint32(entry[4:]) != 1 { // count
		return 0, false
	}
	switch d.order.Uint16(entry[2:]) {
	case typeByte:
		return uint32(entry[8]), true
	case typeShort:
		return uint32(d.order.Uint16(entry[8:])), true
	case typeLong:
		return d.order.Uint32(entry[8:]), true
	}
	return 0, false
}

// number returns the value of a tag in the directory at offset.
func (d directories) number(offset uint32, tag uint16) (uint32, bool) {
	entries, _, _ := d.entries(offset)
	for ; len(entries) >= 12; entries = entries[12:] {
		if d.order.Uint16(entries) == tag {
			return d.value(entries)
		}
	}
	return 0, false
}

// sum adds up all values of a tag in the directory at offset, as far as they lie inside the data.
func (d directories) sum(offset uint32, tag uint16) (total int64) {
	entries, _, _ := d.entries(offset)
	for ; len(entries) >= 12; entries = entries[12:] {
		if d.order.Uint16(entries) != tag {
			continue
		}
		size := int64(4)
		if d.order.Uint16(entries[2:]) == typeShort {
			size = 2
		}
		n := size * int64(d.order.Uint32(entries[4:]))
		values := entries[8:12]
		if n > 4 {
			at := min(int64(d.order.Uint32(values)), int64(len(d.data)))
			values = d.data[at:]
		}
		for values = values[:min(n, int64(len(values)))]; int64(len(values)) >= size; values = values[size:] {
			if size == 2 {
				total += int64(d.order.Uint16(values))
			} else {
				total += int64(d.order.Uint32(values))
			}
		}
	}
	return total
}

func (d directories) orientation(offset uint32) int {
	if v, ok := d.number(offset, tagOrientation); ok && v >= 1 && v <= 8 {
		return int(v)
	}
	return 1
}

// upright turns a picture so that what the camera called up is up. Orientation is EXIF's: 1 as it is, 2 mirrored
// left to right, 3 half a turn, 4 mirrored top to bottom, 5 transposed, 6 to be turned right by a quarter,
// 7 transposed along the other diagonal, 8 to be turned left by a quarter.
func upright(p *RGB, orientation int) *RGB {
	if orientation <= 1 || orientation > 8 {
		return p
	}
	w, h := p.Width, p.Height
	out := &RGB{Width: w, Height: h, Pix: make([]uint8, len(p.Pix))}
	// The pixel (x, y) of the result is at origin + x*right + y*down in the source.
	var origin, right, down int
	switch orientation {
	case 2:
		origin, right, down = w-1, -1, w
	case 3:
		origin, right, down = w*h-1, -1, -w
	case 4:
		origin, right, down = w*(h-1), 1, -w
	case 5:
		origin, right, down = 0, w, 1
	case 6:
		origin, right, down = w*(h-1), -w, 1
	case 7:
		origin, right, down = w*h-1, -w, -1
	case 8:
		origin, right, down = w-1, w, -1
	}
	if orientation >= 5 {
		out.Width, out.Height = h, w
	}
	o := 0
	for y := range out.Height {
		at := 3 * (origin + y*down)
		for range out.Width {
			s := p.Pix[at : at+3 : at+3]
			d := out.Pix[o : o+3 : o+3]
			d[0], d[1], d[2] = s[0], s[1], s[2]
			o += 3
			at += 3 * right
		}
	}
	return out
}

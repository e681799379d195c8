package preprocess

import (
	"bytes"
	"errors"
	"image"

	"golang.org/x/image/tiff"
)

// TIFF tags that decide what is read. (TIFF 6.0.)
const (
	tagImageWidth      = 0x0100
	tagImageLength     = 0x0101
	tagSamplesPerPixel = 0x0115
	tagStripByteCounts = 0x0117
	tagPlanarConfig    = 0x011c
	tagTileByteCounts  = 0x0145
)

// maxPages bounds the walk along the directories of a TIFF, which may be a ring.
const maxPages = 1 << 16

func tiffHeader(data []byte, info *Info) error {
	d, ok := readDirectory(data)
	if !ok {
		return truncated(TIFF, "header")
	}
	_, whole, next := d.entries(d.offset)
	if !whole {
		return truncated(TIFF, "directory")
	}
	width, hasWidth := d.number(d.offset, tagImageWidth)
	height, hasHeight := d.number(d.offset, tagImageLength)
	if !hasWidth || !hasHeight {
		return failf(KindCorrupt, TIFF, "its first directory gives no size")
	}
	info.Width, info.Height = int(width), int(height)
	info.Orientation = d.orientation(d.offset)
	samples, _ := d.number(d.offset, tagSamplesPerPixel)
	planar, _ := d.number(d.offset, tagPlanarConfig)
	info.planar = planar == 2 && samples > 1
	// Strips and tiles that all lie on the same bytes would make a small file cost as much as a huge one.
	if n := d.sum(d.offset, tagStripByteCounts) + d.sum(d.offset, tagTileByteCounts); n > 2*int64(len(data)) {
		return failf(KindCorrupt, TIFF, "its strips or tiles have %d bytes in a file of %d", n, len(data))
	}
	for next != 0 && info.Frames < maxPages {
		var whole bool
		if _, whole, next = d.entries(next); !whole {
			break
		}
		info.Frames++
	}
	return nil
}

func decodeTIFF(data []byte, info Info) (*RGB, error) {
	if info.planar {
		return nil, failf(KindUnsupported, TIFF, "one plane a channel (PlanarConfiguration 2)")
	}
	m, err := tiff.Decode(bytes.NewReader(data))
	if err != nil {
		var unsupported tiff.UnsupportedError
		if errors.As(err, &unsupported) {
			return nil, &Error{Kind: KindUnsupported, Format: string(TIFF), Err: err}
		}
		return nil, decodeError(TIFF, err)
	}
	if premultiplied, ok := m.(*image.RGBA); ok {
		return fromRGBA(premultiplied), nil
	}
	return fromImage(TIFF, m)
}

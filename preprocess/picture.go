package preprocess

import "fmt"

// RGB is a picture in memory: 8 bits a channel, interleaved, rows without gaps.
// The pixel at (x, y) is Pix[3*(y*Width+x) : +3], in the order R, G, B.
type RGB struct {
	Width, Height int
	Pix           []uint8
}

// NewRGB returns a black picture.
func NewRGB(width, height int) *RGB {
	return &RGB{Width: width, Height: height, Pix: make([]uint8, 3*width*height)}
}

// Row returns the 3*Width bytes of row y.
func (p *RGB) Row(y int) []uint8 {
	n := 3 * p.Width
	return p.Pix[y*n : (y+1)*n : (y+1)*n]
}

// check refuses a picture whose fields disagree; every exported function that takes one calls it, so that a caller's
// mistake is an error and not a panic deep in a loop.
func (p *RGB) check() error {
	if p == nil || p.Width <= 0 || p.Height <= 0 {
		return fmt.Errorf("picture has no pixels")
	}
	if len(p.Pix) != 3*p.Width*p.Height {
		return fmt.Errorf("picture of %d×%d has %d bytes of pixels, want %d", p.Width, p.Height, len(p.Pix), 3*p.Width*p.Height)
	}
	return nil
}

// Limits bound what a picture may ask for. They are checked against its header, before any pixel memory is allocated.
// The zero value of a field means its default.
type Limits struct {
	// MaxBytes is the largest encoded size. Default 64 MiB.
	MaxBytes int64
	// MaxPixels is the largest width × height. Default 89,478,485, where Pillow starts to warn of decompression
	// bombs (a quarter GiB of RGB). Peak memory while decoding is about 10 bytes a pixel, 16 for progressive JPEG
	// and for 16 bits a channel.
	MaxPixels int64
	// MaxEdge is the largest width or height. Default 65,535, the most that a JPEG can say.
	MaxEdge int
}

// Default limits.
const (
	DefaultMaxBytes  = 64 << 20
	DefaultMaxPixels = 89_478_485
	DefaultMaxEdge   = 65_535
)

func (l Limits) withDefaults() Limits {
	if l.MaxBytes == 0 {
		l.MaxBytes = DefaultMaxBytes
	}
	if l.MaxPixels == 0 {
		l.MaxPixels = DefaultMaxPixels
	}
	if l.MaxEdge == 0 {
		l.MaxEdge = DefaultMaxEdge
	}
	return l
}

func (l Limits) checkBytes(n int64) error {
	if n > l.MaxBytes {
		return failf(KindTooLarge, "", "%d bytes; the limit is %d", n, l.MaxBytes)
	}
	return nil
}

func (l Limits) checkSize(format Format, width, height int) error {
	switch {
	case width <= 0 || height <= 0:
		return failf(KindCorrupt, format, "its header says %d×%d pixels", width, height)
	case width > l.MaxEdge || height > l.MaxEdge:
		return failf(KindTooLarge, format, "%d×%d pixels; the limit for an edge is %d", width, height, l.MaxEdge)
	case int64(width) > l.MaxPixels/int64(height):
		return failf(KindTooLarge, format, "%d×%d pixels; the limit is %d pixels", width, height, l.MaxPixels)
	}
	return nil
}

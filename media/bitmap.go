package media

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// bitmap wraps pixels, 3 bytes each in the order R, G, B, as a BMP file: lossless, and quick to read again.
func bitmap(width, height int, rgb []byte) []byte {
	const header = 54
	stride := (3*width + 3) &^ 3
	out := make([]byte, header+stride*height)
	le := binary.LittleEndian
	copy(out, "BM")
	le.PutUint32(out[2:], uint32(len(out)))
	le.PutUint32(out[10:], header)
	le.PutUint32(out[14:], 40)
	le.PutUint32(out[18:], uint32(width))
	le.PutUint32(out[22:], uint32(height))
	le.PutUint16(out[26:], 1)
	le.PutUint16(out[28:], 24)
	le.PutUint32(out[34:], uint32(stride*height))
	for y := range height {
		row := out[header+(height-1-y)*stride:]
		for x := range width {
			s := rgb[3*(y*width+x):]
			row[3*x], row[3*x+1], row[3*x+2] = s[2], s[1], s[0]
		}
	}
	return out
}

// readPPM reads one picture of a stream of binary PPM files (P6, 255 levels). At the end of the stream the error is io.EOF.
func readPPM(r *bufio.Reader, maxPixels int64) (width, height int, rgb []byte, err error) {
	var magic string
	var levels int
	if _, err := r.Peek(1); err != nil {
		return 0, 0, nil, err
	}
	if _, err := fmt.Fscanf(r, "%2s\n%d %d\n%d", &magic, &width, &height, &levels); err != nil {
		return 0, 0, nil, fmt.Errorf("frame header: %w", noEOF(err))
	}
	if _, err := r.ReadByte(); err != nil {
		return 0, 0, nil, fmt.Errorf("frame header: %w", noEOF(err))
	}
	if magic != "P6" || levels != 255 || width < 1 || height < 1 || int64(width) > maxPixels/int64(height) {
		return 0, 0, nil, fmt.Errorf("frame of %d×%d pixels, %q with %d levels; at most %d pixels fit the limit", width, height, magic, levels, maxPixels)
	}
	rgb = make([]byte, 3*width*height)
	if _, err := io.ReadFull(r, rgb); err != nil {
		return 0, 0, nil, fmt.Errorf("frame: %w", noEOF(err))
	}
	return width, height, rgb, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

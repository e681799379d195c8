package preprocess

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
)

// Format names a picture format.
type Format string

// The formats that Decode reads.
const (
	PNG  Format = "png"
	JPEG Format = "jpeg"
	WebP Format = "webp"
	GIF  Format = "gif"
	BMP  Format = "bmp"
	TIFF Format = "tiff"
)

// Info is what a picture's header says.
type Info struct {
	Format        Format
	Width, Height int // in pixels, as stored: orientations 5 to 8 swap them when the picture is turned upright
	Orientation   int // EXIF's, 1 to 8; 1 where the file says nothing
	Frames        int // of an animation or a multi-page file; at least 1. Only the first is ever decoded.

	progressive bool // JPEG
	scans       int  // JPEG: up to the end marker
	planar      bool // TIFF: one plane a channel
	cut         bool // PNG: the file ends before its last chunk does
}

// Upright returns the size after the orientation has been applied.
func (i Info) Upright() (width, height int) {
	if i.Orientation >= 5 {
		return i.Height, i.Width
	}
	return i.Width, i.Height
}

// Header reads sizes, orientation and frame count of a picture without decoding any pixel. It reads r to its end (some
// formats keep the orientation there), but no more than DefaultMaxBytes. It takes any size that the format can say: what
// is too large is for Decode and its Limits to decide.
func Header(r io.Reader) (Info, error) {
	data, err := io.ReadAll(io.LimitReader(r, DefaultMaxBytes+1))
	if err != nil {
		return Info{}, err
	}
	if err := (Limits{}).withDefaults().checkBytes(int64(len(data))); err != nil {
		return Info{}, err
	}
	return readHeader(data)
}

// readHeader walks the file's own structure and touches each byte at most once.
func readHeader(data []byte) (Info, error) {
	format, err := sniff(data)
	if err != nil {
		return Info{}, err
	}
	info := Info{Format: format, Orientation: 1, Frames: 1}
	switch format {
	case PNG:
		err = pngHeader(data, &info)
	case JPEG:
		err = jpegHeader(data, &info)
	case WebP:
		err = webpHeader(data, &info)
	case GIF:
		err = gifHeader(data, &info)
	case BMP:
		err = bmpHeader(data, &info)
	case TIFF:
		err = tiffHeader(data, &info)
	}
	if err != nil {
		return Info{}, err
	}
	if info.Width <= 0 || info.Height <= 0 {
		return Info{}, failf(KindCorrupt, format, "its header says %d×%d pixels", info.Width, info.Height)
	}
	return info, nil
}

const pngSignature = "\x89PNG\r\n\x1a\n"

// strangers are formats that people send and that are not read here: naming them beats "not a picture".
var strangers = []struct{ prefix, name string }{
	{"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"}, {"\xff\x0a", "JPEG XL"},
	{"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"}, {"\xff\x4f\xff\x51", "JPEG 2000"},
	{"8BPS", "Photoshop"}, {"%PDF-", "PDF"}, {"\x00\x00\x01\x00", "icon"}, {"qoif", "QOI"}, {"v/1\x01", "OpenEXR"},
	{"II+\x00", "BigTIFF"}, {"MM\x00+", "BigTIFF"}, {"II\xbc\x01", "JPEG XR"}, {"<svg", "SVG"},
}

func sniff(data []byte) (Format, error) {
	head := string(data[:min(len(data), 16)])
	at := func(offset int, want string) bool {
		return len(head) > offset && strings.HasPrefix(head[offset:], want)
	}
	switch {
	case len(data) == 0:
		return "", failf(KindNotPicture, "", "it is empty")
	case at(0, pngSignature):
		return PNG, nil
	case at(0, "\xff\xd8\xff"):
		return JPEG, nil
	case at(0, "RIFF") && at(8, "WEBP"):
		return WebP, nil
	case at(0, "GIF87a"), at(0, "GIF89a"):
		return GIF, nil
	case at(0, "BM"):
		return BMP, nil
	case at(0, "II*\x00"), at(0, "MM\x00*"):
		return TIFF, nil
	case at(4, "ftypavif"), at(4, "ftypavis"):
		return "", unread("AVIF")
	case at(4, "ftyphei"), at(4, "ftyphev"), at(4, "ftypmif1"):
		return "", unread("HEIC")
	case len(head) > 1 && head[0] == 'P' && head[1] >= '1' && head[1] <= '7' && len(head) > 2 && strings.ContainsRune(" \n\r\t", rune(head[2])):
		return "", unread("PNM")
	}
	for _, s := range strangers {
		if at(0, s.prefix) {
			return "", unread(s.name)
		}
	}
	for _, signature := range []string{pngSignature, "\xff\xd8\xff", "GIF89a", "GIF87a"} {
		if len(head) >= 2 && strings.HasPrefix(signature, head) {
			return "", failf(KindTruncated, "", "only %d bytes", len(data))
		}
	}
	return "", failf(KindNotPicture, "", "it starts with %q; read are PNG, JPEG, WebP, GIF, BMP and TIFF", head)
}

func unread(name string) error {
	return failf(KindUnsupported, "", "%s is not read here; convert it to PNG, JPEG or WebP", name)
}

func truncated(format Format, what string) error {
	return failf(KindTruncated, format, "the file ends inside its %s", what)
}

// pngHeader reads IHDR and looks through the other chunks' names for eXIf and acTL. The walk stops quietly where the
// chunks stop making sense: what pixels there are is for the decoder to say. (PNG's third edition, section 11.)
func pngHeader(data []byte, info *Info) error {
	if len(data) < 33 {
		return truncated(PNG, "header")
	}
	if string(data[12:16]) != "IHDR" {
		return failf(KindCorrupt, PNG, "its first chunk is %q, not IHDR", data[12:16])
	}
	be := binary.BigEndian
	width, height := be.Uint32(data[16:]), be.Uint32(data[20:])
	if width > 1<<31-1 || height > 1<<31-1 {
		return failf(KindCorrupt, PNG, "its header says %d×%d pixels", width, height)
	}
	info.Width, info.Height = int(width), int(height)
	info.cut = true
	for rest := data[33:]; len(rest) >= 12; {
		n := int64(be.Uint32(rest))
		if n > int64(len(rest)-12) {
			break
		}
		body := rest[8 : 8+n]
		switch string(rest[4:8]) {
		case "eXIf":
			info.Orientation = exifOrientation(body)
		case "acTL":
			if len(body) >= 4 {
				info.Frames = max(1, int(be.Uint32(body)))
			}
		case "IEND":
			info.cut = false
			return nil
		}
		rest = rest[12+n:]
	}
	return nil
}

// jpegHeader walks the marker segments up to the first scan. (ITU-T T.81, annex B; the EXIF segment is JEITA CP-3451's.)
func jpegHeader(data []byte, info *Info) error {
	be := binary.BigEndian
	seenEXIF := false
	for rest := data[2:]; ; {
		start := bytes.IndexByte(rest, 0xff) // libjpeg, too, skips what it does not know between segments
		if start < 0 {
			return truncated(JPEG, "header")
		}
		for rest = rest[start:]; len(rest) > 0 && rest[0] == 0xff; { // any number of fill bytes
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return truncated(JPEG, "header")
		}
		marker := rest[0]
		rest = rest[1:]
		if marker == 0 || marker == 0x01 || marker >= 0xd0 && marker <= 0xd8 {
			continue // no segment follows
		}
		if marker == 0xd9 {
			break
		}
		if marker == 0xda {
			info.scans = countScans(rest)
			break
		}
		if len(rest) < 2 {
			return truncated(JPEG, "header")
		}
		n := int(be.Uint16(rest))
		if n < 2 {
			return failf(KindCorrupt, JPEG, "segment %#x has length %d", marker, n)
		}
		if n > len(rest) {
			return truncated(JPEG, "header")
		}
		body := rest[2:n]
		rest = rest[n:]
		switch {
		case marker == 0xe1 && !seenEXIF && bytes.HasPrefix(body, []byte("Exif\x00\x00")):
			seenEXIF = true
			info.Orientation = exifOrientation(body)
		case marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc: // start of frame
			if marker > 0xc2 {
				return failf(KindUnsupported, JPEG, "frame type SOF%d (lossless, hierarchical or arithmetic-coded)", marker-0xc0)
			}
			if len(body) < 6 {
				return failf(KindCorrupt, JPEG, "its frame header has %d bytes", len(body))
			}
			info.progressive = marker == 0xc2
			info.Height, info.Width = int(be.Uint16(body[1:])), int(be.Uint16(body[3:]))
			if info.Height == 0 && info.Width > 0 {
				return failf(KindUnsupported, JPEG, "its height is given after the first scan (DNL)")
			}
		}
	}
	if info.Width == 0 {
		return failf(KindCorrupt, JPEG, "no frame header before the first scan")
	}
	return nil
}

// countScans counts the scan that begins in front of rest, and those after it up to the end marker. What follows that
// (phones append videos) does not count.
func countScans(rest []byte) int {
	for n := 1; ; {
		start := bytes.IndexByte(rest, 0xff)
		if start < 0 || start+4 > len(rest) {
			return n
		}
		marker := rest[start+1]
		rest = rest[start+1:]
		switch {
		case marker == 0xd9:
			return n
		case marker == 0xff: // fill: look at the next byte
			continue
		case marker <= 0x01 || marker >= 0xd0 && marker <= 0xd8: // a byte of the scan, or a marker without a segment
			rest = rest[1:]
			continue
		case marker == 0xda:
			n++
		}
		rest = rest[min(len(rest), 1+int(binary.BigEndian.Uint16(rest[1:]))):]
	}
}

// bmpHeader reads BITMAPINFOHEADER and its successors. (Windows GDI: bitmap file header, info header.)
func bmpHeader(data []byte, info *Info) error {
	if len(data) < 18 {
		return truncated(BMP, "header")
	}
	le := binary.LittleEndian
	size := le.Uint32(data[14:])
	switch {
	case size != 40 && size != 108 && size != 124:
		if size < 12 || size > 200 {
			return failf(KindNotPicture, "", `it starts with "BM" but has no bitmap header`)
		}
		return failf(KindUnsupported, BMP, "info header of %d bytes", size)
	case len(data) < 14+int(size):
		return truncated(BMP, "header")
	}
	width, height := int32(le.Uint32(data[18:])), int32(le.Uint32(data[22:]))
	if height < 0 {
		height = -height // rows from the top; the most negative value stays negative and is refused as a size
	}
	info.Width, info.Height = int(width), int(height)
	return nil
}

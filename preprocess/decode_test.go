package preprocess

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/jpeg"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/image/tiff"
)

func testPicture(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "pictures", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pngHeaderOnly is a PNG that promises w × h pixels and holds none.
func pngHeaderOnly(w, h uint32) []byte {
	out := []byte(pngSignature + "\x00\x00\x00\rIHDR")
	out = binary.BigEndian.AppendUint32(out, w)
	out = binary.BigEndian.AppendUint32(out, h)
	out = append(out, 8, 2, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[12:]))
	return append(out, "\x00\x00\x00\x00IDAT\x35\xaf\x06\x1e"...)
}

func tiffHeaderOnly(w, h uint32) []byte {
	le := binary.LittleEndian
	out := []byte("II*\x00\x08\x00\x00\x00\x03\x00")
	for _, tag := range [][2]uint32{{tagImageWidth, w}, {tagImageLength, h}, {tagPlanarConfig, 1}} {
		out = le.AppendUint16(out, uint16(tag[0]))
		out = le.AppendUint16(out, typeLong)
		out = le.AppendUint32(out, 1)
		out = le.AppendUint32(out, tag[1])
	}
	return append(out, 0, 0, 0, 0)
}

func webpCanvas(w, h uint32) []byte {
	head := []byte("RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02\x00\x00\x00")
	head = append(head, uint8(w-1), uint8((w-1)>>8), uint8((w-1)>>16), uint8(h-1), uint8((h-1)>>8), uint8((h-1)>>16))
	frame := append(make([]byte, 16), "VP8L\x05\x00\x00\x00\x2f\x00\x00\x00\x00\x00"...)
	head = append(head, "ANMF"...)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(frame)))
	return append(head, frame...)
}

func TestDecodeRefuses(t *testing.T) {
	jpg, png, gif, webp, bmp, tif := testPicture(t, "420_29x21.jpg"), testPicture(t, "rgb.png"), testPicture(t, "rgb.gif"),
		testPicture(t, "lossy_29x21.webp"), testPicture(t, "rgb.bmp"), testPicture(t, "rgb.tif")
	planar := bytes.Clone(tif)
	setTag(t, planar, tagPlanarConfig, 2)
	arithmetic := bytes.Clone(jpg)
	arithmetic[bytes.Index(arithmetic, []byte{0xff, 0xc0})+1] = 0xc9
	overlapping := bytes.Clone(testPicture(t, "lzw.tif"))
	setTag(t, overlapping, tagStripByteCounts, 60000)
	scans := append(bytes.TrimSuffix(bytes.Clone(testPicture(t, "progressive.jpg")), []byte{0xff, 0xd9}), bytes.Repeat([]byte("\xff\xda\x00\x08\x01\x01\x00\x00\x00\x10"), 600)...)
	cases := []struct {
		name    string
		data    []byte
		options DecodeOptions
		want    *Error
		says    string
	}{
		{"empty", nil, DecodeOptions{}, ErrNotPicture, "empty"},
		{"text", []byte("hello, world, I am no picture"), DecodeOptions{}, ErrNotPicture, "hello"},
		{"BM text", []byte("BMI is weight over height squared, they say"), DecodeOptions{}, ErrNotPicture, "bitmap"},
		{"AVIF", []byte("\x00\x00\x00\x1cftypavif\x00\x00\x00\x00"), DecodeOptions{}, ErrUnsupported, "AVIF"},
		{"HEIC", []byte("\x00\x00\x00\x1cftypheic\x00\x00\x00\x00"), DecodeOptions{}, ErrUnsupported, "HEIC"},
		{"JPEG XL", []byte("\xff\x0a\x00\x00"), DecodeOptions{}, ErrUnsupported, "JPEG XL"},
		{"PDF", []byte("%PDF-1.7\n%\xe2\xe3"), DecodeOptions{}, ErrUnsupported, "PDF"},
		{"arithmetic JPEG", arithmetic, DecodeOptions{}, ErrUnsupported, "SOF9"},
		{"planar TIFF", planar, DecodeOptions{}, ErrUnsupported, "PlanarConfiguration"},
		{"TIFF of overlapping strips", overlapping, DecodeOptions{}, ErrCorrupt, "strips"},
		{"JPEG of many scans", scans, DecodeOptions{}, ErrTooLarge, "scans; the limit is 500"},
		{"60,000 × 60,000 PNG", pngHeaderOnly(60000, 60000), DecodeOptions{}, ErrTooLarge, "60000×60000 pixels; the limit is 89478485"},
		{"long PNG", pngHeaderOnly(1<<30, 1), DecodeOptions{}, ErrTooLarge, "the limit for an edge is 65535"},
		{"PNG of 2^32 pixels", pngHeaderOnly(0xffffffff, 0xffffffff), DecodeOptions{}, ErrCorrupt, "4294967295"},
		{"PNG without pixels", pngHeaderOnly(0, 7), DecodeOptions{}, ErrCorrupt, "0×7"},
		{"TIFF bomb", tiffHeaderOnly(50000, 50000), DecodeOptions{}, ErrTooLarge, "50000×50000"},
		{"WebP bomb", webpCanvas(1<<14, 1<<14), DecodeOptions{}, ErrTooLarge, "16384×16384"},
		{"too many bytes", png, DecodeOptions{Limits: Limits{MaxBytes: 10}}, ErrTooLarge, "the limit is 10"},
		{"too many pixels", png, DecodeOptions{Limits: Limits{MaxPixels: 600}}, ErrTooLarge, "29×21 pixels; the limit is 600"},
		{"edge", png, DecodeOptions{Limits: Limits{MaxEdge: 28}}, ErrTooLarge, "29×21"},
		{"PNG signature", png[:8], DecodeOptions{}, ErrTruncated, "header"},
		{"half a signature", png[:5], DecodeOptions{}, ErrTruncated, "5 bytes"},
		{"half a PNG", png[:len(png)/2], DecodeOptions{}, ErrTruncated, "png"},
		{"half a JPEG", jpg[:len(jpg)-60], DecodeOptions{}, ErrTruncated, "jpeg"},
		{"JPEG header", jpg[:30], DecodeOptions{}, ErrTruncated, "header"},
		{"half a GIF", gif[:len(gif)/2+200], DecodeOptions{}, ErrTruncated, "gif"},
		{"GIF header", gif[:10], DecodeOptions{}, ErrTruncated, "header"},
		{"half a WebP", webp[:len(webp)/2], DecodeOptions{}, ErrTruncated, "webp"},
		{"half a BMP", bmp[:len(bmp)/2], DecodeOptions{}, ErrTruncated, "bmp"},
		{"half a TIFF", tif[:len(tif)/2], DecodeOptions{}, ErrTruncated, "tiff"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			picture, err := Decode(t.Context(), c.data, c.options)
			runtime.ReadMemStats(&after)
			if picture != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v; want %s with %q", picture, err, c.want.Kind, c.says)
			}
			if KindOf(err) != c.want.Kind {
				t.Errorf("kind %q", KindOf(err))
			}
			if strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("the error has several lines: %q", err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
				t.Errorf("allocated %d bytes before refusing", grown)
			}
		})
	}
}

// setTag overwrites the value of a tag in a little-endian TIFF's first directory.
func setTag(t *testing.T, data []byte, tag uint16, value uint16) {
	t.Helper()
	d, ok := readDirectory(data)
	entries, _, _ := d.entries(d.offset)
	for ; ok && len(entries) > 0; entries = entries[12:] {
		if binary.LittleEndian.Uint16(entries) == tag {
			binary.LittleEndian.PutUint16(entries[8:], value)
			return
		}
	}
	t.Fatalf("no tag %#x", tag)
}

// A GIF of 100,000 frames costs as much as one of one frame: the file's size is walked, one frame is decoded.
func TestDecodeManyFrames(t *testing.T) {
	data := testPicture(t, "rgb.gif")
	frame := []byte("\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00")
	many := append(bytes.TrimSuffix(data, []byte{0x3b}), bytes.Repeat(frame, 100_000)...)
	info, err := Header(bytes.NewReader(many))
	if err != nil || info.Frames != 100_001 {
		t.Fatalf("%+v, %v", info, err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := Decode(t.Context(), many, DecodeOptions{})
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Decode(t.Context(), data, DecodeOptions{})
	if err != nil || !bytes.Equal(got.Pix, want.Pix) {
		t.Errorf("differs from the first frame alone (%v)", err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("allocated %d bytes", grown)
	}
}

func TestDecodeEveryTruncation(t *testing.T) {
	for _, name := range []string{"rgb.png", "420_29x21.jpg", "progressive.jpg", "rgb.gif", "lossy_29x21.webp", "lossless.webp", "animated.webp", "rgb.bmp", "lzw.tif"} {
		data := testPicture(t, name)
		for n := range data {
			if _, err := Decode(t.Context(), data[:n], DecodeOptions{}); err != nil && KindOf(err) == "" {
				t.Fatalf("%s cut to %d bytes: %v has no kind", name, n, err)
			}
		}
	}
}

func TestDecodeJPEGWithoutEndMarker(t *testing.T) {
	data := testPicture(t, "420_29x21.jpg")
	want, err := Decode(t.Context(), data, DecodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(t.Context(), bytes.TrimSuffix(data, []byte{0xff, 0xd9}), DecodeOptions{})
	if err != nil || !bytes.Equal(got.Pix, want.Pix) {
		t.Errorf("a lost end marker changes the picture: %v", err)
	}
}

// The first frame of an animation that covers a part of its canvas lies on black.
func TestDecodeWebPFrameOnCanvas(t *testing.T) {
	still := testPicture(t, "lossless.webp")
	want, err := Decode(t.Context(), still, DecodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	animation := func(width, height byte) []byte {
		frame := []byte{3, 0, 0, 2, 0, 0, 28, 0, 0, 20, 0, 0, 1, 0, 0, 0} // at (6, 4)
		frame = append(frame, still[12:]...)
		out := append([]byte("RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02\x00\x00\x00"), width-1, 0, 0, height-1, 0, 0)
		out = binary.LittleEndian.AppendUint32(append(out, "ANMF"...), uint32(len(frame)))
		return append(out, frame...)
	}
	got, err := Decode(t.Context(), animation(40, 30), DecodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if canvas := paste(canvas{picture: want, width: 40, height: 30, left: 6, top: 4}); !bytes.Equal(got.Pix, canvas.Pix) {
		t.Error("the frame does not lie where it says")
	}
	if _, err := Decode(t.Context(), animation(30, 30), DecodeOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a frame over the edge: %v", err)
	}
}

// Phones append videos to their pictures; scan markers in there are none.
func TestDecodeJPEGWithTrailer(t *testing.T) {
	data := testPicture(t, "progressive.jpg")
	want, err := Decode(t.Context(), data, DecodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(t.Context(), append(bytes.Clone(data), bytes.Repeat([]byte{0xff, 0xda, 0, 8}, 1000)...), DecodeOptions{})
	if err != nil || !bytes.Equal(got.Pix, want.Pix) {
		t.Errorf("a trailer changes the picture: %v", err)
	}
	info, err := readHeader(data)
	if err != nil || info.scans != 10 {
		t.Errorf("%+v, %v; want the 10 scans of libjpeg's script", info, err)
	}
}

func TestDecodeIgnoresEXIFWhenTold(t *testing.T) {
	for _, name := range []string{"exif6.jpg", "exif6.png", "exif6.webp", "exif6.tif"} {
		got, err := Decode(t.Context(), testPicture(t, name), DecodeOptions{IgnoreEXIF: true})
		if err != nil || got.Width != 29 || got.Height != 21 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestDecodeCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Decode(ctx, testPicture(t, "rgb.png"), DecodeOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// Colours under partial alpha come out of a premultiplied file as Pillow's RGBa conversion gives them.
func TestDecodePremultipliedTIFF(t *testing.T) {
	m := image.NewRGBA(image.Rect(0, 0, 2, 2))
	copy(m.Pix, []uint8{100, 50, 25, 128, 10, 20, 30, 255, 9, 9, 9, 0, 200, 3, 2, 100})
	var file bytes.Buffer
	if err := tiff.Encode(&file, m, nil); err != nil {
		t.Fatal(err)
	}
	got, err := Decode(t.Context(), file.Bytes(), DecodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []uint8{199, 99, 49, 10, 20, 30, 0, 0, 0, 255, 7, 5}
	if !bytes.Equal(got.Pix, want) {
		t.Errorf("got %v, want %v", got.Pix, want)
	}
}

func TestHeaderReadsOnlyHeaders(t *testing.T) {
	info, err := Header(bytes.NewReader(pngHeaderOnly(60000, 60000)))
	if err != nil || info.Width != 60000 || info.Height != 60000 || info.Format != PNG {
		t.Errorf("%+v, %v", info, err)
	}
	failing := errors.New("disk on fire")
	if _, err := Header(brokenReader{failing}); !errors.Is(err, failing) {
		t.Errorf("error %v, want the reader's", err)
	}
}

type brokenReader struct{ err error }

func (r brokenReader) Read([]byte) (int, error) { return 0, r.err }

func exifBlock(order binary.AppendByteOrder, mark string, kind uint16, value uint32) []byte {
	out := order.AppendUint32(order.AppendUint16([]byte(mark), 42), 8)
	out = order.AppendUint16(out, 1)
	out = order.AppendUint16(order.AppendUint16(out, tagOrientation), kind)
	out = order.AppendUint32(out, 1)
	if kind == typeShort {
		return order.AppendUint32(order.AppendUint16(out, uint16(value)), 0)
	}
	return order.AppendUint32(order.AppendUint32(out, value), 0)
}

func TestEXIFOrientation(t *testing.T) {
	for o := uint32(1); o <= 8; o++ {
		for name, block := range map[string][]byte{
			"little":  exifBlock(binary.LittleEndian, "II", typeShort, o),
			"big":     exifBlock(binary.BigEndian, "MM", typeShort, o),
			"long":    exifBlock(binary.BigEndian, "MM", typeLong, o),
			"in JPEG": append([]byte("Exif\x00\x00"), exifBlock(binary.LittleEndian, "II", typeShort, o)...),
		} {
			if got := exifOrientation(block); got != int(o) {
				t.Errorf("%s, %d: got %d", name, o, got)
			}
		}
	}
	good := exifBlock(binary.LittleEndian, "II", typeShort, 6)
	far := bytes.Clone(good)
	binary.LittleEndian.PutUint32(far[4:], 0xfffffff0)
	for name, block := range map[string][]byte{
		"nothing": nil, "value 9": exifBlock(binary.LittleEndian, "II", typeShort, 9), "value 0": exifBlock(binary.BigEndian, "MM", typeShort, 0),
		"offset past the end": far, "no directory": good[:8], "entry cut": good[:16], "no byte order": append([]byte("XX"), good[2:]...),
	} {
		if got := exifOrientation(block); got != 1 {
			t.Errorf("%s: got %d, want 1", name, got)
		}
	}
}

// Turning by an orientation and then by its inverse gives the picture back.
func TestUprightInverse(t *testing.T) {
	inverse := map[int]int{1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
	p := noise(5, 3, 1, false)
	for o, back := range inverse {
		if got := upright(upright(p, o), back); got.Width != 5 || !bytes.Equal(got.Pix, p.Pix) {
			t.Errorf("orientation %d is not undone by %d", o, back)
		}
	}
}

func BenchmarkDecodeJPEG(b *testing.B) {
	m := image.NewRGBA(image.Rect(0, 0, 4032, 3024))
	for i := range m.Pix { // smooth with some detail, as photographs are
		x, y := i/4%4032, i/4/4032
		m.Pix[i] = uint8(x/16 + y/13 + (x*y>>9)&15 + 20*(i&3))
	}
	var file bytes.Buffer
	if err := jpeg.Encode(&file, m, &jpeg.Options{Quality: 85}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(4032 * 3024 * 3)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(b.Context(), file.Bytes(), DecodeOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodePNG(b *testing.B) {
	data := readMedia(b, "cat.png")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(b.Context(), data, DecodeOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

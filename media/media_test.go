package media

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"glimpse/preprocess"
)

var goldens = filepath.Join("..", "testdata", "goldens")

func mediaFile(name string) string { return filepath.Join(goldens, "media", name) }

// needFFmpeg skips where FFmpeg is not installed; .ci/run installs it.
func needFFmpeg(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skip("ffmpeg is not installed")
	}
}

// The rule is np.arange's: the table comes from numpy.
func TestEvenGolden(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(goldens, "videollama-tiny", "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Kind     string
			Expected json.RawMessage
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, c := range file.Cases {
		if c.Kind != "sampling" {
			continue
		}
		var want struct {
			Table []struct {
				Frames  int
				Count   int `json:"n_frms"`
				Indices []int
			}
		}
		if err := json.Unmarshal(c.Expected, &want); err != nil {
			t.Fatal(err)
		}
		for _, row := range want.Table {
			rows++
			if have := Even(row.Frames, row.Count); !slices.Equal(have, row.Indices) {
				t.Errorf("%d of %d: %v, want %v", row.Count, row.Frames, have, row.Indices)
			}
		}
	}
	if rows < 20 {
		t.Errorf("%d rows were compared", rows)
	}
}

// pixels decodes a frame.
func pixels(t *testing.T, data []byte) *preprocess.RGB {
	t.Helper()
	rgb, err := preprocess.Decode(t.Context(), data, preprocess.DecodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return rgb
}

// A clip decoded by FFmpeg gives the golden set's frames, bit for bit, and its own frames at their own size.
func TestVideoGolden(t *testing.T) {
	needFFmpeg(t)
	file, err := os.ReadFile(filepath.Join(goldens, "videollama-tiny", "golden.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(file)
	var header map[string]struct {
		Offsets [2]int64 `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	at := header["video.frames_uint8"].Offsets
	want := file[8+int64(n):][at[0]:at[1]]
	whole, err := os.ReadFile(mediaFile("shapes_64x48_30f.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	r := New(Options{})
	for _, in := range []Input{{Path: mediaFile("shapes_64x48_30f.mp4")}, {Data: whole, Source: "bytes"}} {
		v, err := r.Video(t.Context(), in, Choice{Frames: 8, Width: 56, Height: 56})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(v.Indices) != "[0 3 7 11 15 18 22 26]" || v.Total != 30 || v.FPS != 10 || v.Seconds[7] != 2.6 {
			t.Errorf("%v of %d at %v, %v", v.Indices, v.Total, v.FPS, v.Seconds)
		}
		size := 3 * 56 * 56
		for i, frame := range v.Frames {
			if !bytes.Equal(pixels(t, frame).Pix, want[i*size:(i+1)*size]) {
				t.Errorf("frame %d is another", i)
			}
		}
	}
	v, err := r.Video(t.Context(), Input{Path: mediaFile("shapes_64x48_30f.mp4")}, Choice{})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := r.Video(t.Context(), Input{Path: mediaFile("shapes_64x48_30f_frames")}, Choice{Rate: 10})
	if err != nil || len(v.Frames) != 30 || len(stored.Frames) != 30 {
		t.Fatalf("%d and %d frames, %v", len(v.Frames), len(stored.Frames), err)
	}
	for i := range v.Frames {
		if !bytes.Equal(pixels(t, v.Frames[i]).Pix, pixels(t, stored.Frames[i]).Pix) || v.Seconds[i] != stored.Seconds[i] {
			t.Errorf("frame %d is another", i)
		}
	}
}

func TestAudioGolden(t *testing.T) {
	needFFmpeg(t)
	r := New(Options{})
	made, err := r.Audio(t.Context(), Input{Path: mediaFile("shapes_64x48_30f.mp4")})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := r.Audio(t.Context(), Input{Path: mediaFile("shapes_64x48_30f.wav")})
	if err != nil {
		t.Fatal(err)
	}
	have, err := preprocess.DecodeWAV(made, preprocess.SoundLimits{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := preprocess.DecodeWAV(stored, preprocess.SoundLimits{})
	if err != nil {
		t.Fatal(err)
	}
	if have.Rate != want.Rate || fmt.Sprint(have.Channels) != fmt.Sprint(want.Channels) {
		t.Errorf("%d samples at %d, want %d at %d, and the same", have.Samples(), have.Rate, want.Samples(), want.Rate)
	}
}

// An animated GIF without FFmpeg: what Pillow makes of its frames.
func TestGIF(t *testing.T) {
	r := New(Options{FFmpeg: "no-such-program"})
	v, err := r.Video(t.Context(), Input{Path: mediaFile("video_pan8.gif")}, Choice{})
	if err != nil {
		t.Fatal(err)
	}
	folder, err := r.Video(t.Context(), Input{Path: mediaFile("video_pan8")}, Choice{})
	if err != nil || len(folder.Frames) != len(v.Frames) {
		t.Fatalf("%d frames, want %d, %v", len(v.Frames), len(folder.Frames), err)
	}
	if v.FPS <= 0 || len(v.Seconds) != len(v.Frames) || folder.Seconds != nil {
		t.Errorf("%v frames a second, times %v and %v", v.FPS, v.Seconds, folder.Seconds)
	}
	for i := range v.Frames {
		have, want := pixels(t, v.Frames[i]), pixels(t, folder.Frames[i])
		off := 0
		for k := range want.Pix {
			if d := int(have.Pix[k]) - int(want.Pix[k]); d > 24 || d < -24 {
				off++
			}
		}
		// 256 colours stand for all of a frame's.
		if have.Width != want.Width || have.Height != want.Height || off > len(want.Pix)/20 {
			t.Errorf("frame %d: %d of %d values are far off", i, off, len(want.Pix))
		}
	}
	half, err := r.Video(t.Context(), Input{Path: mediaFile("video_pan8.gif")}, Choice{Frames: 4})
	if err != nil || fmt.Sprint(half.Indices) != "[0 2 4 6]" || !bytes.Equal(half.Frames[3], v.Frames[6]) {
		t.Errorf("%v, %v", half.Indices, err)
	}
}

// Animated WebP without FFmpeg: what Pillow shows of each frame, blended, replaced and cleared. testdata has its frames one
// below the other, made by Pillow 12.3 (alpha dropped).
func TestWebP(t *testing.T) {
	r := New(Options{FFmpeg: "no-such-program"})
	for _, name := range []string{"alpha-lossless", "alpha-lossy"} {
		v, err := r.Video(t.Context(), Input{Path: filepath.Join("testdata", name+".webp")}, Choice{})
		if err != nil {
			t.Fatal(err)
		}
		strip, err := os.ReadFile(filepath.Join("testdata", name+".png"))
		if err != nil {
			t.Fatal(err)
		}
		want := pixels(t, strip)
		if len(v.Frames) != 5 || want.Height != 5*30 {
			t.Fatalf("%s: %d frames", name, len(v.Frames))
		}
		for i, frame := range v.Frames {
			have, size := pixels(t, frame), 3*40*30
			if !bytes.Equal(have.Pix, want.Pix[i*size:(i+1)*size]) {
				t.Errorf("%s: frame %d is another: %d of %d values", name, i, unequal(have.Pix, want.Pix[i*size:(i+1)*size]), size)
			}
		}
		if name == "alpha-lossless" && fmt.Sprint(v.Seconds) != "[0 0.1 0.30000000000000004 0.4 0.45]" {
			t.Errorf("times %v", v.Seconds)
		}
	}
	v, err := r.Video(t.Context(), Input{Path: filepath.Join("testdata", "opaque.webp")}, Choice{Frames: 3})
	if err != nil || fmt.Sprint(v.Indices) != "[0 2 4]" || v.Total != 6 {
		t.Fatalf("%+v, %v", v, err)
	}
	folder, err := r.Video(t.Context(), Input{Path: mediaFile("shapes_64x48_30f_frames")}, Choice{})
	if err != nil {
		t.Fatal(err)
	}
	for i, place := range v.Indices {
		if !bytes.Equal(pixels(t, v.Frames[i]).Pix, pixels(t, folder.Frames[place]).Pix) {
			t.Errorf("lossless frame %d is another", place)
		}
	}
	still, err := os.ReadFile(filepath.Join("testdata", "opaque.webp"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{40, 60, len(still) / 2} {
		if _, err := r.Video(t.Context(), Input{Data: still[:cut], Source: "cut"}, Choice{Frames: 6}); err == nil {
			t.Errorf("%d of %d bytes were taken", cut, len(still))
		}
	}
}

func unequal(a, b []byte) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// What is refused says why and what to do.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mixed := filepath.Join(dir, "mixed")
	if err := os.Mkdir(mixed, 0o700); err != nil {
		t.Fatal(err)
	}
	write("mixed/notes.txt", "no picture")
	none := New(Options{FFmpeg: "no-such-program"})
	for _, c := range []struct {
		name string
		r    *Reader
		in   Input
		c    Choice
		want string
		kind Kind
	}{
		{"without ffmpeg", none, Input{Path: mediaFile("shapes_64x48_30f.mp4")}, Choice{}, "apt-get install ffmpeg", KindUnreadable},
		{"a picture", none, Input{Path: mediaFile("cat.png")}, Choice{}, "it is a picture", KindUnsupported},
		{"half a WebP", none, Input{Data: []byte("RIFF\x00\x00\x00\x00WEBPVP8X"), Source: "x"}, Choice{}, "truncated", Kind(preprocess.KindTruncated)},
		{"other files in a folder", none, Input{Path: mixed}, Choice{}, "notes.txt", Kind(preprocess.KindNotPicture)},
		{"nothing there", none, Input{Path: filepath.Join(dir, "absent")}, Choice{}, "no such file", KindMissing},
		{"too many bytes", New(Options{Limits: Limits{MaxBytes: 10}}), Input{Path: mediaFile("video_pan8.gif")}, Choice{}, "the limit is 10", KindTooLarge},
		{"too many frames", New(Options{Limits: Limits{MaxFrames: 4}}), Input{Path: mediaFile("video_pan8")}, Choice{}, "the limit is 4", KindTooLarge},
		{"too many pixels", New(Options{Limits: Limits{MaxPixels: 100}}), Input{Path: mediaFile("video_pan8.gif")}, Choice{}, "limits", KindTooLarge},
		{"frames a second of a folder", none, Input{Path: mediaFile("video_pan8")}, Choice{FPS: 2}, "not known", KindChoice},
		{"nonsense", none, Input{Path: mediaFile("video_pan8")}, Choice{Frames: -1}, "asked for", KindChoice},
		{"another program", New(Options{FFmpeg: "/bin/echo"}), Input{Path: mediaFile("shapes_64x48_30f.mp4")}, Choice{}, "ffmpeg", KindUnreadable},
	} {
		_, err := c.r.Video(t.Context(), c.in, c.c)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.name, err, c.want)
		}
		var e *Error
		if !errors.As(err, &e) || e.Kind != c.kind {
			t.Errorf("%s: %T, kind %q, want %q", c.name, err, e.Kind, c.kind)
		}
	}
	if _, err := none.Audio(t.Context(), Input{Path: mediaFile("shapes_64x48_30f.mp4")}); !errors.Is(err, ErrNoFFmpeg) {
		t.Errorf("sound without ffmpeg: %v", err)
	}
}

// FFmpeg reads the file and no other: playlists, which name files, are no videos.
func TestHostileFiles(t *testing.T) {
	needFFmpeg(t)
	secret, err := filepath.Abs(mediaFile("shapes_64x48_30f.mp4"))
	if err != nil {
		t.Fatal(err)
	}
	r := New(Options{})
	for name, text := range map[string]string{
		"playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://" + secret + "\n#EXT-X-ENDLIST\n",
		"concat":   "ffconcat version 1.0\nfile " + secret + "\n",
		"noise":    strings.Repeat("noise ", 1000),
		"cut":      "\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41",
	} {
		if v, err := r.Video(t.Context(), Input{Data: []byte(text), Source: name}, Choice{}); err == nil {
			t.Errorf("%s: %d frames", name, len(v.Frames))
		}
		if _, err := r.Audio(t.Context(), Input{Data: []byte(text), Source: name}); err == nil {
			t.Errorf("%s was heard", name)
		}
	}
	if _, err := r.Video(t.Context(), Input{Path: mediaFile("shapes_64x48_30f.wav")}, Choice{}); err == nil || !strings.Contains(err.Error(), "no pictures") {
		t.Errorf("a sound as a video: %v", err)
	}
	if _, err := New(Options{Limits: Limits{MaxSeconds: 1}}).Video(t.Context(), Input{Path: mediaFile("shapes_64x48_30f.mp4")}, Choice{}); err == nil || !strings.Contains(err.Error(), "the limit is 1") {
		t.Errorf("a long video: %v", err)
	}
	for seconds, ok := range map[float64]bool{2: false, 3.5: true} { // it has 3.008
		_, err := New(Options{Limits: Limits{MaxSeconds: seconds}}).Audio(t.Context(), Input{Path: mediaFile("shapes_64x48_30f.mp4")})
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "the limit of 2 seconds") {
			t.Errorf("a sound of 3 seconds, limit %v: %v", seconds, err)
		}
	}
}

// What a video is beside its frames, which Hold is asked about before any is decoded; and two readings of a broken file, from
// its path and from its bytes, complain in the same words.
func TestWhatIsKnownOfAVideo(t *testing.T) {
	needFFmpeg(t)
	r := New(Options{})
	clip := mediaFile("shapes_64x48_30f.mp4")
	var held int64
	v, err := r.Video(t.Context(), Input{Path: clip}, Choice{Frames: 4, Hold: func(_ context.Context, n int64) error { held += n; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if v.Width != 64 || v.Height != 48 || math.Abs(v.Duration-3) > 0.1 || held != 4*3*64*48 {
		t.Errorf("%d×%d, %v seconds, %d bytes held", v.Width, v.Height, v.Duration, held)
	}
	full := errors.New("no room")
	if _, err := r.Video(t.Context(), Input{Path: clip}, Choice{Hold: func(context.Context, int64) error { return full }}); !errors.Is(err, full) {
		t.Errorf("without room: %v", err)
	}
	turned := filepath.Join(t.TempDir(), "turned.mp4")
	if out, err := exec.Command("ffmpeg", "-v", "error", "-i", clip, "-c", "copy", "-metadata:s:v:0", "rotate=90", turned).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if v, err := r.Video(t.Context(), Input{Path: turned}, Choice{Frames: 1}); err != nil || v.Width != 48 || v.Height != 64 {
		t.Errorf("turned: %+v %v", v, err)
	} else if head, err := preprocess.Header(bytes.NewReader(v.Frames[0])); err != nil || head.Width != 48 {
		t.Errorf("its frame: %+v %v", head, err)
	}
	for path, want := range map[string]bool{clip: true, mediaFile("video_pan8.gif"): false, mediaFile("video_pan8"): false, mediaFile("shapes_64x48_30f.wav"): true} {
		if got, err := r.HasSound(t.Context(), Input{Path: path}); err != nil || got != want {
			t.Errorf("%s has sound: %v %v", path, got, err)
		}
	}
	raw, err := os.ReadFile(clip)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.mp4")
	if err := os.WriteFile(cut, raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, in := range []Input{{Path: cut}, {Data: raw[:len(raw)/2], Source: "x"}} {
		var e *Error
		if _, err := r.Video(t.Context(), in, Choice{}); !errors.As(err, &e) || e.Kind != KindCorrupt {
			t.Fatalf("half a file: %v", err)
		}
		texts = append(texts, e.What())
	}
	if texts[0] != texts[1] || strings.Contains(texts[0], "0x") {
		t.Errorf("two readings complain differently: %q", texts)
	}
}

// A child ends with its context, and when its time is up.
func TestChildrenEnd(t *testing.T) {
	if _, err := exec.LookPath("sleep"); err != nil {
		t.Skip("no sleep")
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	var out bytes.Buffer
	if err := New(Options{}).child(ctx, "sleep", []string{"60"}, limited(&out, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	quick := New(Options{Limits: Limits{Timeout: 50 * time.Millisecond}})
	if err := quick.child(t.Context(), "sleep", []string{"60"}, limited(&out, 10)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("timed out: %v", err)
	}
	if err := New(Options{}).child(t.Context(), "yes", nil, limited(&out, 1<<16)); !errors.Is(err, errOutput) {
		t.Errorf("endless output: %v", err)
	}
	if time.Since(start) > 20*time.Second {
		t.Errorf("it took %v", time.Since(start))
	}
}

// FuzzPPM: frames of what calls itself FFmpeg, within the bound, or an error.
func FuzzPPM(f *testing.F) {
	f.Add([]byte("P6\n2 1\n255\nabcdefP6\n1 1\n255\nabc"))
	f.Add([]byte("P6\n99999999999 1\n255\n"))
	f.Add([]byte("P6 -1 -1 255 "))
	f.Fuzz(func(t *testing.T, data []byte) {
		const most = 64
		for r := bufio.NewReader(bytes.NewReader(data)); ; {
			w, h, rgb, err := readPPM(r, most)
			if err != nil {
				return
			}
			if w < 1 || h < 1 || w*h > most || len(rgb) != 3*w*h {
				t.Fatalf("%d×%d pixels in %d bytes", w, h, len(rgb))
			}
		}
	})
}

func FuzzWebP(f *testing.F) {
	for _, name := range []string{"alpha-lossy.webp", "alpha-lossless.webp"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	r := New(Options{Limits: Limits{MaxPixels: 1 << 20}})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 12 || string(data[:4]) != "RIFF" || string(data[8:12]) != "WEBP" {
			return
		}
		v, err := r.Video(t.Context(), Input{Data: data, Source: "fuzz"}, Choice{Frames: 3})
		if err == nil && len(v.Frames) == 0 {
			t.Error("no frames and no error")
		}
	})
}

func FuzzGIF(f *testing.F) {
	data, err := os.ReadFile(mediaFile("video_pan8.gif"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[:2000])
	f.Add([]byte("GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"))
	r := New(Options{Limits: Limits{MaxPixels: 1 << 20}})
	f.Fuzz(func(t *testing.T, data []byte) {
		if !bytes.HasPrefix(data, []byte("GIF8")) {
			return
		}
		v, err := r.Video(t.Context(), Input{Data: data, Source: "fuzz"}, Choice{Frames: 3})
		if err == nil && len(v.Frames) == 0 {
			t.Error("no frames and no error")
		}
	})
}

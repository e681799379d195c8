// What strangers send to bring a server down. Each attack has a clean answer, costs little, and leaves the server as it was.
// Attacks by way of URLs (redirects inside, names that change their address, every spelling of an inner address) are in
// fetch_test.go, readers that do not read in stream_test.go, limits of keys in quota_test.go.

package server

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"image/gif"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// bombPNG says width × height and has no pixels.
func bombPNG(w, h uint32) []byte {
	out := []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
	out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(out, w), h)
	out = append(out, 8, 2, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[12:]))
	return append(out, "\x00\x00\x00\x00IDAT\x35\xaf\x06\x1e"...)
}

// manyFrames is a GIF of n frames of one pixel on a canvas of w × h.
func manyFrames(n, w, h int) []byte {
	out := []byte("GIF89a")
	out = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(out, uint16(w)), uint16(h))
	out = append(out, 0x80, 0, 0, 255, 0, 0, 0, 0, 255)
	out = append(out, bytes.Repeat([]byte("\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"), n)...)
	return append(out, 0x3b)
}

// bombWebP is a lossless WebP of a few bytes that says w × h, in its own frame and on its canvas.
func bombWebP(w, h uint32) []byte {
	le := binary.LittleEndian
	stream := le.AppendUint32([]byte{0x2f}, (w-1)|(h-1)<<14)
	stream = append(stream, make([]byte, 11)...)
	body := le.AppendUint32([]byte("WEBPVP8L"), uint32(len(stream)))
	body = append(body, stream...)
	return append(le.AppendUint32([]byte("RIFF"), uint32(len(body))), body...)
}

// animatedWebP says n frames on a canvas of w × h.
func animatedWebP(n int, w, h uint32) []byte {
	le := binary.LittleEndian
	body := le.AppendUint32([]byte("WEBPVP8X"), 10)
	body = append(body, 2, 0, 0, 0, byte(w-1), byte((w-1)>>8), byte((w-1)>>16), byte(h-1), byte((h-1)>>8), byte((h-1)>>16))
	body = append(body, "ANIM\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	frame := append(make([]byte, 16), "VP8L\x05\x00\x00\x00\x2f\x00\x00\x00\x00\x00"...)
	frame = append(le.AppendUint32([]byte("ANMF"), uint32(len(frame))), frame...)
	body = append(body, bytes.Repeat(frame, n)...)
	return append(le.AppendUint32([]byte("RIFF"), uint32(len(body))), body...)
}

// bombTIFF says w × h in one strip whose deflated data becomes inflated bytes.
func bombTIFF(t *testing.T, w, h uint32, inflated int) []byte {
	t.Helper()
	var strip bytes.Buffer
	z := zlib.NewWriter(&strip)
	chunk := make([]byte, 1<<20)
	for n := 0; n < inflated; n += len(chunk) {
		if _, err := z.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	tags := [][2]uint32{{0x100, w}, {0x101, h}, {0x102, 8}, {0x103, 8}, {0x106, 1}, {0x111, 0}, {0x115, 1}, {0x116, h}, {0x117, uint32(strip.Len())}}
	at := uint32(8 + 2 + 12*len(tags) + 4)
	le := binary.LittleEndian
	out := le.AppendUint16([]byte("II*\x00\x08\x00\x00\x00"), uint16(len(tags)))
	for _, tag := range tags {
		value := tag[1]
		if tag[0] == 0x111 {
			value = at
		}
		out = le.AppendUint32(le.AppendUint32(le.AppendUint16(le.AppendUint16(out, uint16(tag[0])), 4), 1), value)
	}
	return append(append(out, 0, 0, 0, 0), strip.Bytes()...)
}

// TestHostileMedia sends bombs to a model that takes pictures and videos, through every door.
func TestHostileMedia(t *testing.T) {
	base, s := start(t, Options{Models: []Model{realEngine(t, "qwen2vl-tiny", "tiny")}})
	for _, tc := range []struct {
		name  string
		kind  string // media type
		video bool
		data  []byte
		says  string
	}{
		{"60k × 60k PNG", "image/png", false, bombPNG(60000, 60000), "60000×60000"},
		{"PNG of 2^31 pixels a side", "image/png", false, bombPNG(1<<31-1, 1<<31-1), ""},
		{"GIF of 100,000 frames, as a video", "image/gif", true, manyFrames(100_000, 1, 1), "100000 frames"},
		{"GIF of 4,000 frames on a large canvas", "image/gif", true, manyFrames(4000, 60000, 60000), "4000 frames"},
		{"WebP bomb", "image/webp", false, bombWebP(1<<14, 1<<14), "16384×16384"},
		{"WebP bomb, as a video", "image/webp", true, animatedWebP(100_000, 1, 1), ""},
		{"WebP of a large canvas, as a video", "image/webp", true, animatedWebP(100, 1<<14, 1<<14), ""},
		{"TIFF bomb", "image/tiff", false, bombTIFF(t, 60000, 60000, 1<<20), "60000×60000"},
		{"TIFF that inflates to 512 MiB", "image/tiff", false, bombTIFF(t, 64, 64, 512<<20), ""},
		{"no picture", "image/png", false, []byte("<svg xmlns='http://www.w3.org/2000/svg'/>"), "SVG"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			part := "image_url"
			if tc.video {
				part = "video_url"
			}
			url := "data:" + tc.kind + ";base64," + base64.StdEncoding.EncodeToString(tc.data)
			body := `{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":[{"type":"` + part + `","` + part + `":{"url":"` + url + `"}}]}]}`
			cheap(t, func() {
				resp, err := http.Post(base+chatPath, "application/json", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if tc.name == "TIFF that inflates to 512 MiB" && resp.StatusCode == 200 {
					return // no more than the picture's own pixels were inflated
				}
				if e := failure(t, resp.StatusCode, resp.Body); resp.StatusCode != 400 || text(e.Code) != codeInvalidMedia || !strings.Contains(e.Message, tc.says) {
					t.Errorf("%d %+v", resp.StatusCode, e)
				}
			})
			if tc.video {
				return
			}
			kind, upload := form(t, [2]string{"@image", string(tc.data)})
			cheap(t, func() {
				resp, err := http.Post(base+"/v1/caption", kind, strings.NewReader(upload))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.StatusCode != 400 && !(tc.says == "" && resp.StatusCode == 200) {
					t.Errorf("as an upload: %d", resp.StatusCode)
				}
			})
		})
	}
	unharmed(t, base, s)
}

// cheap runs an attack and wants it to end soon, without much memory.
func cheap(t *testing.T, attack func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	attack()
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 400<<20 {
		t.Errorf("it cost %d MiB", grown>>20)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it cost %s", took)
	}
}

// unharmed wants the server to be as before: it answers, and holds nothing for those that have gone.
func unharmed(t *testing.T, base string, s *Server) {
	t.Helper()
	resp, err := http.Post(base+chatPath, "application/json", strings.NewReader(goodChat))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("afterwards: %d", resp.StatusCode)
	}
	full := func(b *byteBudget, most int64) bool { b.mu.Lock(); defer b.mu.Unlock(); return b.left == most }
	waitFor(t, func() bool {
		return full(s.bodies, s.limits.BodiesBytes) && full(s.held, s.limits.HeldBytes) && s.models[0].gate.inFlight() == 0
	})
}

// TestHostileBodies sends bodies that are too large or too slow.
func TestHostileBodies(t *testing.T) {
	base, s := start(t, Options{Models: []Model{newFake("tiny")}, Limits: Limits{BodyTimeout: 2 * time.Second, HeaderTimeout: time.Second}})
	opening := `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,`
	flood := func(c net.Conn, frame func(string) string, total int) {
		chunk := frame(strings.Repeat("AAAA", 1<<18))
		for sent := 0; sent < total; sent += 1 << 20 {
			if _, err := io.WriteString(c, chunk); err != nil {
				return
			}
		}
	}
	chunked := func(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }
	plain := func(text string) string { return text }
	dripping := func(c net.Conn) {
		for range 1000 {
			if _, err := io.WriteString(c, "A"); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	for _, tc := range []struct {
		name, head string
		rest       func(net.Conn)
		want       string // beginning of the reply
		code       string
	}{
		{"1 GiB of base64, announced", chatHead + "Content-Length: 1073741824\r\n\r\n" + opening, func(c net.Conn) { flood(c, plain, 1<<30) }, "HTTP/1.1 413 ", codeBodyTooLarge},
		{"1 GiB of base64, not announced", chatHead + "Transfer-Encoding: chunked\r\n\r\n" + chunked(opening), func(c net.Conn) { flood(c, chunked, 1<<30) }, "HTTP/1.1 413 ", codeBodyTooLarge},
		{"slow body", chatHead + "Content-Length: 1000000\r\n\r\n" + opening, dripping, "HTTP/1.1 408 ", codeSlowBody},
		{"slow head", "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ", dripping, "", ""},
		{"endless head", "GET / HTTP/1.1\r\nHost: x\r\nX: ", func(c net.Conn) { flood(c, plain, 8<<20) }, "HTTP/1.1 431 ", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cheap(t, func() {
				got := dial(t, base, tc.head, tc.rest)
				if !strings.HasPrefix(got, tc.want) || !strings.Contains(got, tc.code) || strings.HasPrefix(got, "HTTP/1.1 2") {
					t.Errorf("%.300q", got)
				}
			})
		})
	}
	unharmed(t, base, s)
}

// A picture just within the bound of one medium passes, one beyond it does not, whatever its alphabet or padding.
func TestBase64Bounds(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}, Limits: Limits{MediaBytes: 3000}})
	for n, want := range map[int]int{3000: 200, 3001: 400, 3002: 400, 4500: 400} {
		url := "data:image/png;base64," + base64.StdEncoding.EncodeToString(make([]byte, n))
		w := post(h, chatPath, "application/json", `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"`+url+`"}}]}]}`)
		if w.Code != want {
			t.Errorf("%d bytes: %d, want %d", n, w.Code, want)
		}
	}
}

// Decoded videos are held to a number of bytes, in one request and in all of them, and the bytes are there again when a
// request has ended.
func TestFramesAreHeldToABudget(t *testing.T) {
	gif, err := os.ReadFile(filepath.Join(goldens, "media", "video_pan8.gif"))
	if err != nil {
		t.Fatal(err)
	}
	e := realEngine(t, "qwen2vl-tiny", "tiny")
	body := func(videos int) string {
		part := `{"type":"video_url","video_url":{"url":"data:image/gif;base64,` + base64.StdEncoding.EncodeToString(gif) + `"}}`
		return `{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":[` + strings.Repeat(part+",", videos) + `{"type":"text","text":"x"}]}]}`
	}
	s, err := New(Options{Models: []Model{e}})
	if err != nil {
		t.Fatal(err)
	}
	if w := post(s.Handler(), chatPath, "application/json", body(1)); w.Code != 200 {
		t.Fatal(w.Code, w.Body)
	}
	if s.held.left != s.limits.HeldBytes {
		t.Errorf("%d bytes are still held", s.limits.HeldBytes-s.held.left)
	}
	// What one such video takes is measured by what is left when another request holds the rest.
	info, err := gifSize(gif)
	if err != nil {
		t.Fatal(err)
	}
	s.limits.HeldBytes = info + info/2
	w := post(s.Handler(), chatPath, "application/json", body(2))
	if e := failure(t, w.Code, w.Body); w.Code != 400 || text(e.Code) != codeInvalidMedia {
		t.Errorf("two videos where one fits: %d %+v", w.Code, e)
	}
	s.held.left = info - 1
	w = post(s.Handler(), chatPath, "application/json", body(1))
	if e := failure(t, w.Code, w.Body); w.Code != 503 || text(e.Code) != codeBusy || w.Header().Get("Retry-After") == "" {
		t.Errorf("a video beside others: %d %+v", w.Code, e)
	}
	if s.held.left != info-1 {
		t.Errorf("%d bytes are left, of %d", s.held.left, info-1)
	}
}

// gifSize is what the frames of a GIF take, decoded.
func gifSize(data []byte) (int64, error) {
	g, err := gif.DecodeAll(bytes.NewReader(data))
	if err != nil {
		return 0, err
	}
	return int64(3 * len(g.Image) * g.Config.Width * g.Config.Height), nil
}

// What a URL brings is held to the same budget: it is in no body.
func TestMediaByURLAreHeldToABudget(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "a.png"), make([]byte, 600), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Models: []Model{newFake("tiny")}, LocalMedia: folder, Limits: Limits{HeldBytes: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ask := func(n int) int {
		part := `{"type":"image_url","image_url":{"url":"file://` + folder + `/a.png"}}`
		return post(s.Handler(), chatPath, "application/json", `{"model":"tiny","messages":[{"role":"user","content":[`+strings.Repeat(part+",", n-1)+part+`]}]}`).Code
	}
	for n, want := range map[int]int{1: 200, 2: 400} {
		if got := ask(n); got != want {
			t.Errorf("%d files: %d, want %d", n, got, want)
		}
	}
	s.held.take(500)
	if got := ask(1); got != 503 || s.held.left != 500 {
		t.Errorf("beside others: %d, %d bytes left", got, s.held.left)
	}
}

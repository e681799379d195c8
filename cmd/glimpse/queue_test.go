package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"glimpse/batch/queue"

	"github.com/google/go-cmp/cmp"
)

// mixedPictures writes n pictures, three in ten of them bad in some way.
func mixedPictures(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		name, content := mixedPicture(t, i)
		below := filepath.Join(dir, fmt.Sprintf("%02d", i/100))
		if err := os.MkdirAll(below, 0o755); err != nil {
			t.Fatal(err)
		}
		overwrite(t, filepath.Join(below, fmt.Sprintf("%05d%s", i, name)), content)
	}
	return dir
}

func mixedPicture(t *testing.T, i int) (extension string, content []byte) {
	t.Helper()
	rect := image.Rect(0, 0, 30+i%20, 20+i%30)
	img := image.NewRGBA(rect)
	for y := range rect.Dy() {
		for x := range rect.Dx() {
			img.SetRGBA(x, y, color.RGBA{uint8(x * (i + 1)), uint8(y * (i + 3)), uint8(i), 255})
		}
	}
	var b bytes.Buffer
	encode := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	switch i % 10 {
	case 1:
		encode(jpeg.Encode(&b, img, nil))
		return ".jpg", b.Bytes()
	case 2: // animated
		frame := image.NewPaletted(rect, color.Palette{color.Black, color.RGBA{uint8(i), 200, 3, 255}})
		frame.SetColorIndex(i%20, 3, 1)
		encode(gif.EncodeAll(&b, &gif.GIF{Image: []*image.Paletted{frame, frame}, Delay: []int{1, 1}}))
		return ".gif", b.Bytes()
	case 3: // 16 bits a channel, under another format's name
		deep := image.NewRGBA64(rect)
		deep.SetRGBA64(i%20, 5, color.RGBA64{uint16(i * 7), 9999, 12345, 65535})
		encode(png.Encode(&b, deep))
		return ".jpeg", b.Bytes()
	case 4: // truncated
		encode(jpeg.Encode(&b, img, nil))
		return ".jpg", b.Bytes()[:b.Len()-b.Len()/3]
	case 5:
		if i%20 == 5 {
			return ".png", nil // zero bytes
		}
		return ".png", fmt.Appendf(nil, "not picture %d", i)
	case 6:
		encode(png.Encode(&b, img))
		raw := b.Bytes()
		raw[len(raw)/2] ^= 0xff // corrupt
		return ".png", raw
	}
	encode(png.Encode(&b, img))
	return ".png", b.Bytes()
}

// byID is a JSONL file's lines by their rows' ids.
func byID(t *testing.T, path string) map[string]string {
	t.Helper()
	rows := map[string]string{}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var r struct{ ID string }
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if _, twice := rows[r.ID]; twice {
			t.Errorf("%s has two rows", r.ID)
		}
		rows[r.ID] = line
	}
	return rows
}

// Three workers, one killed with -9 every few seconds, the server restarted once: every picture has one row, and the
// file is that of a single process to the byte. GLIMPSE_QUEUE_PICTURES=2000 is the whole size (make test-queue).
func TestQueueLosesNothing(t *testing.T) {
	m := model(t)
	n, killEvery := 150, 500*time.Millisecond
	if s := os.Getenv("GLIMPSE_QUEUE_PICTURES"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatal(err)
		}
	}
	pictures, folder := mixedPictures(t, n), t.TempDir()
	common := []string{"--reproducible", "--max-tokens", "24"}
	alone := filepath.Join(folder, "alone.jsonl")
	begin := time.Now()
	if r := glimpse(t, append([]string{"caption", m, pictures, "-o", alone}, common...)...); r.code != exitFound {
		t.Fatalf("alone: exit %d: %s", r.code, r.stderr)
	}
	killEvery = min(2500*time.Millisecond, max(killEvery, time.Since(begin)/10)) // several times, however fast the machine is

	dir := filepath.Join(folder, "server")
	server, err := queue.StartServer(queue.ServerOptions{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { server.Close() }()
	address := server.URL()
	out := filepath.Join(folder, "queued.jsonl")
	flags := []string{"--queue-ack-wait", "2s", "--queue-deliveries", "50"}
	publisher := command(t, append(append([]string{"caption", m, pictures, "-o", out, "--queue", address, "--parallel", "64"}, common...), flags...)...)
	var said bytes.Buffer
	publisher.Stderr = &said
	if err := publisher.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = publisher.Wait(); close(ended) }()

	workers := make([]*exec.Cmd, 3)
	start := func(i int) {
		workers[i] = command(t, append([]string{"caption", m, "--join", address, "--slots", "2"}, flags...)...)
		if err := workers[i].Start(); err != nil {
			t.Error(err)
		}
	}
	for i := range workers {
		start(i)
	}
	kills, restarted := 0, false
	tick := time.NewTicker(killEvery)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-ended:
			running = false
		case <-tick.C:
			victim := rand.IntN(len(workers))
			_ = workers[victim].Process.Kill()
			_ = workers[victim].Wait()
			start(victim)
			kills++
			if rows := lines(out); !restarted && rows > n/3 {
				restarted = true
				server.Close()
				time.Sleep(300 * time.Millisecond)
				server, err = queue.StartServer(queue.ServerOptions{Dir: dir, Listen: strings.TrimPrefix(address, "nats://")})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, w := range workers {
		_ = w.Process.Kill()
		_ = w.Wait()
	}
	if code := publisher.ProcessState.ExitCode(); code != exitFound {
		t.Fatalf("publisher: exit %d: %s", code, said.String())
	}
	t.Logf("%d workers killed, server restarted: %v; %s", kills, restarted, said.String())
	if n >= 2000 && (kills < 5 || !restarted) {
		t.Errorf("only %d workers were killed, and the server restarted: %v", kills, restarted)
	}
	want, got := byID(t, alone), byID(t, out)
	if len(want) != n {
		t.Fatalf("%d rows of %d pictures alone", len(want), n)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("rows differ (-alone +queue):\n%s", d)
	}
	if a, b := read(t, alone), read(t, out); !bytes.Equal(a, b) {
		t.Error("the rows are equal and their order is not")
	}
	s, err := queue.Read(t.Context(), queue.Options{URL: address})
	if err != nil {
		t.Fatal(err)
	}
	if s.Waiting != 0 || s.Results != 0 || s.Dead != 0 {
		t.Errorf("left on the queue: %+v", s)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func lines(path string) int {
	raw, _ := os.ReadFile(path)
	return bytes.Count(raw, []byte("\n"))
}

// A queue in the process gives the same rows, leaves nothing behind, and others can look at it meanwhile.
func TestQueueInTheProcess(t *testing.T) {
	m := model(t)
	pictures, folder := mixedPictures(t, 20), t.TempDir()
	var files [][]byte
	for _, extra := range [][]string{nil, {"--queue", "--queue-listen", "127.0.0.1:0"}} {
		out := filepath.Join(folder, fmt.Sprintf("out-%d.jsonl", len(files)))
		r := glimpse(t, append([]string{"caption", m, pictures, "-o", out, "--reproducible", "--max-tokens", "6"}, extra...)...)
		if r.code != exitFound {
			t.Fatalf("exit %d: %s", r.code, r.stderr)
		}
		files = append(files, read(t, out))
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Errorf("rows differ:\n%s\n%s", files[0], files[1])
	}
	if names := entries(t, folder); len(names) != 4 {
		t.Errorf("left behind: %v", names)
	}
	refused(t, glimpse(t, "caption", m, "--join", "localhost"), "nats://")
	refused(t, glimpse(t, "caption", m, pictures, "-o", "-", "--queue", "nats://127.0.0.1:1"), "-o")
	refused(t, glimpse(t, "queue", "status", "nats://127.0.0.1:1"), "connect")
}

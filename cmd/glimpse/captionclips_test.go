// caption of videos, as scripts see it.

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"glimpse/batch"
	"glimpse/batch/row"

	"github.com/google/go-cmp/cmp"
)

// ffmpegClip makes a clip; tests skip where FFmpeg is not installed.
func ffmpegClip(t *testing.T, path string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skip("ffmpeg is not installed")
	}
	if out, err := exec.Command("ffmpeg", append(append([]string{"-v", "error"}, args...), path)...).CombinedOutput(); err != nil {
		t.Fatalf("ffmpeg: %v: %s", err, out)
	}
}

// clipFolder has a clip of each container, pictures that move, and clips that are bad.
func clipFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	picture := []string{"-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2"}
	sound := []string{"-f", "lavfi", "-i", "sine=frequency=440:duration=2"}
	ffmpegClip(t, path("1.mp4"), slices.Concat(picture, sound, []string{"-c:v", "mpeg4", "-c:a", "aac"})...)
	ffmpegClip(t, path("2.mkv"), slices.Concat(picture, []string{"-c:v", "mpeg4", "-t", "1"})...)
	ffmpegClip(t, path("3.webm"), slices.Concat(picture, []string{"-c:v", "libvpx", "-t", "0.5"})...)
	ffmpegClip(t, path("4.mov"), slices.Concat(picture, []string{"-c:v", "mpeg4"})...)
	ffmpegClip(t, path("5.gif"), slices.Concat(picture, []string{"-t", "0.5"})...)
	ffmpegClip(t, path("6-sound.mp4"), slices.Concat(sound, []string{"-c:a", "aac"})...)
	whole := read(t, path("1.mp4"))
	overwrite(t, path("7-cut.mp4"), whole[:len(whole)/3])
	overwrite(t, path("8-empty.mp4"), nil)
	overwrite(t, path("9-misnamed.jpg"), whole)
	overwrite(t, path("x.png"), read(t, filepath.Join(media, "cat.png")))
	frames, err := filepath.Abs(filepath.Join(media, "shapes_64x48_30f_frames"))
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, path("list.txt"), []byte(frames+"\n"))
	return dir
}

func TestCaptionVideos(t *testing.T) {
	dir := clipFolder(t)
	sees, hears := tilingModel(t), clipModel(t)
	for _, tc := range []struct {
		model, frames string
		flags         []string
		sound         bool
	}{
		{sees, "[0 4 8 12 16]", []string{"--frames", "5"}, false},
		{hears, "[0 2 5 7 10 12 15 17]", nil, true},
	} {
		out := filepath.Join(t.TempDir(), "out.jsonl")
		args := slices.Concat([]string{"caption", tc.model, dir, filepath.Join(dir, "list.txt"), "-o", out, "--max-tokens", "4", "--dedupe", "exact", "--reproducible"}, tc.flags)
		if r := glimpse(t, args...); r.code != exitFound || !strings.Contains(r.stderr, "11 written, 3 with an error (corrupt 1, empty 1, unsupported_format 1), 1 duplicates") {
			t.Fatalf("exit %d: %s", r.code, r.stderr)
		}
		rows := readRows(t, out)
		for i, kind := range []string{5: "unsupported_format", 6: "corrupt", 7: "empty", 10: ""} {
			r := rows[i]
			if (r.Error != nil) != (kind != "") || r.Error != nil && r.Error.Kind != kind {
				t.Errorf("%s: error %v, want %q", r.ID, r.Error, kind)
			}
		}
		first := rows[0]
		sum := sha256.Sum256(read(t, filepath.Join(dir, "1.mp4")))
		if c := first.Clip; c == nil || fmt.Sprint(c.Frames) != tc.frames || c.Total != 20 || c.FPS != 10 || c.Sound != tc.sound ||
			len(c.Seconds) != len(c.Frames) || c.Seconds[1] != float64(c.Frames[1])/10 || c.Duration < 1.9 || c.Duration > 2.1 {
			t.Errorf("%+v", c)
		}
		if first.Width != 64 || first.Height != 48 || first.SHA256 != hex.EncodeToString(sum[:]) || first.Tokens != 4 {
			t.Errorf("%+v", first)
		}
		if r := rows[8]; filepath.Base(r.DuplicateOf) != "1.mp4" {
			t.Errorf("the same bytes under another name: %+v", r)
		}
		if rows[4].Clip == nil || rows[4].Clip.Total != 5 || rows[9].Clip != nil {
			t.Errorf("an animation %+v, a picture %+v", rows[4].Clip, rows[9].Clip)
		}
		if r := rows[10]; r.Clip == nil || r.Clip.Total != 30 || r.Clip.Seconds != nil {
			t.Errorf("a folder of frames %+v", r)
		}
		// What ask says of it, caption says.
		want := decode[reply](t, must(t, slices.Concat([]string{"ask", tc.model, first.Prompt, "--video", filepath.Join(dir, "2.mkv"), "--json", "--max-tokens", "4"}, tc.flags)...).stdout)
		if rows[1].Caption != want.Text {
			t.Errorf("caption says %q, ask %q", rows[1].Caption, want.Text)
		}
		// Through a queue the same rows, to the byte.
		queued := filepath.Join(t.TempDir(), "queued.jsonl")
		args[slices.Index(args, out)] = queued
		if r := glimpse(t, append(args, "--queue", "--queue-listen", "127.0.0.1:0")...); r.code != exitFound {
			t.Fatalf("queue: exit %d: %s", r.code, r.stderr)
		}
		if a, b := read(t, out), read(t, queued); !bytes.Equal(a, b) {
			t.Errorf("the queue's rows differ: %s", cmp.Diff(readRows(t, out), readRows(t, queued)))
		}
	}
	// Without them.
	out := filepath.Join(t.TempDir(), "out.jsonl")
	if r := glimpse(t, "caption", sees, dir, "-o", out, "--max-tokens", "2", "--no-clips"); r.code != exitFound {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	if rows := readRows(t, out); len(rows) != 3 || rows[0].Clip != nil || rows[1].Error == nil || rows[1].Error.Kind != row.KindVideo {
		t.Errorf("%+v", rows)
	}
	r := glimpse(t, "caption", sees, dir, "-o", filepath.Join(t.TempDir(), "o.jsonl"), "--ffmpeg", "no-such-program")
	if r.code != exitFound || !strings.Contains(r.stderr, "--no-clips") || !strings.Contains(r.stderr, "install FFmpeg") {
		t.Errorf("without ffmpeg: exit %d: %s", r.code, r.stderr)
	}
	refused(t, glimpse(t, "caption", model(t), dir, "-o", out+"2", "--frames", "3"), "--frames", "takes none")
	refused(t, glimpse(t, "caption", sees, dir, "-o", out+"2", "--boxes"), "--boxes", "no boxes")
	refused(t, glimpse(t, "caption", sees, dir, "-o", out+"2", "--frames", "3", "--fps", "1"), "--frames", "--fps")
}

func TestClipToolErrors(t *testing.T) {
	a := &app{}
	if a.clipTool(nil) != nil {
		t.Error("no model takes videos")
	}
	problem := clipProblem(context.Canceled)
	if !errors.Is(problem, context.Canceled) || errors.Is(problem, batch.ErrTool) {
		t.Errorf("%v", problem)
	}
}

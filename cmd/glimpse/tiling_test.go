// ask with tiles and videos, as scripts see it.

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// tilingModel converts a golden set's checkpoint of a model that tiles.
func tilingModel(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "internvl3")
	must(t, "convert", "../../testdata/goldens/internvl3-tiny/checkpoint", "-o", out, "--precision", "fp32")
	return out
}

func TestAskTiling(t *testing.T) {
	wide := filepath.Join(media, "rocket_wide.png") // 400 × 150
	one, many := model(t), tilingModel(t)
	for _, tc := range []struct {
		name  string
		model string
		flags []string
		want  int // image tokens
	}{
		{"LLaVA-1.5 as released", one, nil, 16},
		{"one tile", one, []string{"--tiling", "off"}, 16},
		{"tiles for LLaVA-1.5", one, []string{"--tiling", "hd"}, 88}, // 3 × 2 tiles: 12 × 6 without padding, and the whole
		{"two of them", one, []string{"--tiling", "hd", "--max-tiles", "2"}, 48},
		{"InternVL as released", many, nil, 44}, // 5 × 2 tiles and the whole picture, 4 tokens each
		{"one tile", many, []string{"--tiling", "off"}, 4},
		{"at most four tiles", many, []string{"--max-tiles", "4"}, 16},
	} {
		args := append([]string{"ask", tc.model, "What?", "--image", wide, "--max-tokens", "2", "--json"}, tc.flags...)
		if got := decode[reply](t, must(t, args...).stdout).Usage.ImageTokens; got != tc.want {
			t.Errorf("%s: %d image tokens, want %d", tc.name, got, tc.want)
		}
	}
	refused(t, glimpse(t, "ask", many, "What?", "--image", wide, "--tiling", "hd"), "hd", "one tile")
	refused(t, glimpse(t, "ask", many, "What?", "--image", wide, "--max-tiles", "100"), "100 tiles")
	refused(t, glimpse(t, "ask", many, "What?", "--tiling", "fine"), "--tiling", "auto, off, hd")
}

func TestAskVideo(t *testing.T) {
	m := tilingModel(t)
	frames := filepath.Join(media, "video_pan8")
	args := []string{"ask", m, "What does the video show?", "--video", frames, "--max-tokens", "2", "--json"}
	if got := decode[reply](t, must(t, args...).stdout).Usage.ImageTokens; got != 32 {
		t.Errorf("8 frames are %d tokens, want 32", got)
	}
	// Pictures come first, then videos.
	args = append(args, "--image", filepath.Join(media, "tiny_40x30.png"), "--tiling", "off")
	if got := decode[reply](t, must(t, args...).stdout).Usage.ImageTokens; got != 36 {
		t.Errorf("a picture and 8 frames are %d tokens, want 36", got)
	}
	empty, strange := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "notes.txt"), []byte("no frame"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, glimpse(t, "ask", m, "hi", "--video", empty), empty, "0 files")
	refused(t, glimpse(t, "ask", m, "hi", "--video", strange), "notes.txt", "not a picture")
	refused(t, glimpse(t, "ask", m, "hi", "--video", filepath.Join(media, "cat.png")), "cat.png", "folder")
	refused(t, glimpse(t, "ask", m, "hi", "--raw", "--video", frames), "--video", "template")
	refused(t, glimpse(t, "ask", model(t), "hi", "--video", frames), frames, "takes no videos")
}

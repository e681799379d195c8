// ask about videos and sounds, as scripts see it.

package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const clipSet = "../../testdata/goldens/videollama-tiny"

// clipModel converts the golden checkpoint of a model that sees videos and hears.
func clipModel(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "videollama")
	must(t, "convert", filepath.Join(clipSet, "pieces.toml"), "-o", out, "--precision", "fp32")
	return out
}

// goldenIDs are the ids that upstream generates for a case.
func goldenIDs(t *testing.T, id string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(clipSet, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			ID       string
			Expected struct {
				IDs []int32 `json:"generated_ids"`
			}
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	for _, c := range file.Cases {
		if c.ID == id {
			return fmt.Sprint(c.Expected.IDs)
		}
	}
	t.Fatalf("no case %s", id)
	return ""
}

func TestAskClips(t *testing.T) {
	m := clipModel(t)
	frames, wave := filepath.Join(media, "shapes_64x48_30f_frames"), filepath.Join(media, "shapes_64x48_30f.wav")
	ask := func(args ...string) reply {
		return decode[reply](t, must(t, append([]string{"ask", m, "--max-tokens", "24", "--json"}, args...)...).stdout)
	}
	// In pure Go: a folder, of which the model's 8 frames are taken, and WAV.
	folder := ask("What is moving in the video?", "--video", frames, "--frame-rate", "10", "--ffmpeg", "no-such-program")
	if folder.Usage.ImageTokens != 32 || folder.Usage.PromptTokens != 139 {
		t.Errorf("%+v", folder.Usage)
	}
	if without := ask("What is moving in the video?", "--video", frames); without.Usage.PromptTokens >= 139 {
		t.Errorf("without times the prompt has %d tokens", without.Usage.PromptTokens)
	}
	if heard := ask("What do you hear?", "--audio", wave); heard.Usage.AudioTokens != 8 || heard.Usage.ImageTokens != 0 {
		t.Errorf("%+v", heard.Usage)
	}
	refused(t, glimpse(t, "ask", m, "hi", "--video", frames, "--frames", "3", "--fps", "1"), "--frames", "--fps")
	refused(t, glimpse(t, "ask", m, "hi", "--video", frames, "--fps", "1"), "not known", "frames")
	refused(t, glimpse(t, "ask", m, "hi", "--video", wave+".mp4"), wave, "no such file")
	refused(t, glimpse(t, "ask", m, "hi", "--audio", filepath.Join(media, "shapes_64x48_30f.mp4"), "--ffmpeg", "no-such-program"), "install FFmpeg", "--ffmpeg")
	refused(t, glimpse(t, "ask", model(t), "hi", "--audio", wave), wave, "takes no sound")

	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skip("ffmpeg is not installed")
	}
	// From the file, the answers of the authors' code.
	clip := filepath.Join(media, "shapes_64x48_30f.mp4")
	if got := fmt.Sprint(ask("What is moving in the video?", "--video", clip).TokenIDs); got != goldenIDs(t, "video") {
		t.Errorf("video: %v", got)
	}
	want := goldenIDs(t, "video_audio")
	if got := fmt.Sprint(ask("What do you hear?", "--video", clip, "--audio", clip).TokenIDs); got != want {
		t.Errorf("video and sound: %v, want %v", got, want)
	}
	raw, err := os.ReadFile(clip)
	if err != nil {
		t.Fatal(err)
	}
	absolute, err := filepath.Abs(wave)
	if err != nil {
		t.Fatal(err)
	}
	messages := filepath.Join(t.TempDir(), "messages.json")
	text := fmt.Sprintf(`[{"role":"user","content":[{"type":"video_url","video_url":{"url":"data:video/mp4;base64,%s"}},
		{"type":"audio_url","audio_url":{"url":"file://%s"}},{"type":"text","text":"What do you hear?"}]}]`, base64.StdEncoding.EncodeToString(raw), absolute)
	if err := os.WriteFile(messages, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(ask("--messages", messages).TokenIDs); got != want {
		t.Errorf("messages: %v, want %v", got, want)
	}
	// The same files with a model that takes frames one by one.
	many := tilingModel(t)
	for _, tc := range []struct {
		flags []string
		want  int
	}{{nil, 16 * 4}, {[]string{"--frames", "5"}, 5 * 4}, {[]string{"--fps", "2"}, 6 * 4}} {
		args := append([]string{"ask", many, "What?", "--video", clip, "--max-tokens", "2", "--json"}, tc.flags...)
		if got := decode[reply](t, must(t, args...).stdout).Usage.ImageTokens; got != tc.want {
			t.Errorf("%v: %d image tokens, want %d", tc.flags, got, tc.want)
		}
	}
}

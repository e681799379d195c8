package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Videos and sounds over HTTP, answered as upstream does.
func TestClipsOverHTTP(t *testing.T) {
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skip("ffmpeg is not installed")
	}
	raw, err := os.ReadFile(filepath.Join(goldens, "videollama-tiny", "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var set struct {
		Cases []struct {
			ID       string
			Expected json.RawMessage
		}
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	var want struct {
		Text   string `json:"text"`
		Prompt int    `json:"prompt_len"`
	}
	for _, c := range set.Cases {
		if c.ID == "video_audio" {
			if err := json.Unmarshal(c.Expected, &want); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := func(name string) string {
		data, err := os.ReadFile(filepath.Join(goldens, "media", name))
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(data)
	}
	clip, wave := file("shapes_64x48_30f.mp4"), file("shapes_64x48_30f.wav")
	video := `{"type":"video_url","video_url":{"url":"data:video/mp4;base64,` + clip + `"}}`
	body := func(parts ...string) string {
		return `{"model":"clips","max_tokens":24,"messages":[{"role":"user","content":[` + strings.Join(parts, ",") + `,{"type":"text","text":"What do you hear?"}]}]}`
	}
	e := realEngine(t, "videollama-tiny", "clips")
	h := handler(t, Options{Models: []Model{e}})
	for name, sound := range map[string]string{
		"audio_url":           `{"type":"audio_url","audio_url":{"url":"data:audio/wav;base64,` + wave + `"}}`,
		"audio_url of a clip": `{"type":"audio_url","audio_url":{"url":"data:video/mp4;base64,` + clip + `"}}`,
		"input_audio":         `{"type":"input_audio","input_audio":{"format":"wav","data":"` + wave + `"}}`,
	} {
		r := post(h, "/v1/chat/completions", "application/json", body(video, sound))
		var reply struct {
			Choices []struct{ Message struct{ Content string } }
			Usage   struct {
				Prompt  int `json:"prompt_tokens"`
				Details struct {
					Image int `json:"image_tokens"`
					Audio int `json:"audio_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		if err := json.Unmarshal(r.Body.Bytes(), &reply); err != nil || r.Code != 200 || len(reply.Choices) != 1 {
			t.Fatalf("%s: %d %s", name, r.Code, r.Body)
		}
		if d := reply.Usage.Details; d.Image != 32 || d.Audio != 8 {
			t.Errorf("%s: %+v", name, d)
		}
		if reply.Usage.Prompt != want.Prompt || reply.Choices[0].Message.Content != want.Text {
			t.Errorf("%s: %d tokens, %q; want %d, %q", name, reply.Usage.Prompt, reply.Choices[0].Message.Content, want.Prompt, want.Text)
		}
	}
	if r := get(h, "/v1/models/clips"); !strings.Contains(r.Body.String(), `"video","audio"`) {
		t.Errorf("%s", r.Body)
	}
	noise := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("noise", 100)))
	for _, part := range []string{
		`{"type":"video_url","video_url":{"url":"data:video/mp4;base64,` + noise + `"}}`,
		`{"type":"video_url","video_url":{"url":"data:text/plain;base64,` + noise + `"}}`,
		`{"type":"audio_url","audio_url":{"url":"data:audio/mp3;base64,` + noise + `"}}`,
		`{"type":"input_audio","input_audio":{"format":"wav","data":"%%%"}}`,
		`{"type":"video_url","audio_url":{"url":"data:audio/mp3;base64,` + noise + `"}}`,
	} {
		r := post(h, "/v1/chat/completions", "application/json", body(part))
		if r.Code != 400 || strings.Contains(r.Body.String(), os.TempDir()) {
			t.Errorf("%.60s: %d %s", part, r.Code, r.Body)
		}
	}
	deaf := handler(t, Options{Models: []Model{e}, FFmpeg: "no-such-program"})
	if r := post(deaf, "/v1/chat/completions", "application/json", body(video)); r.Code != 400 || !strings.Contains(fmt.Sprint(r.Body), "no FFmpeg") {
		t.Errorf("without ffmpeg: %d %s", r.Code, r.Body)
	}
}

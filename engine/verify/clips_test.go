package verify_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"glimpse/engine"
	"glimpse/engine/verify"
	"glimpse/media"
)

// A model that sees and hears clips, from its release in pieces: frames of a video file, sound, both in one prompt, a still
// picture. Each case's rows are named, so that none goes missing.
func TestClips(t *testing.T) {
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		t.Skip("ffmpeg is not installed")
	}
	const set = "videollama-tiny"
	answer := []string{"prompt_text", "input_ids", "num_image_tokens", "inputs_embeds", "logits_first", "logits_last", "generated_ids", "text_raw"}
	seen := []string{"pixel_values", "vision_features", "vit_output_frame0", "image_qformer", "video_qformer_input", "video_qformer", "projected"}
	frames := []string{"frames_uint8", "frame_indices", "video_frames"}
	heard := []string{"audio_qformer_input", "audio_qformer", "audio_projected"}
	sound := slices.Concat(heard, []string{"sound", "fbank", "imagebind_tokens_clip0", "imagebind_trunk_clip0", "imagebind_cls_normed",
		"imagebind_embedding", "imagebind_embedding from stored bins", "imagebind_cls_normed from stored bins"})
	wanted := map[string][]string{
		"video":                  slices.Concat(answer, seen, frames),
		"video_audio":            slices.Concat(answer, seen, frames, heard),
		"image":                  slices.Concat(answer, seen),
		"audio_chirp_16k_mono":   sound,
		"audio_chirp_44k_stereo": slices.Concat(sound, []string{"samples_16k", "resampled_head", "resampled_tail"}),
		"audio_shapes_64x48_30f": {"sound", "fbank"},
		"frame_sampling":         {"8 of 30 frames", "28 of 34 frames"},
		"segments":               {`"###Human: <Video>"`, `""`},
	}
	e := openSet(t, set)
	report, err := verify.Run(t.Context(), e, filepath.Join(goldens, set), verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK || len(report.Cases) != len(wanted) {
		t.Errorf("ok %v with %d cases, want %d", report.OK, len(report.Cases), len(wanted))
	}
	for _, c := range report.Cases {
		var names []string
		for _, r := range c.Rows {
			names = append(names, r.Array)
			if !r.OK {
				t.Errorf("%s %s: %g of %g %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.Note)
			}
		}
		for _, w := range wanted[c.ID] {
			if !slices.Contains(names, w) {
				t.Errorf("case %s has no row %s: %v", c.ID, w, names)
			}
		}
	}

	// Without FFmpeg a case with a video file is not passed over.
	report, err = verify.Run(t.Context(), e, filepath.Join(goldens, set), verify.Options{Cases: []string{"video"}, Media: media.New(media.Options{FFmpeg: "no-such-program"})})
	if err != nil || report.OK || !strings.Contains(report.Cases[0].Rows[0].Note, "apt-get install ffmpeg") {
		t.Errorf("without ffmpeg: %+v, %v", report, err)
	}
}

// The conversation for LLaMA-2 chat, where the pieces' .toml asks for it: texts as the authors' code puts them together.
func TestClipsInLlamaV2Style(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(goldens, "videollama-tiny", "pieces.toml"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(filepath.Join(goldens, "videollama-tiny"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(raw), `"checkpoint/`, `"`+root+`/checkpoint/`) + "llama_v2 = 1\n"
	pieces := filepath.Join(t.TempDir(), "pieces.toml")
	if err := os.WriteFile(pieces, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	e := openCheckpoint(t, pieces, "llama-v2")
	frame, err := os.ReadFile(filepath.Join(goldens, "media", "tiny_40x30.png"))
	if err != nil {
		t.Fatal(err)
	}
	pictures := []engine.Picture{{Data: frame}, {Data: frame}}
	words := func(s string) engine.Part { return engine.Part{Type: engine.PartText, Text: s} }
	video := engine.Part{Type: engine.PartVideo, Frames: pictures, Seconds: []float64{0, 0.25}}
	for _, tc := range []struct {
		messages []engine.Message
		want     string
	}{
		{[]engine.Message{{Role: "user", Content: []engine.Part{video, words("What moves?")}}},
			"[INST] <<SYS>>\n\n<</SYS>>\n\n<Video><VideoHere></Video> The video contains 2 frames sampled at 0.0, 0.2 seconds.  What moves? [/INST]"},
		{[]engine.Message{{Role: "system", Content: []engine.Part{words("Be brief.")}}, {Role: "user", Content: []engine.Part{words("Hi.")}},
			{Role: "assistant", Content: []engine.Part{words("Hello.")}}, {Role: "user", Content: []engine.Part{words("Bye.")}}},
			"[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST] Hello. </s><s>[INST] Bye. [/INST]"},
	} {
		p, err := e.Prepare(t.Context(), engine.Request{Messages: tc.messages})
		if err != nil {
			t.Fatal(err)
		}
		if p.PromptText != tc.want {
			t.Errorf("%q, want %q", p.PromptText, tc.want)
		}
		if p.TokenIDs[0] != 1 || p.TokenIDs[1] == 1 {
			t.Errorf("the prompt begins with ids %v", p.TokenIDs[:2])
		}
	}
	// More frames than have a position are refused before a graph runs.
	many := engine.Part{Type: engine.PartVideo, Frames: slices.Repeat(pictures[:1], 33)}
	_, err = e.Prepare(t.Context(), engine.Request{Messages: []engine.Message{{Role: "user", Content: []engine.Part{many, words("?")}}}})
	if err == nil || !strings.Contains(err.Error(), "at most 32") {
		t.Errorf("33 frames: %v", err)
	}
}

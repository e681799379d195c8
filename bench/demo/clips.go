package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// clipTruth is clips.json beside clips: what is asked of each one's frames, its sound, and both.
type clipTruth struct {
	Clips []struct {
		File      string
		Questions []question // of the kinds seen, heard and both
	}
}

// showClips describes the sample clips from their frames alone, from their sound alone, and from both. Two clips are too few
// for a share: all that is said of them must be true.
func showClips(ctx context.Context, d *demo, model string) error {
	for _, program := range []string{"ffmpeg", "ffprobe"} {
		if _, err := exec.LookPath(program); err != nil {
			fmt.Fprintf(d.out, "left out: MP4 files take FFmpeg, and %s is not on the PATH\n", program)
			return nil
		}
	}
	data, err := os.ReadFile(filepath.Join(d.Clips, "clips.json"))
	if err != nil {
		return err
	}
	var known clipTruth
	if err := json.Unmarshal(data, &known); err != nil {
		return fmt.Errorf("reading clips.json of %s: %w", d.Clips, err)
	}
	right, all := 0, 0
	for _, clip := range known.Clips {
		path := filepath.Join(d.Clips, clip.File)
		fmt.Fprintln(d.out, clip.File)
		for _, q := range clip.Questions {
			media := map[string][]string{"seen": {"--video", path}, "heard": {"--audio", path}, "both": {"--video", path, "--audio", path}}[q.Kind]
			if media == nil {
				return fmt.Errorf("clips.json of %s has a question of the kind %q", d.Clips, q.Kind)
			}
			printed, err := d.glimpse(ctx, append([]string{"ask", model, q.Question}, media...)...)
			if err != nil {
				return err
			}
			answer, verdict := strings.TrimSpace(string(printed)), "differs"
			if answer == q.Answer {
				right++
				verdict = "same"
			}
			all++
			fmt.Fprintf(d.out, "  %-6s  %s\n  truth   %s\n  %s\n", q.Kind, answer, q.Answer, verdict)
		}
	}
	return d.share("descriptions of clips are the true ones", right, all, 1)
}

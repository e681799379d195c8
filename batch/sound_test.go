package batch

import (
	"path/filepath"
	"strings"
	"testing"

	"glimpse/batch/row"
	"glimpse/batch/sink"
)

// A sound is a row that says so, whatever its name, and for models that take no videos as well.
func TestSoundsAreNoPictures(t *testing.T) {
	sounds := map[string]string{
		"a.wav": "RIFF\x24\x00\x00\x00WAVEfmt ", "b.flac": "fLaC\x00\x00", "c.mp3": "ID3\x04", "d.mp3": "\xff\xfb\x90\x64", "e.aac": "\xff\xf1\x50\x80", "f.jpg": "ID3\x03", "g.amr": "#!AMR\n",
	}
	dir := t.TempDir()
	var inputs []string
	for name, content := range sounds {
		path := filepath.Join(dir, name)
		write(t, path, content)
		inputs = append(inputs, path)
	}
	for _, tools := range []Tools{{}, {Clip: fakeClip}} {
		out := filepath.Join(t.TempDir(), "out.jsonl")
		mustCaption(t, &fake{}, Options{Inputs: inputs, Tools: tools, Sink: sink.Options{Out: out}})
		rows := readFile(t, out)
		if len(rows) != len(inputs) {
			t.Fatalf("%d rows of %d", len(rows), len(inputs))
		}
		for _, r := range rows {
			if r.Error == nil || r.Error.Kind != row.KindVideo || !strings.Contains(r.Error.Message, "sound") {
				t.Errorf("%s: %+v", r.ID, r.Error)
			}
		}
	}
	for _, picture := range []string{"\xff\xd8\xff\xe0", "RIFF\x00\x00\x00\x00WEBP", "\x89PNG", "", "\xff"} {
		if got := soundFormat([]byte(picture)); got != "" {
			t.Errorf("%q is %s", picture, got)
		}
	}
}

package batch

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"glimpse/batch/row"
	"glimpse/batch/sink"
	"glimpse/engine"

	"github.com/google/go-cmp/cmp"
)

// clipHead is how an MP4 file begins.
const clipHead = "\x00\x00\x00\x18ftypisom"

// fakeClip gives two frames of a video: the file's text in halves; of a folder its files.
func fakeClip(ctx context.Context, in ClipFile, choice ClipChoice, _ bool, hold func(context.Context, int64) error) (*Clip, error) {
	var frames []string
	if info, err := os.Stat(in.Path); err == nil && info.IsDir() {
		entries, err := os.ReadDir(in.Path)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			raw, err := os.ReadFile(filepath.Join(in.Path, e.Name()))
			if err != nil {
				return nil, err
			}
			frames = append(frames, string(raw))
		}
	} else {
		data := in.Data
		if in.Path != "" {
			var err error
			if data, err = os.ReadFile(in.Path); err != nil {
				return nil, err
			}
		}
		text := strings.TrimPrefix(string(data), clipHead)
		if strings.HasPrefix(text, "corrupt") {
			return nil, &row.ItemError{Kind: "corrupt", Message: "no such frames"}
		}
		frames = []string{text[:len(text)/2], text[len(text)/2:]}
	}
	if choice.Frames > 0 && len(frames) > choice.Frames {
		frames = frames[:choice.Frames]
	}
	clip := &Clip{Seconds: []float64{0, 0.5}, Seen: row.Clip{Total: 9, FPS: 2, Duration: 4.5, Seconds: []float64{0, 0.5}}, Width: 40, Height: 30}
	if hold != nil {
		if err := hold(ctx, int64(len(strings.Join(frames, "")))); err != nil {
			return nil, err
		}
	}
	for i, text := range frames {
		clip.Frames = append(clip.Frames, engine.Picture{Data: []byte(text)})
		clip.Seen.Frames = append(clip.Seen.Frames, 4*i)
	}
	return clip, nil
}

func sha(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// framesTar is a folder of frames as one file, made without packFrames.
func framesTar(t *testing.T, files ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644})); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// videos are a folder with one of each, and a list that names a folder of frames.
func videos(t *testing.T) (inputs []string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "in", "a.mp4"), clipHead+"a cat walks")
	write(t, filepath.Join(dir, "in", "b.png"), "a cat")
	write(t, filepath.Join(dir, "in", "c.jpg"), clipHead+"misnamed") // told by its first bytes
	write(t, filepath.Join(dir, "in", "d.webm"), clipHead+"corrupt")
	write(t, filepath.Join(dir, "in", "e.mkv"), "")
	write(t, filepath.Join(dir, "in", "f.mov"), clipHead+"a cat walks") // the bytes of the first
	write(t, filepath.Join(dir, "frames", "1.png"), "one ")
	write(t, filepath.Join(dir, "frames", "2.png"), "two")
	write(t, filepath.Join(dir, "list.txt"), filepath.Join(dir, "frames")+"\n")
	write(t, filepath.Join(dir, "shard.tar"), framesTar(t, "x.mp4", clipHead+"in a shard", "x.txt", "no"))
	return []string{filepath.Join(dir, "in"), filepath.Join(dir, "list.txt"), filepath.Join(dir, "shard.tar")}
}

func TestVideosAreInputs(t *testing.T) {
	inputs := videos(t)
	dir := filepath.Dir(inputs[0])
	out := filepath.Join(t.TempDir(), "out.jsonl")
	o := Options{Inputs: inputs, Tools: Tools{Clip: fakeClip}, Sink: sink.Options{Out: out}, Dedupe: DedupeExact}
	mustCaption(t, &fake{}, o)
	type short struct{ name, caption, kind, duplicate, sha string }
	var got []short
	for _, r := range readFile(t, out) {
		s := short{name: strings.TrimPrefix(r.ID, filepath.ToSlash(dir)+"/"), caption: r.Caption, sha: r.SHA256, duplicate: strings.TrimPrefix(r.DuplicateOf, filepath.ToSlash(dir)+"/")}
		if r.Error != nil {
			s.kind = r.Error.Kind
		}
		if (r.Clip != nil) != (r.Caption != "" && r.Caption != "<a cat> & What is it?") {
			t.Errorf("%s: clip %+v", r.ID, r.Clip)
		}
		if r.Clip != nil && (r.Width != 40 || r.PHash != "" || !cmp.Equal(r.Clip.Frames, []int{0, 4}) || r.Clip.Duration != 4.5) {
			t.Errorf("%+v %+v", r, r.Clip)
		}
		got = append(got, s)
	}
	walks := sha(clipHead + "a cat walks")
	want := []short{
		{"in/a.mp4", "<a cat walks> & What is it?", "", "", walks},
		{"in/b.png", "<a cat> & What is it?", "", "", sha("a cat")},
		{"in/c.jpg", "<misnamed> & What is it?", "", "", sha(clipHead + "misnamed")},
		{"in/d.webm", "", "corrupt", "", sha(clipHead + "corrupt")},
		{"in/e.mkv", "", row.KindEmpty, "", ""},
		{"in/f.mov", "", "", "in/a.mp4", walks},
		{"frames", "<one two> & What is it?", "", "", sha(framesTar(t, "1.png", "one ", "2.png", "two"))},
		{"shard.tar/x.mp4", "<in a shard> & What is it?", "", "", sha(clipHead + "in a shard")},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(short{})); d != "" {
		t.Fatalf("(-want +got):\n%s", d)
	}
	if s := mustCaption(t, &fake{}, o); s.Written != 0 || s.Skipped != 8 {
		t.Errorf("again: %+v", s)
	}
	o.Ask.Clips.Frames = 1 // other frames are another question
	o.Sink.Out = filepath.Join(t.TempDir(), "other.jsonl")
	mustCaption(t, &fake{}, o)
	if r := readFile(t, o.Sink.Out)[0]; r.Caption != "<a cat> & What is it?" || r.PromptHash == readFile(t, out)[0].PromptHash {
		t.Errorf("%+v", r)
	}
}

// A model without videos, and a run without them: none is listed, and one that is named says so.
func TestVideosThatAreNotWanted(t *testing.T) {
	inputs := videos(t)
	for name, o := range map[string]Options{
		"model": {Inputs: append(inputs, filepath.Join(inputs[0], "a.mp4"))},
		"run":   {Inputs: append(inputs, filepath.Join(inputs[0], "a.mp4")), Tools: Tools{Clip: fakeClip}, Ask: Ask{Clips: ClipChoice{Off: true}}},
	} {
		o.Sink.Out = filepath.Join(t.TempDir(), "out.jsonl")
		mustCaption(t, &fake{}, o)
		var kinds []string
		for _, r := range readFile(t, o.Sink.Out) {
			kind := filepath.Base(r.ID)
			if r.Error != nil {
				kind += " " + r.Error.Kind + " " + r.Error.Message
			}
			kinds = append(kinds, kind)
		}
		no := " unsupported_format it is a video, and this " + name + " takes none"
		if d := cmp.Diff([]string{"b.png", "c.jpg" + no, "frames unreadable not a regular file", "a.mp4" + no}, kinds); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// WebDataset samples hold the video itself, and a folder of frames as a tar file.
func TestVideosInWebDataset(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	mustCaption(t, &fake{}, Options{Inputs: videos(t), Tools: Tools{Clip: fakeClip}, Sink: sink.Options{Out: out, Format: sink.WebDataset}})
	f, err := os.Open(filepath.Join(out, "part-00000.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	members := map[string]int64{}
	in := tar.NewReader(f)
	for {
		h, err := in.Next()
		if err != nil {
			break
		}
		_, extension, _ := strings.Cut(h.Name, ".")
		members[extension]++
		if extension == row.FramesExtension && h.Size < 1024 {
			t.Errorf("%s has %d bytes", h.Name, h.Size)
		}
	}
	want := map[string]int64{"mp4": 4, "bin": 1, "frames.tar": 1, "txt": 6, "json": 6}
	if d := cmp.Diff(want, members); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A file that changes between its hash and its frames is not captioned under the wrong hash.
func TestVideoThatChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.mp4")
	write(t, path, clipHead+"before")
	tool := func(ctx context.Context, in ClipFile, c ClipChoice, no bool, hold func(context.Context, int64) error) (*Clip, error) {
		write(t, path, clipHead+"after it was hashed")
		return fakeClip(ctx, in, c, no, hold)
	}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	mustCaption(t, &fake{}, Options{Inputs: []string{path}, Tools: Tools{Clip: tool}, Sink: sink.Options{Out: out}})
	if r := readFile(t, out)[0]; r.Error == nil || r.Error.Kind != row.KindUnreadable || !strings.Contains(r.Error.Message, "changed") {
		t.Errorf("%+v", r)
	}
}

// Without FFmpeg no row is written that another machine would write better.
func TestAMachineThatReadsNoVideosEndsTheRun(t *testing.T) {
	tool := func(context.Context, ClipFile, ClipChoice, bool, func(context.Context, int64) error) (*Clip, error) {
		return nil, fmt.Errorf("%w: no ffmpeg", ErrTool)
	}
	path, out := filepath.Join(t.TempDir(), "a.mp4"), filepath.Join(t.TempDir(), "out.jsonl")
	write(t, path, clipHead+"x")
	o := Options{Inputs: []string{path}, Tools: Tools{Clip: tool}, Sink: sink.Options{Out: out}}
	if _, err := Caption(context.Background(), &fake{}, o); !errors.Is(err, ErrTool) {
		t.Errorf("error %v", err)
	}
	if rows := readFile(t, out); len(rows) != 0 {
		t.Errorf("%+v", rows)
	}
	o.Tools.Clip = fakeClip
	if s := mustCaption(t, &fake{}, o); s.Written != 1 || s.Failed != 0 {
		t.Errorf("%+v", s)
	}
}

// The frames that are decoded at once may not take more than Options.Memory.
func TestFramesAreBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range 30 {
		write(t, filepath.Join(dir, fmt.Sprintf("%02d.mp4", i)), fmt.Sprintf("%s%02d%s", clipHead, i, strings.Repeat("x", 1000)))
	}
	var held, highest atomic.Int64
	tool := func(ctx context.Context, in ClipFile, c ClipChoice, no bool, hold func(context.Context, int64) error) (*Clip, error) {
		clip, err := fakeClip(ctx, in, c, no, hold)
		if n := held.Add(1); n > highest.Load() {
			highest.Store(n)
		}
		return clip, err
	}
	f := &fake{hook: func(context.Context, string) error { held.Add(-1); return nil }}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	mustCaption(t, f, Options{Inputs: []string{dir}, Tools: Tools{Clip: tool}, Sink: sink.Options{Out: out}, Parallel: 8, Memory: 3500})
	if n := highest.Load(); n > 3 {
		t.Errorf("the frames of %d videos of 1 kB are held, 3.5 kB allowed", n)
	}
	if rows := readFile(t, out); len(rows) != 30 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestPackedFolders(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "frames", "2.png"), "two")
	write(t, filepath.Join(dir, "frames", "10.png"), "ten")
	var packed bytes.Buffer
	if err := packFrames(&packed, filepath.Join(dir, "frames")); err != nil {
		t.Fatal(err)
	}
	if !row.IsPackedFolder(packed.Bytes()) {
		t.Error("it is not known again")
	}
	to := filepath.Join(dir, "to")
	if err := errors.Join(os.Mkdir(to, 0o755), unpackFrames(packed.Bytes(), to)); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(to, "10.png")); string(raw) != "ten" {
		t.Errorf("%q %v", raw, err)
	}
	for _, name := range []string{"../up.png", "/abs.png", "a/b.png", "..", ""} {
		if err := unpackFrames([]byte(framesTar(t, name, "x")), t.TempDir()); err == nil {
			t.Errorf("a member %q was unpacked", name)
		}
	}
	write(t, filepath.Join(dir, "frames", "below", "x.png"), "deep")
	if err := packFrames(&packed, filepath.Join(dir, "frames")); err == nil {
		t.Error("a folder in the folder was packed")
	}
	if err := packFrames(&packed, to+"/none"); err == nil {
		t.Error("no folder was packed")
	}
}

func FuzzUnpackFrames(f *testing.F) {
	f.Add([]byte("no tar"))
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a.png", Size: 1, Mode: 0o644})
	_, _ = w.Write([]byte("x"))
	_ = w.Close()
	f.Add(packed.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		above := t.TempDir()
		folder := filepath.Join(above, "in")
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = unpackFrames(raw, folder)
		if entries, _ := os.ReadDir(above); len(entries) != 1 {
			t.Fatalf("it wrote beside the folder: %v", entries)
		}
	})
}

func TestBoxesInRows(t *testing.T) {
	dir := pictures(t, "a cat", "corrupt")
	for _, on := range []bool{false, true} {
		out := filepath.Join(t.TempDir(), "out.jsonl")
		mustCaption(t, &pointing{}, Options{Inputs: []string{dir}, Ask: Ask{Boxes: on, Prompts: []string{"one", "two"}}, Sink: sink.Options{Out: out}})
		rows := readFile(t, out)
		var want []row.Box
		if on {
			want = []row.Box{{Label: "it", X1: 1, Y1: 2, X2: 3, Y2: 5}}
		}
		if d := cmp.Diff(want, rows[0].Boxes); d != "" {
			t.Errorf("boxes %v (-want +got):\n%s", on, d)
		}
		if d := cmp.Diff(want, rows[0].Captions[1].Boxes); d != "" || rows[1].Boxes != nil {
			t.Errorf("boxes %v of the second prompt (-want +got):\n%s", on, d)
		}
	}
	if _, err := Caption(context.Background(), &fake{}, Options{Inputs: []string{dir}, Ask: Ask{Boxes: true}, Sink: sink.Options{Out: filepath.Join(t.TempDir(), "o.jsonl")}}); !errors.Is(err, ErrInput) {
		t.Errorf("a model that points at nothing: %v", err)
	}
}

package batch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"glimpse/batch/row"
	"glimpse/batch/sink"
	"glimpse/engine"
	"glimpse/manifest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake answers with the picture's bytes, after a random pause. Bytes say how it fails: "corrupt", "long", "broken".
type fake struct {
	pause    time.Duration // the longest
	inFlight atomic.Int64
	highest  atomic.Int64
	calls    atomic.Int64
	hook     func(ctx context.Context, text string) error
}

func (f *fake) Name() string { return "fake" }

func (f *fake) Manifest() *manifest.Manifest {
	return &manifest.Manifest{Prompt: manifest.Prompt{Template: "chat.jinja", Caption: "What is it?", RawCaption: "raw"}}
}

func (f *fake) Generate(ctx context.Context, req engine.Request) (*engine.Result, error) {
	f.calls.Add(1)
	n := f.inFlight.Add(1)
	defer f.inFlight.Add(-1)
	for {
		old := f.highest.Load()
		if n <= old || f.highest.CompareAndSwap(old, n) {
			break
		}
	}
	content := req.Messages[0].Content
	text := ""
	if content[0].Type == engine.PartVideo {
		for _, frame := range content[0].Frames {
			text += string(frame.Data)
		}
	} else {
		text = string(content[0].Picture.Data)
	}
	if f.hook != nil {
		if err := f.hook(ctx, text); err != nil {
			return nil, err
		}
	}
	if f.pause > 0 {
		select {
		case <-time.After(rand.N(f.pause)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch {
	case strings.HasPrefix(text, "corrupt"):
		return nil, &engine.RequestError{Param: "messages", Code: engine.CodeImage, Err: engine.ErrPicture, Message: text + " is not a picture"}
	case strings.HasPrefix(text, "long"):
		return nil, &engine.RequestError{Code: engine.CodeContextLength, Err: engine.ErrContextTooLong, Message: "too long"}
	case strings.HasPrefix(text, "broken"):
		return nil, errors.New("the native call failed")
	}
	said := "<" + text + "> & " + content[len(content)-1].Text
	return &engine.Result{Text: said, Boxes: []engine.Box{{Label: "it", X1: 1, Y1: 2, X2: 3, Y2: len(text)}}, Usage: engine.Usage{CompletionTokens: len(text)}}, nil
}

// pictures writes files with the contents and returns their folder.
func pictures(t testing.TB, contents ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, c := range contents {
		write(t, filepath.Join(dir, fmt.Sprintf("%04d.png", i)), c)
	}
	return dir
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, path string) []Row {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, raw)
}

func parse(t testing.TB, raw []byte) []Row {
	t.Helper()
	if len(raw) > 0 && raw[len(raw)-1] != '\n' {
		t.Fatalf("the output ends in half a line: %q", raw[max(0, len(raw)-80):])
	}
	var rows []Row
	for line := range bytes.Lines(raw) {
		var r Row
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			t.Fatalf("row %q: %v", line, err)
		}
		rows = append(rows, r)
	}
	return rows
}

// sameRows compares all but the times.
func sameRows(t interface {
	Helper()
	Fatalf(string, ...any)
}, got, want []Row) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Row{}, "MS"), cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("rows differ (-want +got):\n%s", d)
	}
}

func mustCaption(t testing.TB, m Captioner, o Options) *Summary {
	t.Helper()
	s, err := Caption(context.Background(), m, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRowsAreInOrderAndCountedOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		kinds := rapid.SliceOfN(rapid.SampledFrom([]string{"a cat", "a dog", "corrupt", "long", "broken", ""}), 1, 60).Draw(rt, "contents")
		parallel := rapid.IntRange(1, 9).Draw(rt, "parallel")
		contents := make([]string, len(kinds))
		var failed, internal int64
		for i, k := range kinds {
			if k != "" {
				contents[i] = fmt.Sprintf("%s %d", k, i)
			}
			if !strings.HasPrefix(k, "a ") {
				failed++
			}
			// Fewer in a row than end a run.
			if k == "broken" {
				if internal++; internal%int64(maxInternal-1) == 0 {
					contents[i] = fmt.Sprintf("a bird %d", i)
					failed--
				}
			}
		}
		dir := pictures(t, contents...)
		out := filepath.Join(t.TempDir(), "out.jsonl")
		f := &fake{pause: 300 * time.Microsecond}
		s := mustCaption(t, f, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}, Parallel: parallel})
		rows := readFile(t, out)
		if len(rows) != len(contents) {
			rt.Fatalf("%d rows for %d inputs", len(rows), len(contents))
		}
		for i, r := range rows {
			if want := filepath.ToSlash(filepath.Join(dir, fmt.Sprintf("%04d.png", i))); r.ID != want {
				rt.Fatalf("row %d is %s, want %s", i, r.ID, want)
			}
			if (r.Error == nil) != strings.HasPrefix(contents[i], "a ") {
				rt.Fatalf("row %d of %q has error %v", i, contents[i], r.Error)
			}
			if r.Error == nil && r.Caption != "<"+contents[i]+"> & What is it?" {
				rt.Fatalf("row %d of %q says %q", i, contents[i], r.Caption)
			}
		}
		if s.Written != int64(len(contents)) || s.Failed != failed {
			rt.Fatalf("summary %+v, want %d written and %d failed", s, len(contents), failed)
		}
		if n := f.highest.Load(); n > int64(parallel) {
			rt.Fatalf("%d requests in flight, %d allowed", n, parallel)
		}
	})
}

func TestKindsOfErrors(t *testing.T) {
	dir := pictures(t, "a cat", "corrupt", "long", "broken", "", strings.Repeat("x", 100))
	write(t, filepath.Join(dir, "gone.png"), "a cat")
	if err := os.Remove(filepath.Join(dir, "gone.png")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "gone.png"), filepath.Join(dir, "link.png")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "z.png"), 0o755); err != nil { // a folder, not a picture
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	s := mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}, MaxBytes: 50})
	var got []string
	for _, r := range readFile(t, out) {
		kind := "ok"
		if r.Error != nil {
			kind = r.Error.Kind
			if strings.ContainsAny(r.Error.Message, "\n") || r.Error.Message == "" {
				t.Errorf("%s: message %q", kind, r.Error.Message)
			}
		}
		if (r.SHA256 == "") != (kind == row.KindEmpty || kind == row.KindTooLarge || kind == row.KindMissing) {
			t.Errorf("%s: sha256 %q", kind, r.SHA256)
		}
		got = append(got, kind)
	}
	want := []string{"ok", row.KindBadPicture, row.KindTooLong, row.KindInternal, row.KindEmpty, row.KindTooLarge, row.KindMissing}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("kinds (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]int64{row.KindBadPicture: 1, row.KindTooLong: 1, row.KindInternal: 1, row.KindEmpty: 1, row.KindTooLarge: 1, row.KindMissing: 1}, s.Errors); d != "" {
		t.Fatalf("summary (-want +got):\n%s", d)
	}
}

func TestResumeAfterTruncation(t *testing.T) {
	dir := pictures(t, "a cat", "corrupt ü \"quoted\"", "a dog", "", "a <tag>\n")
	whole := filepath.Join(t.TempDir(), "whole.jsonl")
	mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: whole}})
	raw, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	want := parse(t, raw)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	for n := range len(raw) + 1 {
		// Every byte around the ends of lines, where a mistake would sit, and some between: each cut costs several syncs.
		if near := raw[max(0, n-2):min(len(raw), n+8+2)]; n%13 != 0 && !bytes.Contains(near, []byte("\n")) {
			continue
		}
		for _, tail := range []string{"", "\x00\x00\x00"} {
			if err := os.WriteFile(out, append(slices.Clone(raw[:n]), tail...), 0o644); err != nil {
				t.Fatal(err)
			}
			s := mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}})
			sameRows(t, readFile(t, out), want)
			if s.Written+s.Skipped != int64(len(want)) || s.Skipped != int64(bytes.Count(raw[:n], []byte("\n"))) {
				t.Fatalf("cut at %d: %+v", n, s)
			}
			if s.Failed+s.FailedBefore != 2 {
				t.Fatalf("cut at %d: %d+%d failed, want 2", n, s.Failed, s.FailedBefore)
			}
		}
	}
}

// A killed process leaves what was written by then, and perhaps half of the last write.
func TestResumeAfterKillsAtRandomPoints(t *testing.T) {
	var contents []string
	for i := range 80 {
		contents = append(contents, fmt.Sprintf("%s %d", []string{"a cat", "a dog", "corrupt", "long"}[i%4], i))
	}
	dir := pictures(t, contents...)
	whole := filepath.Join(t.TempDir(), "whole.jsonl")
	mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: whole}})
	want := readFile(t, whole)
	rapid.Check(t, func(rt *rapid.T) {
		out := filepath.Join(t.TempDir(), "out.jsonl")
		for range rapid.IntRange(1, 4).Draw(rt, "kills") {
			ctx, kill := context.WithCancel(context.Background())
			after := int64(rapid.IntRange(1, len(contents)).Draw(rt, "after"))
			f := &fake{pause: 100 * time.Microsecond}
			f.hook = func(context.Context, string) error {
				if f.calls.Load() >= after {
					kill()
				}
				return nil
			}
			_, err := Caption(ctx, f, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}, Parallel: 5})
			kill()
			if err != nil && !errors.Is(err, context.Canceled) {
				rt.Fatal(err)
			}
			rows := readFile(t, out) // valid and without a gap after an interrupt
			sameRows(rt, rows, want[:len(rows)])
			raw, _ := os.ReadFile(out)
			cut := rapid.IntRange(0, min(len(raw), 400)).Draw(rt, "cut")
			if err := os.Truncate(out, int64(len(raw)-cut)); err != nil {
				rt.Fatal(err)
			}
		}
		mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}, Parallel: 3})
		sameRows(rt, readFile(t, out), want)
	})
}

func TestOtherPromptIsAnotherRow(t *testing.T) {
	dir := pictures(t, "a cat", "a dog")
	out := filepath.Join(t.TempDir(), "out.jsonl")
	mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}})
	mustCaption(t, &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}, Ask: Ask{Prompts: []string{"What colour?"}}})
	s := mustCaption(t, &fake{}, Options{Inputs: []string{dir, dir + "/*.png"}, Sink: sink.Options{Out: out}, Ask: Ask{Prompts: []string{"What colour?"}}})
	if rows := readFile(t, out); len(rows) != 4 || s.Written != 0 || s.Skipped != 4 {
		t.Fatalf("%d rows, %+v", len(rows), s)
	}
}

func TestModelFailuresInARowEndTheRun(t *testing.T) {
	var contents []string
	for range maxInternal + 20 {
		contents = append(contents, "broken")
	}
	contents[0], contents[1] = "a cat", "broken once"
	contents[2] = "a dog"
	dir := pictures(t, contents...)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	_, err := Caption(context.Background(), &fake{}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: out}, Parallel: 2})
	if err == nil || !strings.Contains(err.Error(), "the native call failed") {
		t.Fatalf("error %v", err)
	}
	// The failures that ended the run are tried again by the next; the one between good pictures is that picture's.
	if rows := readFile(t, out); len(rows) != 3 || rows[1].Error == nil {
		t.Fatalf("rows %+v", rows)
	}
}

func TestClosedEngineEndsTheRun(t *testing.T) {
	f := &fake{hook: func(context.Context, string) error { return engine.ErrClosed }}
	out := filepath.Join(t.TempDir(), "out.jsonl")
	_, err := Caption(context.Background(), f, Options{Inputs: []string{pictures(t, "a", "b", "c")}, Sink: sink.Options{Out: out}})
	if !errors.Is(err, engine.ErrClosed) {
		t.Fatalf("error %v", err)
	}
	if rows := readFile(t, out); len(rows) != 0 {
		t.Fatalf("rows %+v", rows)
	}
}

// While the first picture hangs, no more than the window may be started: results would pile up.
func TestWindowBoundsWhatWaits(t *testing.T) {
	contents := []string{"a stuck one"}
	for i := range 200 {
		contents = append(contents, fmt.Sprintf("a cat %d", i))
	}
	release := make(chan struct{})
	f := &fake{hook: func(ctx context.Context, text string) error {
		if text == "a stuck one" {
			<-release
		}
		return nil
	}}
	const parallel = 2
	var once sync.Once
	go func() {
		for f.calls.Load() < parallel*windowPerWorker {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(30 * time.Millisecond) // time to go beyond the bound, if it does not hold
		once.Do(func() { close(release) })
	}()
	var highest int64
	out := filepath.Join(t.TempDir(), "out.jsonl")
	mustCaption(t, f, Options{Inputs: []string{pictures(t, contents...)}, Sink: sink.Options{Out: out}, Parallel: parallel, Progress: func(p Progress) {
		if highest == 0 {
			highest = f.calls.Load()
		}
	}})
	if bound := int64(parallel*windowPerWorker + parallel); highest > bound {
		t.Fatalf("%d pictures were started while the first hung, bound %d", highest, bound)
	}
	if rows := readFile(t, out); len(rows) != len(contents) {
		t.Fatalf("%d rows", len(rows))
	}
}

func TestStreamOutput(t *testing.T) {
	var b bytes.Buffer
	s := mustCaption(t, &fake{pause: 5 * time.Millisecond}, Options{Inputs: []string{pictures(t, "a cat", "corrupt")}, Sink: sink.Options{Out: "-", Stdout: &b},
		Tools: Tools{Inspect: func([]byte, bool) (Look, error) { return Look{Width: 3, Height: 2}, nil }}})
	rows := parse(t, b.Bytes())
	if len(rows) != 2 || s.Failed != 1 || rows[0].Width != 3 || rows[0].Height != 2 || rows[0].Tokens != 5 {
		t.Fatalf("%+v %+v", rows, s)
	}
	if rows[0].MS+rows[1].MS <= 0 {
		t.Fatalf("rows took no time: %+v", rows)
	}
	if !strings.HasPrefix(b.String(), `{"id":"`) {
		t.Fatal("rows must begin with their id: the torn-line rule relies on it")
	}
}

func TestFailingOutputEndsTheRun(t *testing.T) {
	_, err := Caption(context.Background(), &fake{}, Options{Inputs: []string{pictures(t, "a", "b", "c")}, Sink: sink.Options{Out: "-", Stdout: failingWriter{}}})
	if err == nil || !strings.Contains(err.Error(), "disk is full") || strings.Count(err.Error(), "disk is full") != 1 {
		t.Fatalf("error %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk is full") }

func TestProgressCounts(t *testing.T) {
	dir := pictures(t, "a cat", "corrupt", "a dog")
	var last Progress
	mustCaption(t, &fake{pause: time.Millisecond}, Options{Inputs: []string{dir}, Sink: sink.Options{Out: filepath.Join(t.TempDir(), "o.jsonl")},
		Progress: func(p Progress) { last = p }})
	if last.Done != 3 || last.Failed != 1 || last.Tokens != 10 || (last.Total != 3 && last.Total != -1) {
		t.Fatalf("%+v", last)
	}
}

func TestRequest(t *testing.T) {
	one := []engine.Picture{{Source: "a"}}
	two := []engine.Picture{{Source: "a"}, {Source: "b"}}
	chat := &manifest.Manifest{Prompt: manifest.Prompt{Template: "t", Placeholder: "<image>", Caption: "Describe.", RawCaption: "raw"}}
	raw := &manifest.Manifest{Prompt: manifest.Prompt{Placeholder: "<image>", Caption: "Describe.", RawCaption: "<image>a photo of"}}
	bare := &manifest.Manifest{Prompt: manifest.Prompt{Caption: "Describe."}}
	text := func(s string) engine.Part { return engine.Part{Type: engine.PartText, Text: s} }
	picture := func(p *engine.Picture) engine.Part { return engine.Part{Type: engine.PartImage, Picture: p} }
	user := func(parts ...engine.Part) engine.Request {
		return engine.Request{Messages: []engine.Message{{Role: "user", Content: parts}}}
	}
	for _, tc := range []struct {
		name     string
		m        *manifest.Manifest
		pictures []engine.Picture
		prompt   string
		want     engine.Request
	}{
		{"chat", chat, two, "Which?", user(picture(&two[0]), picture(&two[1]), text("Which?"))},
		{"chat caption", chat, one, "", user(picture(&one[0]), text("Describe."))},
		{"chat text", chat, nil, "Hello", user(text("Hello"))},
		{"raw caption", raw, one, "", engine.Request{Raw: true, Prompt: "<image>a photo of", Pictures: one}},
		{"raw question", raw, two, "Which?", engine.Request{Raw: true, Prompt: "<image><image>Which?", Pictures: two}},
		{"raw with placeholders", raw, one, "In <image>?", engine.Request{Raw: true, Prompt: "In <image>?", Pictures: one}},
		{"no placeholder at all", bare, one, "", engine.Request{Raw: true, Prompt: "Describe.", Pictures: one}},
	} {
		if d := cmp.Diff(tc.want, Request(tc.m, tc.pictures, tc.prompt), cmpopts.IgnoreFields(engine.Request{}, "Token")); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

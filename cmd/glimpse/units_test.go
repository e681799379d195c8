package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"glimpse/engine"

	"github.com/spf13/pflag"
)

func base64Of(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

func TestRateTogetherCountsTheSharedTime(t *testing.T) {
	at := func(seconds ...float64) []time.Time {
		var list []time.Time
		for _, s := range seconds {
			list = append(list, time.Unix(0, 0).Add(time.Duration(s*float64(time.Second))))
		}
		return list
	}
	for _, tc := range []struct {
		name  string
		times [][]time.Time
		want  float64
	}{
		{"one", [][]time.Time{at(1, 2, 3)}, 1},
		{"two at once", [][]time.Time{at(1, 2, 3), at(1, 2, 3)}, 2},
		{"one starts late and one ends early", [][]time.Time{at(0, 1, 2, 3), at(1, 2, 3, 4, 5)}, 2},
		{"never together", [][]time.Time{at(0, 1), at(2, 3)}, 0},
		{"one token", [][]time.Time{at(1)}, 0},
		{"none", [][]time.Time{nil, at(1)}, 0},
	} {
		if got := rateTogether(tc.times); got != tc.want {
			t.Errorf("%s: %v tokens a second, want %v", tc.name, got, tc.want)
		}
	}
}

func TestSpread(t *testing.T) {
	if got := *spreadOf([]float64{3, 1, 2}); got != (spread{1, 2, 3}) {
		t.Errorf("%v", got)
	}
	if got := *spreadOf([]float64{4, 1, 2, 3}); got != (spread{1, 2.5, 4}) {
		t.Errorf("%v", got)
	}
	if spreadOf(nil) != nil {
		t.Error("nothing measured must not look like a measurement")
	}
}

func TestErrorsAreOneLineWithoutControls(t *testing.T) {
	err := errors.Join(errors.New("first\tname \x1b[31m"), errors.New("second"))
	if got := oneLine(err); got != "first?name ?[31m; second" {
		t.Errorf("%q", got)
	}
}

func TestExitCodes(t *testing.T) {
	stopped, stop := context.WithCancelCause(context.Background())
	signal := errors.New("interrupt signal received")
	stop(signal)
	going := context.Background()
	for _, tc := range []struct {
		ctx  context.Context
		err  error
		want int
	}{
		{going, nil, 0},
		{going, errFound, 1},
		{going, errors.New("disk full"), 1},
		{going, fmt.Errorf("x: %w", badInputf("y")), 2},
		{going, fmt.Errorf("x: %w", &engine.RequestError{Message: "y"}), 2},
		{going, context.Canceled, 1},
		{stopped, fmt.Errorf("x: %w", context.Canceled), 130},
		{stopped, fmt.Errorf("x: %w", signal), 130},
		{stopped, nil, 0},
		{stopped, badInputf("y"), 2},
	} {
		if got := exitCode(tc.ctx, tc.err); got != tc.want {
			t.Errorf("%v: exit %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestPlainProgressLine(t *testing.T) {
	m := &meter{unit: unitBytes, start: time.Now().Add(-10 * time.Second)}
	m.done, m.total, m.note = 1<<30, 2<<30, "decoder"
	got := m.line()
	for _, part := range []string{"1.0 GiB of 2.0 GiB", "102.4 MiB/s", "10s left", "decoder"} {
		if !strings.Contains(got, part) {
			t.Errorf("%q lacks %q", got, part)
		}
	}
	p := &meter{unit: unitPictures, start: time.Now().Add(-10 * time.Second), done: 120, total: -1, skipped: 100}
	if got := p.line(); strings.Contains(got, "left") || !strings.HasPrefix(got, "120 pictures, ") || !strings.Contains(got, "2.00 pictures/s") && !strings.Contains(got, "1.99 pictures/s") {
		t.Errorf("%q", got)
	}
	p.total = 160 // what cost no work does not count for the time left
	if got := p.line(); !strings.HasPrefix(got, "120 of 160 pictures, ") || !strings.Contains(got, "20s left") {
		t.Errorf("%q", got)
	}
}

func TestByteSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 40: "5.0 TiB", 1 << 62: "4096.0 PiB"} {
		if got := byteSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

type slowWriter struct {
	delay time.Duration
	fail  error
	text  strings.Builder
}

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(w.delay)
	if w.fail != nil {
		return 0, w.fail
	}
	return w.text.Write(p)
}

func TestPrinterKeepsOrderAndNeverBlocks(t *testing.T) {
	w := &slowWriter{delay: 20 * time.Millisecond}
	p := newPrinter(w, func(error) { t.Error("given up") })
	start := time.Now()
	var want strings.Builder
	for i := range 1000 {
		text := fmt.Sprint(i, " ")
		want.WriteString(text)
		p.print(text)
	}
	if d := time.Since(start); d > 500*time.Millisecond {
		t.Errorf("printing blocked for %v", d)
	}
	if err := p.close(); err != nil || w.text.String() != want.String() {
		t.Errorf("%v, %d bytes of %d", err, w.text.Len(), want.Len())
	}
}

func TestPrinterGivesUpWhenWritingFails(t *testing.T) {
	full := errors.New("full")
	gaveUp := make(chan error, 1)
	p := newPrinter(&slowWriter{fail: full}, func(err error) { gaveUp <- err })
	p.print("x")
	if err := <-gaveUp; err != full {
		t.Errorf("%v", err)
	}
	p.print("more") // must not block or panic
	if err := p.close(); err != full {
		t.Errorf("%v", err)
	}
}

func TestMessages(t *testing.T) {
	const pixel = `"data:image/png;base64,iVBORw0KGgo="`
	for _, tc := range []struct{ name, raw, want string }{
		{"text", `[{"role":"user","content":"hi"}]`, ""},
		{"parts", `[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":` + pixel + `}}]}]`, ""},
		{"url alone", `[{"role":"user","content":[{"type":"image_url","image_url":` + pixel + `}]}]`, ""},
		{"empty text", `[{"role":"user","content":""}]`, ""},
		{"no list", `{"role":"user"}`, "array"},
		{"empty list", `[]`, "no messages"},
		{"no role", `[{"content":"hi"}]`, "messages[0]: role"},
		{"no content", `[{"role":"user"}]`, "messages[0]: content"},
		{"null content", `[{"role":"user","content":null}]`, "" /* an assistant's turn may be empty; see below */},
		{"unknown field", `[{"role":"user","content":"hi","tool_calls":[]}]`, "tool_calls"},
		{"unknown type", `[{"role":"user","content":[{"type":"picture"}]}]`, `"picture"`},
		{"video", `[{"role":"user","content":[{"type":"video_url","video_url":{"url":"a.mp4"}}]}]`, "video_url"},
		{"detail", `[{"role":"user","content":[{"type":"image_url","image_url":{"url":` + pixel + `,"detail":"low"}}]}]`, "detail"},
		{"http", `[{"role":"user","content":[{"type":"image_url","image_url":"http://example.org/a.png"}]}]`, "network"},
		{"not base64", `[{"role":"user","content":[{"type":"image_url","image_url":"data:image/png,abc"}]}]`, "base64"},
		{"bad base64", `[{"role":"user","content":[{"type":"image_url","image_url":"data:image/png;base64,!!"}]}]`, "base64"},
		{"remote file", `[{"role":"user","content":[{"type":"image_url","image_url":"file://server/a.png"}]}]`, "this machine"},
		{"two values", `[{"role":"user","content":"hi"}] []`, "follows"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parseMessages(t.Context(), []byte(tc.raw), false, nil)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want one that has %q", err, tc.want)
			}
		})
	}
	got, err := parseMessages(t.Context(), []byte(`[{"role":"user","content":[{"type":"image_url","image_url":`+pixel+`}]}]`), true, nil)
	if err != nil || !got[0].Content[0].Picture.IgnoreEXIF || len(got[0].Content[0].Picture.Data) != 8 {
		t.Errorf("%+v %v", got, err)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(`[{"role":"user","content":[{"type":"text","text":"hi"}]}]`))
	f.Add([]byte(`[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]}]`))
	f.Add([]byte(`[{"role":"user","content":null}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		messages, err := parseMessages(t.Context(), raw, false, nil)
		if err != nil {
			return
		}
		for _, m := range messages {
			for _, p := range m.Content {
				if (p.Type == engine.PartImage) != (p.Picture != nil) {
					t.Fatalf("%s part with picture %v", p.Type, p.Picture)
				}
			}
		}
	})
}

func TestFlagValues(t *testing.T) {
	var n int
	var list []int
	var level slog.Level
	var given bool
	var word string
	for _, tc := range []struct {
		set  func(string) error
		good []string
		bad  []string
	}{
		{(&count{&n, 1}).Set, []string{"1", "77"}, []string{"0", "-1", "x", "", "1.5", "99999999999999999999"}},
		{(&counts{&list}).Set, []string{"1", "1,4, 8"}, []string{"", "0", "1,,2", "a", "2000"}},
		{(&logLevel{&level, &given}).Set, []string{"debug", "error"}, []string{"", "loud", "INFO+3"}},
		{(&speculation{&n}).Set, []string{"auto", "off", "1", "8"}, []string{"", "0", "9", "-1", "on", "1.5"}},
		{(&choice{&word, []string{"a", "b"}}).Set, []string{"a"}, []string{"", "c", "A"}},
	} {
		for _, s := range tc.good {
			if err := tc.set(s); err != nil {
				t.Errorf("%q: %v", s, err)
			}
		}
		for _, s := range tc.bad {
			if err := tc.set(s); err == nil {
				t.Errorf("%q was taken", s)
			}
		}
	}
}

// A flag that is not written down does not exist for users, and one that is but is gone misleads them.
func TestEveryCommandAndFlagIsDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	flags := map[string]bool{"help": true}
	root := newRoot(&app{})
	for _, c := range append(root.Commands(), root) {
		if c.HasParent() && !strings.Contains(doc, "    glimpse "+c.Name()) {
			t.Errorf("docs/cli.md does not show `glimpse %s`", c.Name())
		}
		for _, set := range []*pflag.FlagSet{c.Flags(), c.PersistentFlags()} {
			set.VisitAll(func(f *pflag.Flag) {
				flags[f.Name] = true
				if !strings.Contains(doc, "--"+f.Name) && f.Name != "help" {
					t.Errorf("docs/cli.md does not name --%s of %s", f.Name, c.Name())
				}
			})
		}
	}
	for _, m := range regexp.MustCompile("--([a-z][a-z-]+)").FindAllStringSubmatch(doc, -1) {
		if !flags[m[1]] {
			t.Errorf("docs/cli.md names --%s, which no command has", m[1])
		}
	}
}

// What was not measured is left out of a chart, and every bar ends inside of it.
func TestBenchChart(t *testing.T) {
	c := chartOf("times", "ms", []benchLine{{"vision", &spread{1, 2, 4}}, {"connector", nil}, {"prefill", &spread{8, 8, 8}}}, "%.0f ms")
	if len(c.Bars) != 2 || c.Height != 2*barStep {
		t.Fatalf("%+v", c)
	}
	if v := c.Bars[0]; v.Name != "vision" || v.Length != barLength/4 || v.Min != barLeft+barLength/8. || v.Max != barLeft+barLength/2. || v.Value != "2 ms" {
		t.Errorf("%+v", v)
	}
	if p := c.Bars[1]; p.Y != barStep || p.Max != barLeft+barLength {
		t.Errorf("%+v", p)
	}
	if c := chartOf("memory", "MB", []benchLine{{"loaded", &spread{}}}, "%.0f"); len(c.Bars) != 0 {
		t.Errorf("zeros are no measurement: %+v", c)
	}
}

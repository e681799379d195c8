package engine

import (
	"strings"
	"testing"

	"glimpse/manifest"
	"glimpse/preprocess"
)

// gridPrompter writes tiles by their rows and columns and frames by their numbers, with letters for the tokens.
func gridPrompter() *prompter {
	return &prompter{prompt: manifest.Prompt{
		Expansion: expansionGrid, Placeholder: "<P>", ImageToken: "i", Prefix: "(", Suffix: ")",
		TilePrefix: "{row}/{column}:", RowSuffix: "\n", TilesSuffix: "+",
		VideoPlaceholder: "<V>", VideoToken: "v", FramePrefix: "F{frame} ", FrameSuffix: ".", FrameSeparator: "|",
	}}
}

func TestExpand(t *testing.T) {
	p := gridPrompter()
	single := placed{layout: preprocess.Layout{Tiles: 1, Tokens: 2}}
	cut := placed{layout: preprocess.Layout{Tiles: 7, Tokens: 14, Grid: preprocess.Grid{Columns: 3, Rows: 2}}}
	frame := func(n int, last bool) placed {
		return placed{layout: preprocess.Layout{Tiles: 1, Tokens: n + 1}, frame: n, last: last}
	}
	for _, c := range []struct {
		text string
		list []placed
		want string
	}{
		{"a<P>b", []placed{single}, "a(ii)b"},
		{"<P>", []placed{cut}, "1/1:ii1/2:ii1/3:ii\n2/1:ii2/2:ii2/3:ii\n+(ii)"},
		{"<V>, <P>", []placed{frame(1, false), frame(2, true), single}, "F1 vv.|F2 vvv., (ii)"},
		{"<P><V><V>!", []placed{single, frame(1, true), frame(1, false), frame(2, true)}, "(ii)F1 vv.F1 vv.|F2 vvv.!"},
	} {
		if got := p.expand(c.text, c.list); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
	p.prompt.VideoToken = ""
	if got := p.expand("<V>", []placed{frame(1, true)}); got != "F1 ii." {
		t.Errorf("without a token of their own videos take pictures': %q", got)
	}
	p.prompt.Expansion = expansionRepeat
	if got := p.expand("<P>", []placed{cut}); got != "("+strings.Repeat("i", 14)+")" {
		t.Errorf("repeat: %q", got)
	}
}

// A template may print pictures before videos: each placeholder still gets the next of its kind.
func TestOrder(t *testing.T) {
	p := gridPrompter()
	picture := func() medium { return medium{pictures: []*Picture{{}}} }
	video := func() medium { return medium{pictures: []*Picture{{}, {}}, video: true} }
	a, b, c := video(), picture(), picture()
	plan := &promptPlan{text: "x<P>y<P>z<V>", media: []medium{a, b, c}}
	if err := p.order(plan, "messages"); err != nil {
		t.Fatal(err)
	}
	if plan.media[0].pictures[0] != b.pictures[0] || plan.media[1].pictures[0] != c.pictures[0] || !plan.media[2].video {
		t.Error("media are not in the order of the text")
	}
	for _, c := range []struct {
		text  string
		media []medium
		want  string
	}{
		{"<P><P>", []medium{b}, "2 placeholders (<P>) and the request 1 pictures"},
		{"<P>", []medium{b, c}, "1 placeholders (<P>) and the request 2 pictures"},
		{"<V>", nil, "1 placeholders (<V>) and the request 0 videos"},
		{"<P>", []medium{b, a}, "0 placeholders (<V>) and the request 1 videos"},
	} {
		if err := p.order(&promptPlan{text: c.text, media: c.media}, "messages"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

func TestVideoPartsAreChecked(t *testing.T) {
	p := gridPrompter()
	if m, err := p.video(Part{Type: PartVideo, Frames: make([]Picture, 3)}, "messages[0]", 0, 0); err != nil || !m.video || len(m.pictures) != 3 {
		t.Errorf("%+v, %v", m, err)
	}
	for want, frames := range map[string]int{"without frames": 0, "at most 4096": 4097} {
		if _, err := p.video(Part{Type: PartVideo, Frames: make([]Picture, frames)}, "messages[0]", 0, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d frames: %v", frames, err)
		}
	}
	p.prompt.VideoPlaceholder = ""
	if _, err := p.video(Part{Type: PartVideo, Frames: make([]Picture, 1)}, "messages[0]", 0, 0); err == nil || !strings.Contains(err.Error(), "takes none") {
		t.Errorf("a model without videos: %v", err)
	}
}

package engine_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
	"glimpse/manifest"
)

var (
	tagged  = manifest.Boxes{Format: manifest.BoxesTags, Scale: 1000}
	pixeled = manifest.Boxes{Format: manifest.BoxesJSON}
)

func corners(b engine.Box) [4]int { return [4]int{b.X1, b.Y1, b.X2, b.Y2} }

func TestBoxesInTags(t *testing.T) {
	frame := engine.BoxFrame{Picture: 1, Width: 200, Height: 100}
	text := "né <ref> a cat </ref><box>(100,200),(500,999)</box> and <box>(0,0),(1000,1000)</box>, " +
		"<ref>sign</ref><quad>(10,20),(990,10),(1000,400),(0,500)</quad>"
	got, err := engine.ParseBoxes(tagged, text, frame)
	if err != nil {
		t.Fatal(err)
	}
	want := []engine.Box{
		{Label: "a cat", Picture: 1, X1: 20, Y1: 20, X2: 100, Y2: 99, Normalized: [4]float64{0.1, 0.2, 0.5, 0.999}, Start: 3, End: 51},
		{Picture: 1, X1: 0, Y1: 0, X2: 200, Y2: 100, Normalized: [4]float64{0, 0, 1, 1}, Start: 56, End: 84},
		{Label: "sign", Picture: 1, X1: 0, Y1: 1, X2: 200, Y2: 50, Normalized: [4]float64{0, 0.01, 1, 0.5},
			Points: [][2]int{{2, 2}, {198, 1}, {200, 40}, {0, 50}}, Start: 86, End: 149},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	runes := []rune(text)
	if first := string(runes[got[0].Start:got[0].End]); first != "<ref> a cat </ref><box>(100,200),(500,999)</box>" {
		t.Errorf("the first box stands at %q", first)
	}
}

func TestBoxesInMarksOfTheirOwn(t *testing.T) {
	spec := tagged
	spec.Marks = []string{"<|r|>", "<|/r|>", "<|b|>", "<|/b|>", "<|q|>", "<|/q|>"}
	got, err := engine.ParseBoxes(spec, "<|r|>dog<|/r|><|b|>(10,10),(20,20)<|/b|>", engine.BoxFrame{Width: 1000, Height: 1000})
	if err != nil || len(got) != 1 || got[0].Label != "dog" || corners(got[0]) != [4]int{10, 10, 20, 20} {
		t.Errorf("%+v, %v", got, err)
	}
}

// Pixels of the picture as the model saw it become pixels of the picture as it was sent.
func TestBoxesInJSON(t *testing.T) {
	frame := engine.BoxFrame{Width: 2000, Height: 1000, ResizedWidth: 1000, ResizedHeight: 500}
	got, err := engine.ParseBoxes(pixeled, "Here:\n```json\n[\n\t{\"bbox_2d\": [10, 20, 30.5, 40], \"label\": \"a {cup}\"},\n\t{\"label\": \"dog\", \"bbox_2d\": [0, 0, 1000, 500]},\n\t{\"bbox_2d\": [1, 2", frame)
	if err == nil || !strings.Contains(err.Error(), "at byte") {
		t.Errorf("a list that was cut off gives the error %v", err)
	}
	if len(got) != 2 || corners(got[0]) != [4]int{20, 40, 61, 80} || got[0].Label != "a {cup}" || corners(got[1]) != [4]int{0, 0, 2000, 1000} || got[1].Label != "dog" {
		t.Errorf("%+v", got)
	}
}

func TestBrokenBoxesAreNamedAndLeftOut(t *testing.T) {
	frame := engine.BoxFrame{Width: 10, Height: 10}
	for _, text := range []string{
		"<box>(1,2),(3)</box>", "<box>(1,2)</box>", "<box>1,2,3,4</box>", "<box>(a,2),(3,4)</box>", "<box>(1,2)(3,4)</box>", "<box></box>",
		"<box>(1,2),(3,4)", "<quad>(1,2),(3,4)</quad>", "<box>(NaN,2),(3,4)</box>", "<box>(1e300,2),(3,4)</box>", "<ref>x",
	} {
		got, err := engine.ParseBoxes(tagged, text, frame)
		if err == nil || len(got) != 0 {
			t.Errorf("%q gives %+v, %v", text, got, err)
		}
	}
	got, err := engine.ParseBoxes(tagged, "<box>(1,2),(3)</box><box>(0,0),(500,500)</box>", frame)
	if err == nil || len(got) != 1 || corners(got[0]) != [4]int{0, 0, 5, 5} {
		t.Errorf("a box behind a broken one: %+v, %v", got, err)
	}
	for _, text := range []string{`"bbox_2d": [1,2,3,4]`, `{"bbox_2d": [1,2,3]}`, `{"bbox_2d": "x"}`, `{"bbox_2d"}`} {
		got, err := engine.ParseBoxes(pixeled, text, engine.BoxFrame{Width: 10, Height: 10, ResizedWidth: 10, ResizedHeight: 10})
		if err == nil || len(got) != 0 {
			t.Errorf("%q gives %+v, %v", text, got, err)
		}
	}
	if _, err := engine.ParseBoxes(pixeled, "", frame); err == nil {
		t.Error("pixels of a resized picture whose size is not known give no error")
	}
}

func FuzzParseBoxes(f *testing.F) {
	f.Add("<ref>a</ref><box>(1,2),(3,4)</box><quad>(1,2),(3,4),(5,6),(7,8)</quad>")
	f.Add("```json\n[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"é\"}]\n```")
	f.Fuzz(func(t *testing.T, text string) {
		frame := engine.BoxFrame{Width: 640, Height: 480, ResizedWidth: 644, ResizedHeight: 476}
		length := len([]rune(text))
		for _, spec := range []manifest.Boxes{tagged, pixeled} {
			boxes, _ := engine.ParseBoxes(spec, text, frame)
			end := 0
			for _, b := range boxes {
				if b.Start < end || b.End <= b.Start || b.End > length {
					t.Fatalf("a box at %d to %d of %d characters, behind one that ends at %d", b.Start, b.End, length, end)
				}
				end = b.End
			}
		}
	})
}

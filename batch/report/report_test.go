package report

import (
	"bytes"
	"fmt"
	"image/jpeg"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"glimpse/batch/row"
)

func page(t *testing.T, rows []row.Row, s Summary) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	p, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	pix := bytes.Repeat([]byte{200, 100, 50}, 40*30)
	for i := range rows {
		p.Add(&rows[i], p.Thumbnail(rows[i].Key(), pix, 40, 30))
	}
	if err := p.Close(s); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Names, captions and messages are strangers' words: none may become part of the page's code.
func TestStrangersWordsStayWords(t *testing.T) {
	evil := `</script><img src=x onerror=alert(1)>"'`
	text := page(t, []row.Row{
		{ID: evil, Caption: evil, Captions: []row.Caption{{Prompt: evil, Caption: evil}, {Prompt: "b", Caption: evil}}, Tokens: 3},
		{ID: evil + "2", Error: &row.ItemError{Kind: evil, Message: evil}},
	}, Summary{Out: evil, Model: evil, Prompts: []string{evil}, Written: 2, Failed: 1, Errors: map[string]int64{evil: 1}})
	if strings.Contains(text, "<img src=x") || strings.Count(text, "</script>") != 1 {
		t.Fatal("markup of a caption came through")
	}
	if strings.Count(text, "onerror=alert(1)&gt;") < 5 {
		t.Error("the words are not there")
	}
}

func TestThePageNeedsNothingElse(t *testing.T) {
	text := page(t, []row.Row{{ID: "a", Caption: "a cat"}}, Summary{Written: 1})
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(text, -1) {
		if !strings.HasPrefix(m[1], "data:image/jpeg;base64,") {
			t.Errorf("the page loads %.60s", m[1])
		}
	}
	if !strings.Contains(text, "a cat") || !strings.Contains(text, "data:image/jpeg") {
		t.Error("no picture with its caption")
	}
}

// Videos say what was seen of them, and boxes are drawn on what the thumbnail shows.
func TestClipsAndBoxes(t *testing.T) {
	text := page(t, []row.Row{
		{ID: "v.mp4", Caption: "it runs", Width: 64, Height: 48, Clip: &row.Clip{Frames: []int{0, 9}, Total: 30, Duration: 3, Sound: true},
			Boxes: []row.Box{{Label: "a dog", X1: 1, Y1: 2, X2: 11, Y2: 22}, {Label: "later", X1: 5, Y1: 5, X2: 6, Y2: 6, Frame: 1}}},
		{ID: "p.png", Caption: "a cat", Width: 10, Height: 10, Boxes: []row.Box{{X1: 3, Y1: 3, X2: 2, Y2: 4}}},
	}, Summary{Written: 2})
	for _, want := range []string{"2 of 30 frames, 3.0 s, sound", `viewBox="0 0 64 48"`, `x="1" y="2" width="10" height="20"><title>a dog</title>`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not there", want)
		}
	}
	if strings.Contains(text, "later") || strings.Count(text, "viewBox=\"0 0 10 10\"") != 0 {
		t.Error("a box of another frame, or one turned inside out, is drawn")
	}
}

// The sample does not depend on the order in which rows come, and is bounded.
func TestSample(t *testing.T) {
	var rows []row.Row
	for i := range MaxPictures + 300 {
		rows = append(rows, row.Row{ID: fmt.Sprintf("picture-%04d", i), Caption: "c"})
	}
	cards := func() string {
		return strings.Join(regexp.MustCompile(`<small>picture-\d+`).FindAllString(page(t, rows, Summary{}), -1), " ")
	}
	first := cards()
	rand.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	if second := cards(); first != second || strings.Count(first, "picture") != MaxPictures {
		t.Errorf("%d pictures, the same in another order: %v", strings.Count(first, "picture"), first == second)
	}
}

func TestThumbnail(t *testing.T) {
	p := &Page{}
	small := p.Thumbnail(row.Key{}, bytes.Repeat([]byte{10, 200, 30}, 1000*200), 1000, 200)
	img, err := jpeg.Decode(bytes.NewReader(small))
	if err != nil {
		t.Fatal(err)
	}
	if b := img.Bounds(); b.Dx() != edge || b.Dy() > edge/4 {
		t.Errorf("size %v", b)
	}
	r, g, bl, _ := img.At(50, 10).RGBA()
	if r>>8 > 30 || g>>8 < 180 || bl>>8 > 50 {
		t.Errorf("colour %d %d %d", r>>8, g>>8, bl>>8)
	}
}

func TestHistogramGrows(t *testing.T) {
	var h histogram
	values := []float64{0, 1, 31, 32, 500, 3}
	for _, v := range values {
		h.add(v)
	}
	var n int64
	for _, c := range h.counts {
		n += c
	}
	if n != int64(len(values)) || h.width != 16 || h.counts[0] != 3 || h.counts[31] != 1 {
		t.Errorf("%+v", h)
	}
	if _, err := Create(filepath.Join(t.TempDir(), "no", "such", "folder.html")); err == nil {
		t.Error("a page that cannot be written was begun")
	}
}

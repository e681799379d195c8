// Package report writes a batch's report: one HTML file that needs nothing else, with counts, histograms of lengths and
// times, the errors, and a contact sheet of pictures with their captions.
//
// The contact sheet is a sample of at most MaxPictures: those with the smallest keys, which is the same sample whatever
// order or pieces the run comes in, spread evenly over the inputs. Memory is bounded by the sample, not by the run.
package report

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/jpeg"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"glimpse/batch/row"

	_ "embed"

	"github.com/nfnt/resize"
)

const (
	// MaxPictures bounds the contact sheet.
	MaxPictures = 600
	maxErrors   = 500
	edge        = 192 // longest edge of a thumbnail
)

// Summary is what the page says of the whole run.
type Summary struct {
	Out, Model, ModelHash string
	Prompts               []string
	Written, Failed       int64
	Duplicates            int64
	Skipped, FailedBefore int64
	Tokens                int64
	Errors                map[string]int64
	Idle                  float64 // share of the time in which the model had nothing to do; negative: not known
	Elapsed               time.Duration
}

// Page is a report under way. Add is called from one goroutine, Thumbnail from several.
type Page struct {
	path     string
	pictures []picture // by key, the smallest first
	limit    atomic.Pointer[row.Key]
	failed   []failure
	more     int // errors that are not listed
	words    histogram
	tokens   histogram
	times    histogram
}

type picture struct {
	key                row.Key
	ID, Caption, Image string
	Width, Height      int
	Tokens             int
	MS                 float64
	Extra              []row.Caption
	Clip               string // of a video: what was seen of it
	Boxes              []mark // on what the thumbnail shows
}

// mark is a box as the page draws it, in pixels of the picture.
type mark struct {
	Label               string
	Colour              int // one of colours
	X, Y, Width, Height int
}

// colours is how many colours page.html has for boxes, and maxMarks how many are drawn of one picture.
const colours, maxMarks = 6, 24

// marksOf returns the boxes of a video's first frame, which is what its thumbnail shows, or of a picture; with several
// prompts those of all.
func marksOf(r *row.Row) []mark {
	var marks []mark
	boxes := r.Boxes
	for i := 1; i < len(r.Captions); i++ { // the row's own are those of the first
		boxes = append(slices.Clone(boxes), r.Captions[i].Boxes...)
	}
	for _, b := range boxes {
		if b.Frame == 0 && b.X2 >= b.X1 && b.Y2 >= b.Y1 && len(marks) < maxMarks {
			marks = append(marks, mark{b.Label, len(marks) % colours, b.X1, b.Y1, b.X2 - b.X1, b.Y2 - b.Y1})
		}
	}
	return marks
}

// clipText says what was seen of a video.
func clipText(c *row.Clip) string {
	if c == nil {
		return ""
	}
	text := fmt.Sprintf("%d of %d frames", len(c.Frames), c.Total)
	if c.Duration > 0 {
		text += fmt.Sprintf(", %.1f s", c.Duration)
	}
	if c.Sound {
		text += ", sound"
	}
	return text
}

type failure struct{ ID, Kind, Message string }

// Create makes sure that the page can be written at the end.
func Create(path string) (*Page, error) {
	info, err := os.Stat(filepath.Dir(path))
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder", filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("report %s: %w", path, err)
	}
	return &Page{path: path}, nil
}

// Thumbnail returns a JPEG for a picture that may come into the sample, nil for others.
func (p *Page) Thumbnail(key row.Key, pix []uint8, width, height int) []byte {
	if limit := p.limit.Load(); limit != nil && bytes.Compare(key[:], limit[:]) > 0 {
		return nil
	}
	small := resize.Thumbnail(edge, edge, sampled(pix, width, height), resize.Bilinear)
	var b bytes.Buffer
	if err := jpeg.Encode(&b, small, &jpeg.Options{Quality: 80}); err != nil {
		return nil // a picture without a thumbnail is one in the counts only
	}
	return b.Bytes()
}

// sampled takes every n-th pixel of a large picture, so that a thumbnail costs the same whatever it is of. It is a type
// that resize is quick with.
func sampled(pix []uint8, width, height int) *image.RGBA {
	step := max(1, max(width, height)/(4*edge))
	small := image.NewRGBA(image.Rect(0, 0, (width+step-1)/step, (height+step-1)/step))
	at := 0
	for y := 0; y < height; y += step {
		for x := 0; x < width; x += step {
			from := 3 * (y*width + x)
			small.Pix[at], small.Pix[at+1], small.Pix[at+2], small.Pix[at+3] = pix[from], pix[from+1], pix[from+2], 255
			at += 4
		}
	}
	return small
}

// Add takes a row.
func (p *Page) Add(r *row.Row, thumbnail []byte) {
	switch {
	case r.Error != nil:
		if len(p.failed) < maxErrors {
			p.failed = append(p.failed, failure{r.ID, r.Error.Kind, r.Error.Message})
		} else {
			p.more++
		}
		return
	case r.DuplicateOf != "":
		return
	}
	p.words.add(float64(len(strings.Fields(r.Caption))))
	p.tokens.add(float64(r.Tokens))
	p.times.add(r.MS)
	if thumbnail == nil {
		return
	}
	pic := picture{key: r.Key(), ID: r.ID, Caption: r.Caption, Width: r.Width, Height: r.Height, Tokens: r.Tokens, MS: r.MS, Extra: r.Captions,
		Clip: clipText(r.Clip), Boxes: marksOf(r)}
	at, _ := slices.BinarySearchFunc(p.pictures, pic.key, func(a picture, k row.Key) int { return bytes.Compare(a.key[:], k[:]) })
	if at >= MaxPictures {
		return
	}
	pic.Image = base64.StdEncoding.EncodeToString(thumbnail)
	p.pictures = slices.Insert(p.pictures, at, pic)
	if len(p.pictures) > MaxPictures {
		p.pictures = p.pictures[:MaxPictures]
	}
	if len(p.pictures) == MaxPictures {
		limit := p.pictures[MaxPictures-1].key
		p.limit.Store(&limit)
	}
}

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"time": func(ms float64) string {
		if ms >= longTimes {
			return fmt.Sprintf("%.1f s", ms/1000)
		}
		return fmt.Sprintf("%.0f ms", ms)
	},
	"jpeg": func(s string) template.URL { return template.URL("data:image/jpeg;base64," + s) },
}).Parse(pageText))

// Close writes the page. Closing nil does nothing.
func (p *Page) Close(s Summary) (err error) {
	if p == nil {
		return nil
	}
	slices.SortFunc(p.pictures, func(a, b picture) int { return cmp.Compare(a.ID, b.ID) })
	aside := p.path + ".aside"
	f, err := os.Create(aside)
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	err = pageTemplate.Execute(f, p.values(s))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(aside, p.path)
	}
	if err != nil {
		os.Remove(aside)
		return fmt.Errorf("write report %s: %w", p.path, err)
	}
	return nil
}

type kind struct {
	Name  string
	Count int64
}

func (p *Page) values(s Summary) map[string]any {
	var kinds []kind
	for _, name := range slices.Sorted(maps.Keys(s.Errors)) {
		kinds = append(kinds, kind{name, s.Errors[name]})
	}
	slices.SortStableFunc(kinds, func(a, b kind) int { return cmp.Compare(b.Count, a.Count) })
	speed := 0.0
	if seconds := s.Elapsed.Seconds(); seconds > 0 {
		speed = float64(s.Written) / seconds
	}
	idle := ""
	if s.Idle >= 0 {
		idle = fmt.Sprintf("%.0f %%", 100*s.Idle)
	}
	return map[string]any{
		"S": s, "Kinds": kinds, "Captioned": s.Written - s.Failed - s.Duplicates, "Speed": fmt.Sprintf("%.2f", speed),
		"Idle": idle, "Elapsed": s.Elapsed.Round(100 * time.Millisecond).String(),
		"Pictures": p.pictures, "Failed": p.failed, "More": p.more,
		"Charts": []chart{p.words.chart("Words of a caption", ""), p.tokens.chart("Tokens", ""), p.times.chart("Time of a picture", "ms")},
	}
}

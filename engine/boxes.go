// Boxes in answers: from the text that a model writes to pixels of the picture that was sent.

package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"glimpse/manifest"
)

// Box is a place in a picture that an answer points at. Its JSON keys are public.
type Box struct {
	Label string `json:"label"` // what the model says is there; may be empty
	// X1, Y1 to X2, Y2 is the box in whole pixels of the upright picture as it was sent, inside of it as long as the model's
	// numbers are. Of a quadrangle, the smallest box around it.
	X1 int `json:"x1"`
	Y1 int `json:"y1"`
	X2 int `json:"x2"`
	Y2 int `json:"y2"`
	// Normalized is the same as shares of width and height, before rounding.
	Normalized [4]float64 `json:"normalized"`
	// Points are the corners of a quadrangle, in pixels; nil for a box.
	Points  [][2]int `json:"points,omitempty"`
	Picture int      `json:"picture"` // of the request's pictures and frames, from 0
	// Start and End are where the box stands in the text, its label's mark included, in characters (Unicode code points).
	Start int `json:"start"`
	End   int `json:"end"`
}

// BoxFrame is the picture that boxes lie in.
type BoxFrame struct {
	Picture                     int // of the request's
	Width, Height               int // upright, as sent
	ResizedWidth, ResizedHeight int // as the model saw it; 0 where its boxes are not counted in those pixels
}

// maxBoxes bounds what is read of one answer.
const maxBoxes = 1000

// ParseBoxes finds the boxes of an answer, in their order. What looks like a box and is none is left out and named in the
// error; the other boxes are returned all the same.
func ParseBoxes(spec manifest.Boxes, text string, frame BoxFrame) ([]Box, error) {
	if frame.Width < 1 || frame.Height < 1 {
		return nil, fmt.Errorf("read boxes: the picture has %d×%d pixels", frame.Width, frame.Height)
	}
	width, height := spec.Scale, spec.Scale
	if spec.Scale == 0 {
		width, height = frame.ResizedWidth, frame.ResizedHeight
	}
	if width < 1 || height < 1 {
		return nil, errors.New("read boxes: it is not known what their numbers count")
	}
	r := boxReader{text: text, frame: frame, width: float64(width), height: float64(height)}
	switch spec.Format {
	case manifest.BoxesTags:
		r.tags(marksOf(spec))
	case manifest.BoxesJSON:
		r.objects()
	default:
		return nil, fmt.Errorf("read boxes: format %q is unknown", spec.Format)
	}
	r.countCharacters()
	return r.boxes, errors.Join(r.problems...)
}

// boxMarks are the texts around labels, boxes and quadrangles.
type boxMarks struct{ label, box, quad [2]string }

// marksOf returns the marks that the manifest names, or the plain tags.
func marksOf(spec manifest.Boxes) boxMarks {
	if len(spec.Marks) == 6 {
		m := spec.Marks
		return boxMarks{[2]string{m[0], m[1]}, [2]string{m[2], m[3]}, [2]string{m[4], m[5]}}
	}
	return boxMarks{[2]string{"<ref>", "</ref>"}, [2]string{"<box>", "</box>"}, [2]string{"<quad>", "</quad>"}}
}

type boxReader struct {
	text          string
	frame         BoxFrame
	width, height float64 // that coordinates are counted in
	boxes         []Box   // Start and End in bytes until the end
	problems      []error
}

func (r *boxReader) problem(at int, format string, args ...any) {
	if len(r.problems) < 10 {
		r.problems = append(r.problems, fmt.Errorf("read boxes: at byte %d: %s", at, fmt.Sprintf(format, args...)))
	}
}

// tags reads marked boxes. A label belongs to the box that follows it at once, and to no other.
func (r *boxReader) tags(marks boxMarks) {
	label, labelStart, labelEnd := "", -1, -1
	for at := 0; at < len(r.text) && len(r.boxes) < maxBoxes; {
		next, kind := -1, 0
		for k, m := range [][2]string{marks.label, marks.box, marks.quad} {
			if i := strings.Index(r.text[at:], m[0]); i >= 0 && (next < 0 || i < next) {
				next, kind = i, k
			}
		}
		if next < 0 {
			return
		}
		m := [][2]string{marks.label, marks.box, marks.quad}[kind]
		start := at + next
		inner, _, closed := strings.Cut(r.text[start+len(m[0]):], m[1])
		if !closed {
			r.problem(start, "%s has no %s", m[0], m[1])
			return
		}
		at = start + len(m[0]) + len(inner) + len(m[1])
		if kind == 0 {
			label, labelStart, labelEnd = strings.TrimSpace(inner), start, at
			continue
		}
		points, err := parsePoints(inner)
		if err == nil && (kind == 1 && len(points) != 2 || kind == 2 && len(points) != 4) {
			err = fmt.Errorf("%d points", len(points))
		}
		if err != nil {
			r.problem(start, "%s%.60s%s: %v", m[0], inner, m[1], err)
			labelEnd = -1
			continue
		}
		b := Box{Start: start, End: at}
		if labelEnd == start {
			b.Label, b.Start = label, labelStart
		}
		r.add(b, points, kind == 2)
	}
}

// parsePoints reads "(x,y),(x,y)…".
func parsePoints(text string) (points [][2]float64, err error) {
	rest := strings.TrimSpace(text)
	for {
		inner, after, ok := strings.Cut(strings.TrimPrefix(rest, "("), ")")
		if !ok || !strings.HasPrefix(rest, "(") || len(points) == 4 {
			return nil, errors.New("points (x,y) are due, with commas between")
		}
		x, y, ok := strings.Cut(inner, ",")
		if !ok {
			return nil, errors.New("a point has two numbers")
		}
		var p [2]float64
		for i, v := range []string{x, y} {
			if p[i], err = strconv.ParseFloat(strings.TrimSpace(v), 64); err != nil || !finite(p[i]) {
				return nil, fmt.Errorf("%.20q is no number", v)
			}
		}
		points = append(points, p)
		if rest = strings.TrimSpace(after); rest == "" {
			return points, nil
		}
		if rest, ok = strings.CutPrefix(rest, ","); !ok {
			return nil, errors.New("points are parted by commas")
		}
		rest = strings.TrimSpace(rest)
	}
}

func finite(v float64) bool { return !math.IsNaN(v) && math.Abs(v) < 1e9 }

// objects reads JSON objects with a bbox_2d, wherever they stand: in a list, in a fenced block, or in one that was cut off.
func (r *boxReader) objects() {
	const key = `"bbox_2d"`
	for at := 0; len(r.boxes) < maxBoxes; {
		found := strings.Index(r.text[at:], key)
		if found < 0 {
			return
		}
		found += at
		start := strings.LastIndexByte(r.text[at:found], '{')
		before := at
		at = found + len(key)
		if start < 0 {
			r.problem(found, "bbox_2d stands in no object")
			continue
		}
		start += before
		var object struct {
			Box   []float64 `json:"bbox_2d"`
			Label any       `json:"label"`
		}
		decoder := json.NewDecoder(strings.NewReader(r.text[start:]))
		if err := decoder.Decode(&object); err != nil {
			r.problem(start, "%v", err)
			continue
		}
		at = start + int(decoder.InputOffset())
		if len(object.Box) != 4 || !finite(object.Box[0]) || !finite(object.Box[1]) || !finite(object.Box[2]) || !finite(object.Box[3]) {
			r.problem(start, "bbox_2d %v is no list of four numbers", object.Box)
			continue
		}
		b := Box{Start: start, End: at}
		if label, ok := object.Label.(string); ok {
			b.Label = strings.TrimSpace(label)
		}
		r.add(b, [][2]float64{{object.Box[0], object.Box[1]}, {object.Box[2], object.Box[3]}}, false)
	}
}

// add scales the points. A pixel's coordinate is cut off and not rounded, as upstream does.
func (r *boxReader) add(b Box, points [][2]float64, quad bool) {
	shares := make([][2]float64, len(points))
	for i, p := range points {
		shares[i] = [2]float64{p[0] / r.width, p[1] / r.height}
	}
	low, high := shares[0], shares[1]
	if quad {
		low, high = shares[0], shares[0]
		for _, s := range shares {
			low = [2]float64{min(low[0], s[0]), min(low[1], s[1])}
			high = [2]float64{max(high[0], s[0]), max(high[1], s[1])}
			b.Points = append(b.Points, r.pixel(s))
		}
	}
	b.Normalized = [4]float64{low[0], low[1], high[0], high[1]}
	from, to := r.pixel(low), r.pixel(high)
	b.X1, b.Y1, b.X2, b.Y2 = from[0], from[1], to[0], to[1]
	b.Picture = r.frame.Picture
	r.boxes = append(r.boxes, b)
}

func (r *boxReader) pixel(share [2]float64) [2]int {
	return [2]int{int(share[0] * float64(r.frame.Width)), int(share[1] * float64(r.frame.Height))}
}

// countCharacters turns places in bytes into places in characters.
func (r *boxReader) countCharacters() {
	at, count := 0, 0
	place := func(byteAt int) int {
		if byteAt < at {
			at, count = 0, 0
		}
		count += utf8.RuneCountInString(r.text[at:byteAt])
		at = byteAt
		return count
	}
	for i := range r.boxes {
		r.boxes[i].Start = place(r.boxes[i].Start)
		r.boxes[i].End = place(r.boxes[i].End)
	}
}

// findBoxes reads the boxes of an answer about the prompt's pictures. They lie in the last one, which is the one that
// upstream draws them on.
func (e *Engine) findBoxes(p *Prepared, text string) []Box {
	spec := e.manifest.Boxes
	if spec == nil || len(p.placed) == 0 {
		return nil
	}
	i := len(p.placed) - 1
	pic := p.placed[i]
	frame := BoxFrame{Picture: i, Width: pic.width, Height: pic.height}
	if patches := e.manifest.Picture.Patches; patches != nil {
		frame.ResizedWidth, frame.ResizedHeight = pic.layout.Map.Columns*patches.Factor(), pic.layout.Map.Rows*patches.Factor()
	}
	boxes, err := ParseBoxes(*spec, text, frame)
	if err != nil {
		e.logger.Debug("boxes in an answer", "error", err)
	}
	return boxes
}

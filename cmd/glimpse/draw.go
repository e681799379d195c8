// ask --draw: the answer's boxes on the picture.

package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"glimpse/engine"
	"glimpse/preprocess"
)

// boxColors are told apart by most eyes (Okabe and Ito's set, without black). Labels stand on them in black or white.
var boxColors = []color.RGBA{
	{213, 94, 0, 255}, {0, 114, 178, 255}, {0, 158, 115, 255}, {204, 121, 167, 255}, {230, 159, 0, 255}, {86, 180, 233, 255}, {240, 228, 66, 255},
}

// drawAnswer writes the picture that the boxes lie in, or the last one where there are no boxes, with the boxes drawn on it.
func drawAnswer(ctx context.Context, path string, req engine.Request, boxes []engine.Box) error {
	pictures := picturesOf(req)
	if len(pictures) == 0 {
		return badInputf("--draw %s: the request has no picture to draw on", path)
	}
	i := len(pictures) - 1
	if len(boxes) > 0 {
		i = min(boxes[0].Picture, i)
	}
	rgb, err := preprocess.Decode(ctx, pictures[i].Data, preprocess.DecodeOptions{IgnoreEXIF: pictures[i].IgnoreEXIF})
	if err != nil {
		return fmt.Errorf("draw boxes: %w", err)
	}
	canvas, err := drawBoxes(rgb, boxes)
	if err != nil {
		return fmt.Errorf("draw boxes: %w", err)
	}
	var out bytes.Buffer
	if err := png.Encode(&out, canvas); err != nil {
		return fmt.Errorf("draw boxes: %w", err)
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

// picturesOf lists the pictures and frames of a request in their order.
func picturesOf(req engine.Request) []engine.Picture {
	list := append([]engine.Picture{}, req.Pictures...)
	for _, m := range req.Messages {
		for _, p := range m.Content {
			if p.Picture != nil {
				list = append(list, *p.Picture)
			}
			list = append(list, p.Frames...)
		}
	}
	return list
}

// drawBoxes returns the picture with frames and labels, whose sizes follow the picture's.
func drawBoxes(rgb *preprocess.RGB, boxes []engine.Box) (*image.RGBA, error) {
	canvas := image.NewRGBA(image.Rect(0, 0, rgb.Width, rgb.Height))
	for y := range rgb.Height {
		row := rgb.Row(y)
		for x := range rgb.Width {
			canvas.SetRGBA(x, y, color.RGBA{row[3*x], row[3*x+1], row[3*x+2], 255})
		}
	}
	side := min(rgb.Width, rgb.Height)
	width := max(1, side/150)
	face, err := labelFace(float64(max(10, side/28)))
	if err != nil {
		return nil, err
	}
	defer face.Close()
	for i, b := range boxes {
		c := boxColors[i%len(boxColors)]
		if len(b.Points) > 2 {
			for k, p := range b.Points {
				q := b.Points[(k+1)%len(b.Points)]
				drawLine(canvas, p, q, width, c)
			}
		} else {
			drawFrame(canvas, image.Rect(b.X1, b.Y1, b.X2, b.Y2), width, c)
		}
	}
	for i, b := range boxes { // above all frames
		drawLabel(canvas, face, b, boxColors[i%len(boxColors)])
	}
	return canvas, nil
}

func labelFace(size float64) (font.Face, error) {
	parsed, err := opentype.Parse(gobold.TTF)
	if err != nil {
		return nil, err
	}
	return opentype.NewFace(parsed, &opentype.FaceOptions{Size: size, DPI: 72, Hinting: font.HintingFull})
}

func fillRect(canvas *image.RGBA, r image.Rectangle, c color.RGBA) {
	draw.Draw(canvas, r, image.NewUniform(c), image.Point{}, draw.Src)
}

// drawFrame draws the outline of r, as wide as width, inside of it.
func drawFrame(canvas *image.RGBA, r image.Rectangle, width int, c color.RGBA) {
	fillRect(canvas, image.Rect(r.Min.X, r.Min.Y, r.Max.X, r.Min.Y+width), c)
	fillRect(canvas, image.Rect(r.Min.X, r.Max.Y-width, r.Max.X, r.Max.Y), c)
	fillRect(canvas, image.Rect(r.Min.X, r.Min.Y, r.Min.X+width, r.Max.Y), c)
	fillRect(canvas, image.Rect(r.Max.X-width, r.Min.Y, r.Max.X, r.Max.Y), c)
}

// drawLine draws squares from one point to the other. Points may lie outside the picture, but a line is never longer than
// what is inside of it and a picture's length beyond.
func drawLine(canvas *image.RGBA, from, to [2]int, width int, c color.RGBA) {
	bounds := canvas.Bounds()
	limit := func(v, most int) int { return min(max(v, -most), 2*most) }
	x0, y0 := limit(from[0], bounds.Dx()), limit(from[1], bounds.Dy())
	x1, y1 := limit(to[0], bounds.Dx()), limit(to[1], bounds.Dy())
	steps := max(abs(x1-x0), abs(y1-y0), 1)
	for i := range steps + 1 {
		x, y := x0+(x1-x0)*i/steps, y0+(y1-y0)*i/steps
		fillRect(canvas, image.Rect(x, y, x+width, y+width), c)
	}
}

func abs(v int) int { return max(v, -v) }

// drawLabel writes the label on a patch of the box's colour above its corner, or inside where there is no room above.
func drawLabel(canvas *image.RGBA, face font.Face, b engine.Box, c color.RGBA) {
	if b.Label == "" {
		return
	}
	m := face.Metrics()
	height, pad := (m.Ascent + m.Descent).Ceil(), max(1, m.Descent.Ceil()/2)
	wide := font.MeasureString(face, b.Label).Ceil() + 2*pad
	x := max(0, min(b.X1, canvas.Bounds().Dx()-wide))
	y := b.Y1 - height
	if y < 0 {
		y = max(0, b.Y1)
	}
	fillRect(canvas, image.Rect(x, y, x+wide, y+height), c)
	ink := image.White
	if 299*int(c.R)+587*int(c.G)+114*int(c.B) > 140_000 {
		ink = image.Black
	}
	d := font.Drawer{Dst: canvas, Src: ink, Face: face, Dot: fixed.P(x+pad, y+m.Ascent.Ceil())}
	d.DrawString(b.Label)
}

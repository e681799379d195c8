package preprocess

import (
	"context"
	"errors"
	"fmt"
	"math"

	"glimpse/manifest"
)

// patches takes a picture at its own size: both sides are rounded to multiples of a merged patch, and the tower sees a
// list of patches, the four (merge²) of each token one after the other. It is Qwen2VLImageProcessor, and what the towers
// behind it compute from the grid alone (patch_grid.go).
type patches struct {
	manifest.Patches
	filter    Filter
	normalize normalizer
}

// maxAspect is the longest picture that Qwen2VLImageProcessor takes.
const maxAspect = 200

func newPatches(p manifest.Picture, o Options) (Recipe, error) {
	filter, err := FilterByName(p.Resample)
	problems := []error{err}
	normalize, err := newNormalizer(p)
	problems = append(problems, err)
	if p.Patches == nil {
		return nil, errors.Join(append(problems, errors.New("there are no parameters patches"))...)
	}
	r := patches{*p.Patches, filter, normalize}
	if o.MinPixels > 0 {
		r.MinPixels = o.MinPixels
		r.MaxPixels = max(r.MaxPixels, r.MinPixels)
	}
	if o.MaxPixels > 0 {
		r.MaxPixels = o.MaxPixels
		r.MinPixels = min(r.MinPixels, r.MaxPixels)
	}
	switch {
	case r.Size < 1 || r.Size > 1<<10 || r.Merge < 1 || r.Merge > 16 || r.Temporal < 1 || r.Temporal > 16:
		problems = append(problems, fmt.Errorf("size, merge and temporal are %d, %d and %d", r.Size, r.Merge, r.Temporal))
	case r.MinPixels < 1 || r.MaxPixels < r.MinPixels || r.MaxPixels > maxPatchPixels:
		problems = append(problems, fmt.Errorf("a picture's pixels are bounded by %d and %d; want 1 to %d, the first not above the second", r.MinPixels, r.MaxPixels, maxPatchPixels))
	case o.MaxPixels > 0 && r.MaxPixels < r.Factor()*r.Factor():
		problems = append(problems, fmt.Errorf("max_pixels is %d and one token stands for %d", r.MaxPixels, r.Factor()*r.Factor()))
	case r.HeadDim < 4 || r.HeadDim%4 != 0 || r.HeadDim > 1<<12:
		problems = append(problems, fmt.Errorf("head_dim is %d; want a multiple of 4", r.HeadDim))
	case r.Window != 0 && r.Window < r.Factor() || r.PositionGrid < 0 || r.PositionGrid > 1<<12:
		problems = append(problems, fmt.Errorf("window and position_grid are %d and %d", r.Window, r.PositionGrid))
	}
	return r, errors.Join(problems...)
}

// maxPatchPixels bounds max_pixels, so that a picture's patches are counted in an int32.
const maxPatchPixels = 1 << 28

// SmartResize returns the size of a width × height picture for a model of patches: both sides multiples of factor, the
// area within the bounds where the sides' rounding allows, the aspect ratio about kept. It is smart_resize of
// Qwen2VLImageProcessor, with Python's rounding of halves to even.
func SmartResize(width, height, factor, minPixels, maxPixels int) (w, h int, err error) {
	return smartResize(width, height, factor, minPixels, maxPixels, 1, 1)
}

// smartResize is SmartResize for a video whose pixels are bounded together: rounded frames count against the bounds, and
// frames decide by how much a side shrinks or grows.
func smartResize(width, height, factor, minPixels, maxPixels, rounded, frames int) (w, h int, err error) {
	if err := checkSides(width, height); err != nil {
		return 0, 0, err
	}
	if long, short := max(width, height), min(width, height); float64(long)/float64(short) > maxAspect {
		return 0, 0, fmt.Errorf("lay out a picture of %d×%d: one side is more than %d times the other, which this model does not take", width, height, maxAspect)
	}
	f, area := float64(factor), float64(frames)*float64(width)*float64(height)
	side := func(n int) int { return int(math.RoundToEven(float64(n)/f)) * factor }
	w, h = side(width), side(height)
	switch {
	case rounded*w*h > maxPixels:
		beta := math.Sqrt(area / float64(maxPixels))
		side = func(n int) int { return max(factor, int(math.Floor(float64(n)/beta/f))*factor) }
		w, h = side(width), side(height)
	case rounded*w*h < minPixels:
		beta := math.Sqrt(float64(minPixels) / area)
		side = func(n int) int { return int(math.Ceil(float64(n)*beta/f)) * factor }
		w, h = side(width), side(height)
	}
	// Upstream lets a side of no pixels through where the bounds allow a strip so thin.
	return max(w, factor), max(h, factor), nil
}

func (r patches) Layout(width, height int) (Layout, error) {
	w, h, err := SmartResize(width, height, r.Factor(), r.MinPixels, r.MaxPixels)
	if err != nil {
		return Layout{}, err
	}
	m := Grid{Columns: w / r.Factor(), Rows: h / r.Factor()}
	return Layout{Tiles: 1, Tokens: m.Tiles(), Map: m}, nil
}

func (r patches) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	layout, err := r.Layout(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	small := resized(canvasOf(picture), layout.Map.Columns*r.Factor(), layout.Map.Rows*r.Factor(), r.filter)
	g := patchGrid{Patches: r.Patches, frames: 1, columns: small.Width / r.Size, rows: small.Height / r.Size}
	tensors := g.tensors()
	tensors["pixel_values"] = r.pixels(g, small)
	return &Prepared{Tensors: tensors, Tiles: 1, Tokens: layout.Tokens, Width: picture.Width, Height: picture.Height, Alone: true}, nil
}

// pixels cuts the picture into patches [patches, 3·temporal·size·size]: a row is channel by channel, each of them frame by
// frame, which for a picture are all alike.
func (r patches) pixels(g patchGrid, picture *RGB) *Array {
	plane := r.Size * r.Size
	width := 3 * r.Temporal * plane
	values := make([]float32, g.patches()*width)
	for i := range g.patches() {
		_, x, y := g.at(i)
		row := values[i*width : (i+1)*width]
		for c := range 3 {
			first := row[c*r.Temporal*plane:][:plane]
			table := &r.normalize[c]
			for v := range r.Size {
				pix := picture.Row(y*r.Size + v)[3*x*r.Size+c:]
				for u := range r.Size {
					first[v*r.Size+u] = table[pix[3*u]]
				}
			}
			for t := 1; t < r.Temporal; t++ {
				copy(row[(c*r.Temporal+t)*plane:][:plane], first)
			}
		}
	}
	return &Array{Shape: []int64{int64(g.patches()), int64(width)}, Float32: values}
}

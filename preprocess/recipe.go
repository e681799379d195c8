package preprocess

import (
	"context"
	"errors"
	"fmt"
	"image"
	"maps"
	"slices"
	"strings"

	"glimpse/manifest"
)

// Recipe turns a picture into the tensors of one model. A Recipe is immutable and safe for concurrent use.
type Recipe interface {
	// Prepare makes the tensors of an upright RGB picture. It does not keep or change the picture.
	Prepare(ctx context.Context, picture *RGB) (*Prepared, error)
	// Layout returns how many tiles and placeholder tokens an upright picture of this size takes, without having its
	// pixels: admission needs the numbers before anything is decoded.
	Layout(width, height int) (Layout, error)
}

// Prepared is a picture in the form that a model's graphs take.
type Prepared struct {
	// Tensors are keyed by the name of the graph input that they feed; "pixel_values" is [Tiles, 3, H, W].
	Tensors map[string]*Array
	// Tiles is the number of pictures that the vision tower sees.
	Tiles int
	// Tokens is the number of rows in the prompt, as Recipe.Layout gives it.
	Tokens int
	// Alone says that the tensors go through the graphs without those of other pictures: what they hold counts their own rows.
	Alone bool
	// Width and Height are the size of the picture that was prepared: the frame that boxes are given in.
	Width, Height int
}

// Array is a dense tensor, row-major. Exactly one of its element slices is set; its length is the product of Shape.
type Array struct {
	Shape   []int64
	Float32 []float32
	Int64   []int64
}

// NewRecipe returns the recipe that a manifest describes, as a request wants it. All that is wrong with the description is
// reported at once.
func NewRecipe(p manifest.Picture, options Options) (Recipe, error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	build, known := recipes[p.Recipe]
	if !known {
		names := slices.Sorted(maps.Keys(recipes))
		return nil, fmt.Errorf("picture recipe %q is unknown: known are %s; convert the checkpoint again with this version, or run the folder with a newer one", p.Recipe, strings.Join(names, ", "))
	}
	if (options.MinPixels > 0 || options.MaxPixels > 0) && p.Patches == nil {
		return nil, fmt.Errorf("picture recipe %q resizes every picture to the model's own size: bounds on its pixels are for models that take pictures at their own size", p.Recipe)
	}
	switch {
	case (options.Frame || options.LastFrame) && p.Patches != nil:
		build = newPatchFrame
	case options.Frame || options.LastFrame:
		build = newFrame
	case options.Tiling == TilingHD:
		build = newHD
	case options.Tiling == TilingStretch:
		if p.Recipe != "clip" && p.Recipe != "pad" && p.Recipe != "stretch" {
			return nil, fmt.Errorf("tiling %q is for models of one tile, and the picture recipe is %q", TilingStretch, p.Recipe)
		}
		build = recipes["stretch"]
	}
	recipe, err := build(p, options)
	if err != nil {
		return nil, fmt.Errorf("picture recipe %q: %w", p.Recipe, err)
	}
	return recipe, nil
}

// Recipes of one tile do what a request asks for whenever it is not "hd": they never make more than one.
var recipes = map[string]func(manifest.Picture, Options) (Recipe, error){
	"clip":    func(p manifest.Picture, _ Options) (Recipe, error) { return newClip(p) },
	"pad":     func(p manifest.Picture, _ Options) (Recipe, error) { return newPad(p) },
	"stretch": func(p manifest.Picture, _ Options) (Recipe, error) { return newStretch(p) },
	"grid":    newGrid,
	"anyres":  newAnyres,
	"split":   newSplit,

	manifest.RecipePatches: newPatches,
}

// single is what the recipes of one tile and one size share.
type single struct {
	filter    Filter
	width     int // of pixel_values
	height    int
	tokens    int
	normalize normalizer
}

// maxSide bounds what a manifest may ask for; towers see 224 to 1024 pixels.
const maxSide = 1 << 14

func newSingle(p manifest.Picture) (single, error) {
	var problems []error
	filter, err := FilterByName(p.Resample)
	problems = append(problems, err)
	filter.tallFirst = p.Passes == manifest.PassesByWork
	if p.Height < 1 || p.Width < 1 || p.Height > maxSide || p.Width > maxSide {
		problems = append(problems, fmt.Errorf("height and width are %d and %d; want 1 to %d", p.Height, p.Width, maxSide))
	}
	if p.TokensPerTile < 1 {
		problems = append(problems, fmt.Errorf("tokens_per_tile is %d; want at least 1", p.TokensPerTile))
	}
	normalize, err := newNormalizer(p)
	problems = append(problems, err)
	return single{filter, p.Width, p.Height, p.TokensPerTile, normalize}, errors.Join(problems...)
}

// Layout implements Recipe: every picture takes the same.
func (s single) Layout(width, height int) (Layout, error) {
	if err := checkSides(width, height); err != nil {
		return Layout{}, err
	}
	return Layout{Tiles: 1, Tokens: s.tokens}, nil
}

func checkSides(width, height int) error {
	if width < 1 || height < 1 {
		return fmt.Errorf("lay out a picture of %d×%d: it has no pixels", width, height)
	}
	return nil
}

// prepared normalises tiles of the tower's size.
func (s single) prepared(picture *RGB, tokens int, tiles ...*RGB) *Prepared {
	size := 3 * s.width * s.height
	values := make([]float32, len(tiles)*size)
	for i, tile := range tiles {
		s.normalize.planes(values[i*size:(i+1)*size], tile)
	}
	return &Prepared{
		Tensors: map[string]*Array{"pixel_values": {Shape: []int64{int64(len(tiles)), 3, int64(s.height), int64(s.width)}, Float32: values}},
		Tiles:   len(tiles),
		Tokens:  tokens,
		Width:   picture.Width,
		Height:  picture.Height,
	}
}

func begin(ctx context.Context, picture *RGB) error {
	if err := picture.check(); err != nil {
		return fmt.Errorf("prepare picture: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("prepare picture: %w", err)
	}
	return nil
}

// clip resizes the shorter edge and crops the centre: CLIPImageProcessor with do_center_crop.
type clip struct {
	single
	shortEdge int
}

func newClip(p manifest.Picture) (clip, error) {
	s, err := newSingle(p)
	problems := []error{err}
	if p.ShortEdge < 1 || p.ShortEdge > maxSide {
		problems = append(problems, fmt.Errorf("short_edge is %d; want 1 to %d", p.ShortEdge, maxSide))
	}
	// Without a crop the tensor's size would follow the picture's, which no tower of this recipe takes.
	if p.CropHeight != p.Height || p.CropWidth != p.Width {
		problems = append(problems, fmt.Errorf("the crop of %d×%d (width × height) is not the size of pixel_values, %d×%d", p.CropWidth, p.CropHeight, p.Width, p.Height))
	}
	return clip{s, p.ShortEdge}, errors.Join(problems...)
}

func (c clip) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	return c.prepared(picture, c.tokens, c.crop(canvasOf(picture))), nil
}

// crop makes the resized picture's centre, and only that.
func (c clip) crop(from canvas) *RGB {
	w, h := shortestEdge(from.width, from.height, c.shortEdge)
	visible, place := centre(w, h, c.width, c.height)
	part := resizeOf(from, w, h, c.filter).window(visible)
	if part.Width == c.width && part.Height == c.height {
		return part
	}
	out := NewRGB(c.width, c.height) // padded with zeros before the normalisation
	for y := range part.Height {
		copy(out.Row(place.Y + y)[3*place.X:], part.Row(y))
	}
	return out
}

// shortestEdge returns the size of w × h after its shorter edge has become short: the longer one is
// int(short·long/short edge) in Python's arithmetic, a true division and a truncation.
func shortestEdge(w, h, short int) (width, height int) {
	longer := func(long, by int) int { return int(float64(short*long) / float64(by)) }
	if w <= h {
		return short, longer(h, w)
	}
	return longer(w, h), short
}

// centre returns the part of a w × h picture that a centred crop shows, and where it comes to lie in the crop, as
// transformers' center_crop does it: an axis too short is padded first, the smaller half before it; one too
// long loses int((w-crop)/2) before.
func centre(w, h, cropWidth, cropHeight int) (visible image.Rectangle, place image.Point) {
	x0, x1, px := centreAxis(w, cropWidth)
	y0, y1, py := centreAxis(h, cropHeight)
	return image.Rect(x0, y0, x1, y1), image.Pt(px, py)
}

func centreAxis(n, crop int) (from, to, place int) {
	if n < crop {
		return 0, n, (crop - n) / 2
	}
	from = (n - crop) / 2
	return from, from + crop, 0
}

// pad puts the picture in the middle of a square and goes on as clip: image_aspect_ratio "pad" of the authors' LLaVA-1.5
// (expand2square in llava/mm_utils.py).
type pad struct {
	clip
	background [3]uint8
}

func newPad(p manifest.Picture) (pad, error) {
	if p.ShortEdge == 0 {
		p.ShortEdge = min(p.Height, p.Width)
	}
	if p.CropHeight == 0 && p.CropWidth == 0 {
		p.CropHeight, p.CropWidth = p.Height, p.Width
	}
	base, err := newClip(p)
	problems := []error{err}
	background, err := backgroundOf(p)
	return pad{base, background}, errors.Join(append(problems, err)...)
}

// backgroundOf is the manifest's colour of padding.
func backgroundOf(p manifest.Picture) (color [3]uint8, err error) {
	if len(p.Background) != 3 {
		return color, fmt.Errorf("background has %d values, want R, G, B", len(p.Background))
	}
	var problems []error
	for c, v := range p.Background {
		if v < 0 || v > 255 {
			problems = append(problems, fmt.Errorf("background value %d is %d; want 0 to 255", c, v))
		}
		color[c] = uint8(v)
	}
	return color, errors.Join(problems...)
}

func (r pad) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	return r.prepared(picture, r.tokens, r.crop(squareOf(picture, r.background))), nil
}

// squareOf lays the picture in the middle of a square.
func squareOf(picture *RGB, background [3]uint8) canvas {
	side := max(picture.Width, picture.Height)
	return canvas{
		picture:    picture,
		width:      side,
		height:     side,
		left:       (side - picture.Width) / 2,
		top:        (side - picture.Height) / 2,
		background: background,
	}
}

// stretch resizes to the tower's size whatever the picture's shape: BlipImageProcessor, Gemma3ImageProcessor.
type stretch struct{ single }

func newStretch(p manifest.Picture) (stretch, error) {
	s, err := newSingle(p)
	return stretch{s}, err
}

func (r stretch) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	return r.prepared(picture, r.tokens, r.stretched(canvasOf(picture))), nil
}

// stretched is the whole of it as one tile.
func (s single) stretched(from canvas) *RGB {
	return resizeOf(from, s.width, s.height, s.filter).window(image.Rect(0, 0, s.width, s.height))
}

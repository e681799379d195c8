package preprocess

import (
	"context"
	"errors"
	"fmt"
	"image"

	"glimpse/manifest"
)

// hd gives a model of one tile a higher resolution without training, as LLaVA-1.5-HD does (Liu et al. 2023, "Improved
// Baselines with Visual Instruction Tuning", section 3.4): the picture is fitted into the best grid of tiles of the
// tower's own size, each tile goes through the tower, the features are merged into one large map, those that saw nothing
// but padding are dropped, and the features of the downsampled whole picture follow. docs/tiling.md says where this
// goes along with the paper and where it cannot.
type hd struct {
	single
	candidates [][2]int
	side       int
	background [3]uint8
}

// hdTiles is the paper's bound: "maximum six grids".
const hdTiles = 6

func newHD(p manifest.Picture, o Options) (Recipe, error) {
	if p.Recipe != "clip" && p.Recipe != "pad" {
		return nil, fmt.Errorf("tiling %q is for models of one tile that crop or pad (recipes clip and pad)", TilingHD)
	}
	if p.PatchGrid == 0 {
		return nil, fmt.Errorf("tiling %q needs patch_grid in the manifest: the model's features are no map of the picture, or the folder is older than this version; convert the checkpoint again", TilingHD)
	}
	s, err := newSingle(p)
	r := hd{single: s, side: p.PatchGrid}
	problems := []error{err, checkPatchGrid(p)}
	if len(p.Background) > 0 {
		r.background, err = backgroundOf(p)
		problems = append(problems, err)
	} else {
		r.background = meanColor(p)
	}
	most := hdTiles
	if o.MaxTiles > 0 {
		most = o.MaxTiles
	}
	for rows := 1; rows <= most; rows++ {
		for columns := 1; rows*columns <= most; columns++ {
			r.candidates = append(r.candidates, [2]int{rows * p.Height, columns * p.Width})
		}
	}
	return r, errors.Join(problems...)
}

// meanColor is the colour that normalises to about zero, which the authors pad with.
func meanColor(p manifest.Picture) (color [3]uint8) {
	for c := range min(len(p.Mean), len(color)) {
		color[c] = uint8(min(max(p.Mean[c]*255, 0), 255))
	}
	return color
}

func (r hd) Layout(width, height int) (Layout, error) {
	if err := checkSides(width, height); err != nil {
		return Layout{}, err
	}
	w, h := BestResolution(width, height, r.candidates)
	g := Grid{w / r.width, h / r.height}
	if g.Tiles() == 1 { // the tile and the whole picture would be the same
		return Layout{Tiles: 1, Tokens: r.tokens}, nil
	}
	m := featureMap{grid: g, side: r.side}
	part := r.seen(r.place(width, height, g), m)
	tokens := part.Dx()*part.Dy() + r.tokens
	return Layout{Tiles: g.Tiles() + 1, Tokens: tokens, Grid: g, arrange: func() []FeatureRow {
		out := m.appendPart(make([]FeatureRow, 0, tokens), part, part.Dx(), part.Dy(), false)
		return appendTile(out, g.Tiles(), r.tokens)
	}}, nil
}

// seen returns the features that have pixels of the picture under them.
func (r hd) seen(place image.Rectangle, m featureMap) image.Rectangle {
	width, height := m.grid.Columns*r.width, m.grid.Rows*r.height
	return image.Rect(
		place.Min.X*m.columns()/width, place.Min.Y*m.rows()/height,
		(place.Max.X*m.columns()+width-1)/width, (place.Max.Y*m.rows()+height-1)/height)
}

func (r hd) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	layout, err := r.Layout(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	var tiles []*RGB
	if layout.Tiles > 1 {
		tiles = r.cut(r.fitted(picture, layout.Grid, r.background), layout.Grid)
	}
	whole := r.stretched(squareOf(picture, r.background))
	return r.prepared(picture, layout.Tokens, append(tiles, whole)...), nil
}

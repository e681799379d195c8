package preprocess

import (
	"context"
	"errors"
	"fmt"
	"image"

	"glimpse/manifest"
)

// The recipes that cut a picture into tiles of the tower's size. What they do to sizes is in tiling.go.

// cut returns the tiles of a picture that is exactly a grid of them, row by row.
func (s single) cut(picture *RGB, grid Grid) []*RGB {
	tiles := make([]*RGB, 0, grid.Tiles()+1)
	for row := range grid.Rows {
		for column := range grid.Columns {
			tile := NewRGB(s.width, s.height)
			for y := range s.height {
				copy(tile.Row(y), picture.Row(row*s.height + y)[3*column*s.width:])
			}
			tiles = append(tiles, tile)
		}
	}
	return tiles
}

// resized is the whole of it at a size.
func resized(from canvas, width, height int, filter Filter) *RGB {
	return resizeOf(from, width, height, filter).window(image.Rect(0, 0, width, height))
}

// grid stretches the picture to a grid of tiles and adds the whole picture behind them: GotOcr2ImageProcessor with
// crop_to_patches, which InternVL uses.
type grid struct {
	single
	fewest, most int
	thumbnail    bool
}

func newGrid(p manifest.Picture, o Options) (Recipe, error) {
	s, err := newSingle(p)
	problems := []error{err}
	if p.MinTiles < 1 || p.MaxTiles < p.MinTiles || p.MaxTiles > maxTilesOfPicture {
		problems = append(problems, fmt.Errorf("min_tiles and max_tiles are %d and %d; want 1 to %d, the first not above the second", p.MinTiles, p.MaxTiles, maxTilesOfPicture))
	}
	r := grid{s, p.MinTiles, p.MaxTiles, p.Thumbnail}
	if o.MaxTiles > 0 {
		r.most = o.MaxTiles
		r.fewest = min(r.fewest, r.most)
	}
	if o.Tiling == TilingOff {
		r.fewest, r.most = 1, 1
	}
	return r, errors.Join(problems...)
}

func (r grid) Layout(width, height int) (Layout, error) {
	if err := checkSides(width, height); err != nil {
		return Layout{}, err
	}
	if r.most == 1 {
		return Layout{Tiles: 1, Tokens: r.tokens}, nil
	}
	g := ClosestGrid(width, height, r.width, r.height, r.fewest, r.most)
	if g.Tiles() == 1 {
		return Layout{Tiles: 1, Tokens: r.tokens}, nil
	}
	tiles := g.Tiles()
	if r.thumbnail {
		tiles++
	}
	return Layout{Tiles: tiles, Tokens: tiles * r.tokens, Grid: g}, nil
}

func (r grid) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	layout, err := r.Layout(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	var tiles []*RGB
	if g := layout.Grid; g.Tiles() > 1 {
		tiles = r.cut(resized(canvasOf(picture), g.Columns*r.width, g.Rows*r.height, r.filter), g)
	}
	if len(tiles) < layout.Tiles {
		tiles = append(tiles, r.stretched(canvasOf(picture)))
	}
	return r.prepared(picture, layout.Tokens, tiles...), nil
}

// anyres is the whole picture as one tile, then the picture fitted into the best of a list of grids. Behind the tower the
// features of the grid are one map again, without what saw only padding, and each of its rows ends with a learned newline:
// LlavaNextImageProcessor, LlavaOnevisionImageProcessor and pack_image_features of both models.
type anyres struct {
	single
	candidates [][2]int
	side       int // of a tile's features
	maxAnyres  int
	// square: a picture that is not tiled is padded to a square first, and not stretched.
	square     bool
	background [3]uint8
}

func newAnyres(p manifest.Picture, o Options) (Recipe, error) {
	s, err := newSingle(p)
	r := anyres{single: s, side: p.PatchGrid, maxAnyres: p.MaxAnyres, square: len(p.Background) > 0}
	problems := []error{err, checkPatchGrid(p)}
	if p.Newline == "" {
		problems = append(problems, errors.New("newline names no tensor"))
	}
	if p.MaxAnyres < 0 || p.MaxAnyres > 1<<10 {
		problems = append(problems, fmt.Errorf("max_anyres is %d; want 0 to %d", p.MaxAnyres, 1<<10))
	}
	if r.square {
		r.background, err = backgroundOf(p)
		problems = append(problems, err)
	}
	if len(p.Pinpoints) == 0 || len(p.Pinpoints) > 1<<10 {
		problems = append(problems, fmt.Errorf("pinpoints lists %d grids; want 1 to %d", len(p.Pinpoints), 1<<10))
	}
	for _, size := range p.Pinpoints {
		tiles, err := pinpointTiles(size, p)
		problems = append(problems, err)
		if err == nil && o.Tiling != TilingOff && (o.MaxTiles == 0 || tiles <= o.MaxTiles) {
			r.candidates = append(r.candidates, [2]int{size[0], size[1]})
		}
	}
	return r, errors.Join(problems...)
}

// checkPatchGrid makes sure that a tile's features are a square, which may be arranged with those of other tiles.
func checkPatchGrid(p manifest.Picture) error {
	if p.PatchGrid < 1 || p.PatchGrid > 1<<10 || p.PatchGrid*p.PatchGrid != p.TokensPerTile || p.Width != p.Height {
		return fmt.Errorf("patch_grid is %d, tokens_per_tile %d and a tile %d×%d; want a square tile with the square of patch_grid as its tokens",
			p.PatchGrid, p.TokensPerTile, p.Width, p.Height)
	}
	return nil
}

func pinpointTiles(size []int, p manifest.Picture) (int, error) {
	if len(size) != 2 || p.Height < 1 || p.Width < 1 || size[0] < 1 || size[1] < 1 || size[0]%p.Height != 0 || size[1]%p.Width != 0 {
		return 0, fmt.Errorf("pinpoints holds %v, which is no grid of tiles of %d×%d", size, p.Width, p.Height)
	}
	rows, columns := size[0]/p.Height, size[1]/p.Width
	if rows > maxTilesOfPicture || columns > maxTilesOfPicture || rows*columns > maxTilesOfPicture {
		return 0, fmt.Errorf("pinpoints holds %v, which has more than %d tiles", size, maxTilesOfPicture)
	}
	return rows * columns, nil
}

func (r anyres) Layout(width, height int) (Layout, error) {
	if err := checkSides(width, height); err != nil {
		return Layout{}, err
	}
	if len(r.candidates) == 0 {
		return Layout{Tiles: 1, Tokens: r.tokens + 1, arrange: func() []FeatureRow {
			return append(appendTile(make([]FeatureRow, 0, r.tokens+1), 0, r.tokens), FeatureRow{Newline: true})
		}}, nil
	}
	w, h := BestResolution(width, height, r.candidates)
	m := featureMap{grid: Grid{w / r.width, h / r.height}, side: r.side, first: 1}
	part := Unpad(width, height, m.columns(), m.rows())
	columns, rows := Shrink(part.Dx(), part.Dy(), r.maxAnyres, r.side)
	if columns*rows == 0 && !part.Empty() {
		return Layout{}, fmt.Errorf("the features of a picture of %d×%d shrink to nothing: it is too narrow for this model", width, height)
	}
	tokens := r.tokens + rows*(columns+1)
	return Layout{Tiles: 1 + m.grid.Tiles(), Tokens: tokens, Grid: m.grid, arrange: func() []FeatureRow {
		out := appendTile(make([]FeatureRow, 0, tokens), 0, r.tokens)
		return m.appendPart(out, part, columns, rows, true)
	}}, nil
}

func (r anyres) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	layout, err := r.Layout(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	whole := canvasOf(picture)
	if layout.Tiles == 1 && r.square {
		whole = squareOf(picture, r.background)
	}
	tiles := []*RGB{r.stretched(whole)}
	if layout.Tiles > 1 {
		tiles = append(tiles, r.cut(r.fitted(picture, layout.Grid, [3]uint8{}), layout.Grid)...)
	}
	return r.prepared(picture, layout.Tokens, tiles...), nil
}

// fitted is the picture in the middle of a grid's pixels, as large as fits. Padding has its colour before the
// normalisation; an odd pixel of it goes right or below.
func (s single) fitted(picture *RGB, grid Grid, background [3]uint8) *RGB {
	place := s.place(picture.Width, picture.Height, grid)
	small := resized(canvasOf(picture), place.Dx(), place.Dy(), s.filter)
	out := NewRGB(grid.Columns*s.width, grid.Rows*s.height)
	if background != [3]uint8{} {
		fill(out.Pix, background)
	}
	for y := range small.Height {
		copy(out.Row(place.Min.Y + y)[3*place.Min.X:], small.Row(y))
	}
	return out
}

// place returns the pixels of the grid that a fitted picture takes.
func (s single) place(width, height int, grid Grid) image.Rectangle {
	w, h := FitInside(width, height, grid.Columns*s.width, grid.Rows*s.height)
	x, y := (grid.Columns*s.width-w)/2, (grid.Rows*s.height-h)/2
	return image.Rect(x, y, x+w, y+h)
}

// split resizes the longer edge, then both edges up to tiles, and adds the whole picture behind them: Idefics3 and SmolVLM.
type split struct {
	single
	longEdge int
	most     int // tiles; 0: as many as longEdge makes
	off      bool
}

func newSplit(p manifest.Picture, o Options) (Recipe, error) {
	s, err := newSingle(p)
	problems := []error{err}
	if p.Height != p.Width {
		problems = append(problems, fmt.Errorf("a tile is %d×%d; want a square", p.Width, p.Height))
	}
	if p.LongEdge < 1 || p.Width > 0 && (p.LongEdge+p.Width-1)/p.Width > 8 { // so that a square picture has maxTilesOfPicture at most
		problems = append(problems, fmt.Errorf("long_edge is %d; want 1 to 8 tiles of %d", p.LongEdge, p.Width))
	}
	return split{s, p.LongEdge, o.MaxTiles, o.Tiling == TilingOff || !p.Thumbnail}, errors.Join(problems...)
}

// sizes returns the size after the first resize, and the grid; one of a single tile is not cut.
func (r split) sizes(width, height int) (w, h int, grid Grid) {
	for edge := r.longEdge; ; edge = (edge - 1) / r.width * r.width {
		w, h = LongestEdge(width, height, edge)
		if r.off {
			return w, h, Grid{1, 1}
		}
		// A bound on the tiles lowers the resolution by whole tiles.
		if grid = SplitGrid(w, h, r.width); r.most == 0 || grid.Tiles() <= r.most || edge <= r.width {
			return w, h, grid
		}
	}
}

func (r split) Layout(width, height int) (Layout, error) {
	if err := checkSides(width, height); err != nil {
		return Layout{}, err
	}
	_, _, g := r.sizes(width, height)
	if g.Tiles() == 1 {
		return Layout{Tiles: 1, Tokens: r.tokens}, nil
	}
	return Layout{Tiles: g.Tiles() + 1, Tokens: (g.Tiles() + 1) * r.tokens, Grid: g}, nil
}

func (r split) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	layout, err := r.Layout(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	w, h, g := r.sizes(picture.Width, picture.Height)
	// Each resize starts from the one before, as upstream's: the whole picture, too, is made of what the tiles are.
	from := resized(canvasOf(picture), w, h, r.filter)
	if !r.off {
		from = resized(canvasOf(from), g.Columns*r.width, g.Rows*r.height, r.filter)
	}
	var tiles []*RGB
	if g.Tiles() > 1 {
		tiles = r.cut(from, g)
	}
	return r.prepared(picture, layout.Tokens, append(tiles, r.stretched(canvasOf(from)))...), nil
}

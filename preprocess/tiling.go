package preprocess

import (
	"image"
	"math"
	"strconv"
)

// How a picture is cut into tiles and how the tiles' features lie in the prompt: arithmetic on sizes alone, in the order
// and the precision of upstream's Python, so that the same picture gets the same tiles. Where upstream fails on an extreme
// size, the nearest size that works is taken, and the comment says so.

// Grid is an arrangement of tiles.
type Grid struct{ Columns, Rows int }

// Tiles returns how many tiles the grid has.
func (g Grid) Tiles() int { return g.Columns * g.Rows }

// ClosestGrid returns the grid of fewest..most tiles whose aspect ratio is closest to that of a width × height picture.
// Of equally close grids the larger one wins where the picture has more than half of its pixels. It is
// get_optimal_tiled_canvas of transformers' GotOcr2ImageProcessor, and dynamic_preprocess of InternVL's authors.
func ClosestGrid(width, height, tileWidth, tileHeight, fewest, most int) Grid {
	best, bestDiff := Grid{1, 1}, math.Inf(1)
	ratio := float64(width) / float64(height)
	area := float64(width) * float64(height)
	// Upstream sorts all grids by their tiles and leaves equal ones in the order of their columns.
	for tiles := fewest; tiles <= most; tiles++ {
		for columns := 1; columns <= tiles; columns++ {
			if tiles%columns != 0 {
				continue
			}
			grid := Grid{columns, tiles / columns}
			diff := math.Abs(ratio - float64(grid.Columns)/float64(grid.Rows))
			tie := diff == bestDiff && area > 0.5*float64(tileHeight)*float64(tileWidth)*float64(tiles)
			if diff < bestDiff || tie {
				best, bestDiff = grid, diff
			}
		}
	}
	return best
}

// BestResolution returns which of the candidates, [height, width] in pixels, keeps most of a width × height picture, and
// of those the one that wastes least. It is select_best_resolution of transformers and of LLaVA's authors.
// There must be a candidate.
func BestResolution(width, height int, candidates [][2]int) (bestWidth, bestHeight int) {
	most, least := 0, math.MaxInt
	for _, c := range candidates {
		h, w := c[0], c[1]
		scale := min(float64(w)/float64(width), float64(h)/float64(height))
		effective := min(int(float64(width)*scale)*int(float64(height)*scale), width*height)
		wasted := w*h - effective
		if effective > most || effective == most && wasted < least {
			most, least = effective, wasted
			bestWidth, bestHeight = w, h
		}
	}
	return bestWidth, bestHeight
}

// FitInside returns the size of a width × height picture that just fits into a target, sides rounded up. It is
// get_patch_output_size of transformers' image_processing_utils.
func FitInside(width, height, targetWidth, targetHeight int) (w, h int) {
	scaleW, scaleH := float64(targetWidth)/float64(width), float64(targetHeight)/float64(height)
	if scaleW < scaleH {
		return targetWidth, min(int(math.Ceil(float64(height)*scaleW)), targetHeight)
	}
	return min(int(math.Ceil(float64(width)*scaleH)), targetWidth), targetHeight
}

// Unpad returns the part of a columns × rows map of features that a width × height picture takes after it was fitted into
// the middle of the map's pixels. It is unpad_image of transformers' modeling_llava_next. The part of an extremely narrow
// picture may have no columns (or no rows).
func Unpad(width, height, columns, rows int) image.Rectangle {
	r := image.Rect(0, 0, columns, rows)
	// Rect would swap edges that cross; they cannot, since padding is at most half.
	if float64(width)/float64(height) > float64(columns)/float64(rows) {
		scale := float64(columns) / float64(width)
		padding := floorHalf(rows - int(rounded7(float64(height)*scale)))
		r.Min.Y, r.Max.Y = padding, rows-padding
		return r
	}
	scale := float64(rows) / float64(height)
	padding := floorHalf(columns - int(rounded7(float64(width)*scale)))
	r.Min.X, r.Max.X = padding, columns-padding
	return r
}

// floorHalf is n // 2.
func floorHalf(n int) int { return n >> 1 }

// rounded7 is Python's round(x, 7): exact in decimal, not a multiplication and a division.
func rounded7(x float64) float64 {
	v, err := strconv.ParseFloat(strconv.FormatFloat(x, 'f', 7, 64), 64)
	if err != nil {
		return x
	}
	return v
}

// Shrink returns the size to which a columns × rows map of features is interpolated so that it is about as large as
// maxTiles tiles of side × side features, or the size itself where it is not much larger. It is the "anyres_max_N" of
// LLaVA-OneVision: pack_image_features in transformers' modeling_llava_onevision.
func Shrink(columns, rows, maxTiles, side int) (c, r int) {
	if maxTiles < 1 {
		return columns, rows
	}
	ratio := math.Sqrt(float64(rows*columns) / float64(maxTiles*side*side))
	if !(ratio > 1.1) {
		return columns, rows
	}
	return int(floorDivide(float64(columns), ratio)), int(floorDivide(float64(rows), ratio))
}

// floorDivide is Python's a // b of positive floats, which is not the floor of the rounded quotient.
func floorDivide(a, b float64) float64 {
	quotient := (a - math.Mod(a, b)) / b
	floor := math.Floor(quotient)
	if quotient-floor > 0.5 {
		floor++
	}
	return floor
}

// maxSplitEdge is MAX_IMAGE_SIZE of the two processors below.
const maxSplitEdge = 4096

// LongestEdge returns the size of a width × height picture after its longer edge has become edge, the shorter one rounded
// down and then up to an even number: get_resize_output_image_size of transformers' Idefics3 and SmolVLM processors.
func LongestEdge(width, height, edge int) (w, h int) {
	aspect := float64(width) / float64(height)
	if width >= height {
		w, h = edge, int(float64(edge)/aspect)
		h += h % 2
	} else {
		w, h = int(float64(edge)*aspect), edge
		w += w % 2
	}
	w, h = max(w, 1), max(h, 1)
	aspect = float64(w) / float64(h)
	switch {
	case w >= h && w > maxSplitEdge:
		w, h = maxSplitEdge, int(maxSplitEdge/aspect)
	case h > w && h > maxSplitEdge:
		w, h = int(maxSplitEdge*aspect), maxSplitEdge
	}
	return max(w, 1), max(h, 1)
}

// SplitGrid returns the grid of tiles that covers a picture of the size that LongestEdge gave: the longer edge is rounded
// up to tiles, then the shorter one that follows from it. It is resize_for_vision_encoder of transformers' Idefics3 and
// SmolVLM processors, which fail where the shorter edge comes out as 0; here it is one tile then.
func SplitGrid(width, height, tile int) Grid {
	up := func(n int) int { return max(1, (n+tile-1)/tile) }
	aspect := float64(width) / float64(height)
	if width >= height {
		columns := up(width)
		return Grid{columns, up(int(float64(columns*tile) / aspect))}
	}
	rows := up(height)
	return Grid{up(int(float64(rows*tile) * aspect)), rows}
}

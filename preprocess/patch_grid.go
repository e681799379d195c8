package preprocess

import (
	"math"

	"glimpse/manifest"
)

// patchGrid is the patches of a picture or video. They are counted frame by frame, in each frame token by token, row by
// row of tokens, and in each token row by row.
type patchGrid struct {
	manifest.Patches
	frames, columns, rows int // of patches; columns and rows are multiples of Merge
}

func (g patchGrid) unit() int    { return g.Merge * g.Merge }
func (g patchGrid) patches() int { return g.frames * g.columns * g.rows }

// at returns the frame, column and row of the i-th patch.
func (g patchGrid) at(i int) (frame, x, y int) {
	token, within := i/g.unit(), i%g.unit()
	across := g.columns / g.Merge
	down := token / across
	frame, down = down/(g.rows/g.Merge), down%(g.rows/g.Merge)
	return frame, token%across*g.Merge + within%g.Merge, down*g.Merge + within/g.Merge
}

// tensors are the graph inputs that follow from the grid; docs/model-folder.md lists them.
func (g patchGrid) tensors() map[string]*Array {
	sizes := make([]int64, g.frames)
	for i := range sizes {
		sizes[i] = int64(g.columns * g.rows)
	}
	out := map[string]*Array{"frame_sizes": {Shape: []int64{int64(g.frames)}, Int64: sizes}}
	order := make([]int64, g.patches())
	for i := range order {
		order[i] = int64(i)
	}
	if g.Window > 0 {
		order = g.windows(out)
	}
	g.rotary(out, order)
	if g.PositionGrid > 0 {
		g.positions(out)
	}
	return out
}

// rotary adds cos and sin of each patch's row and column, [patches, head_dim/2], for patches in the given order
// (rot_pos_emb of Qwen2VisionTransformerPretrainedModel): the first half turns with the row, the second with the column.
func (g patchGrid) rotary(out map[string]*Array, order []int64) {
	const theta = 10000
	frequencies := inverseFrequencies(theta, g.HeadDim/2)
	half, n := g.HeadDim/2, g.patches()
	shape := []int64{int64(n), int64(half)}
	cos, sin := make([]float32, n*half), make([]float32, n*half)
	for i, patch := range order {
		_, x, y := g.at(int(patch))
		for j, f := range frequencies {
			for part, p := range [2]int{y, x} {
				angle := float64(float32(p) * f)
				at := i*half + part*len(frequencies) + j
				cos[at], sin[at] = float32(math.Cos(angle)), float32(math.Sin(angle))
			}
		}
	}
	out["vision_cos"], out["vision_sin"] = &Array{Shape: shape, Float32: cos}, &Array{Shape: shape, Float32: sin}
}

// windows adds the order of patches window by window, which it returns, the windows' maps, and where each token is found
// in that order (get_window_index of Qwen2_5_VisionTransformerPretrainedModel). Windows at the right and lower border may
// be smaller.
func (g patchGrid) windows(out map[string]*Array) []int64 {
	side := g.Window / g.Factor() // of a window, in tokens
	across, down := g.columns/g.Merge, g.rows/g.Merge
	index := make([]int64, 0, g.patches())
	place := make([]int64, across*down*g.frames) // of tokens, in the new order
	var lengths []int64
	for frame := range g.frames {
		for top := 0; top < down; top += side {
			for left := 0; left < across; left += side {
				before := len(index)
				for y := top; y < min(top+side, down); y++ {
					for x := left; x < min(left+side, across); x++ {
						token := (frame*down+y)*across + x
						place[token] = int64(len(index) / g.unit())
						for p := range g.unit() {
							index = append(index, int64(token*g.unit()+p))
						}
					}
				}
				lengths = append(lengths, int64(len(index)-before))
			}
		}
	}
	longest := int64(min(side, across) * min(side, down) * g.unit())
	rows := make([]int64, int64(len(lengths))*longest)
	found := make([]int64, 0, len(index))
	next := int64(0)
	for w, n := range lengths {
		for i := range n {
			at := int64(w)*longest + i
			rows[at] = next
			found = append(found, at)
			next++
		}
	}
	vector := func(v []int64) *Array { return &Array{Shape: []int64{int64(len(v))}, Int64: v} }
	out["window_index"], out["window_lengths"], out["window_place"], out["merge_order"] = vector(index), vector(lengths), vector(found), vector(place)
	out["window_map"] = &Array{Shape: []int64{int64(len(lengths)), longest}, Int64: rows}
	return index
}

// positions adds which four learned positions surround each patch, and their weights, where the grid of positions is
// stretched over the picture with corners on corners (fast_pos_embed_interpolate of Qwen3VLVisionModel).
func (g patchGrid) positions(out map[string]*Array) {
	n := g.patches()
	index, weight := make([]int64, 4*n), make([]float32, 4*n)
	across, down := cornerTaps(g.PositionGrid, g.columns), cornerTaps(g.PositionGrid, g.rows)
	for i := range n {
		_, x, y := g.at(i)
		h, v := across[x], down[y]
		for k, c := range [4]struct {
			y, x int
			w    float32
		}{
			{v.low, h.low, (1 - v.share) * (1 - h.share)}, {v.low, h.high, (1 - v.share) * h.share},
			{v.high, h.low, v.share * (1 - h.share)}, {v.high, h.high, v.share * h.share},
		} {
			index[4*i+k], weight[4*i+k] = int64(c.y*g.PositionGrid+c.x), c.w
		}
	}
	shape := []int64{int64(n), 4}
	out["position_index"], out["position_weight"] = &Array{Shape: shape, Int64: index}, &Array{Shape: shape, Float32: weight}
}

// cornerTaps returns where out samples lie on an axis of in, the first on the first and the last on the last, as
// torch.linspace(0, in-1, out) has them: in float32, counted from the nearer end.
func cornerTaps(in, out int) []tap {
	taps := make([]tap, out)
	last := float32(in - 1)
	step := last / float32(max(out-1, 1))
	for i := range taps {
		at := step * float32(i)
		if i >= out/2 && out > 1 {
			at = last - float32(step*float32(out-1-i))
		}
		low := min(max(int(at), 0), in-1)
		taps[i] = tap{low: low, high: min(low+1, in-1), share: at - float32(low)}
	}
	return taps
}

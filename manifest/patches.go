// Pictures of any size: the recipe "patches", and positions with three axes.

package manifest

// RecipePatches is the recipe that takes a picture at its own size, as a list of patches.
const RecipePatches = "patches"

// PositionsMRoPE is the value of Decoder.Positions for rotary positions with three axes: time, row, column.
const PositionsMRoPE = "mrope"

// Patches are the parameters of the recipe "patches" (Qwen2VLImageProcessor and the towers behind it): both sides of a
// picture are rounded to multiples of Size·Merge so that the area lies in MinPixels..MaxPixels, and each square of Merge ×
// Merge patches becomes one row of the prompt.
type Patches struct {
	Size      int `toml:"size"`       // side of a patch in pixels
	Merge     int `toml:"merge"`      // patches side by side that one token stands for
	Temporal  int `toml:"temporal"`   // frames in one patch: a picture is repeated as often
	MinPixels int `toml:"min_pixels"` // of the resized picture
	MaxPixels int `toml:"max_pixels"`
	HeadDim   int `toml:"head_dim"` // of the tower, whose rotary positions are the rows and columns of patches
	// Window is the side in pixels of the windows that blocks without full attention see; 0: there are none.
	Window int `toml:"window,omitzero"`
	// PositionGrid is the side of the grid of learned positions, interpolated to the picture's; 0: there are none.
	PositionGrid int `toml:"position_grid,omitzero"`
	// Video is set where the model takes videos, whose frames share patches, Temporal of them each.
	Video *PatchVideo `toml:"video,omitempty"`
}

// PatchVideo says how videos become patches and where they stand in the prompt.
type PatchVideo struct {
	MinPixels int  `toml:"min_pixels"` // of a resized frame or, with AllFrames, of all frames together
	MaxPixels int  `toml:"max_pixels"`
	AllFrames bool `toml:"all_frames,omitempty"`
	// Apart says that each step in time, Temporal frames, is a picture of its own in the prompt, with the prompt's frame_prefix and
	// frame_suffix. Otherwise the steps follow each other without text between.
	Apart bool `toml:"apart,omitempty"`
	// TokensPerSecond is what a second adds to the time of positions; 0: a step adds one.
	TokensPerSecond float64 `toml:"tokens_per_second,omitzero"`
}

// Factor is what both sides of a resized picture are multiples of.
func (p Patches) Factor() int { return p.Size * p.Merge }

// validatePatches checks the recipe's parameters. The bounds keep every product of them within an int32.
func (m *Manifest) validatePatches(p *problems) {
	pic := m.Picture
	p.check((pic.Recipe == RecipePatches) == (pic.Patches != nil), "picture.recipe is %q; picture.patches belongs to the recipe %q and to no other", pic.Recipe, RecipePatches)
	t := pic.Patches
	if t == nil {
		return
	}
	p.within("picture.patches.size", t.Size, 1, 1<<10)
	p.within("picture.patches.merge", t.Merge, 1, 16)
	p.within("picture.patches.temporal", t.Temporal, 1, 16)
	p.within("picture.patches.min_pixels", t.MinPixels, 1, 1<<28)
	p.within("picture.patches.max_pixels", t.MaxPixels, t.MinPixels, 1<<28)
	p.within("picture.patches.head_dim", t.HeadDim, 4, 1<<12)
	p.check(t.HeadDim%4 == 0, "picture.patches.head_dim is %d; rows and columns take a quarter of it each, twice", t.HeadDim)
	p.within("picture.patches.window", t.Window, 0, 1<<14)
	p.check(t.Window == 0 || t.Window >= t.Factor(), "picture.patches.window is %d, less than one token's %d pixels", t.Window, t.Factor())
	p.within("picture.patches.position_grid", t.PositionGrid, 0, 1<<12)
	p.check(pic.Video == nil || t.Video != nil, "picture.video is set and picture.patches.video is not")
	if v := t.Video; v != nil {
		p.within("picture.patches.video.min_pixels", v.MinPixels, 1, 1<<40)
		p.within("picture.patches.video.max_pixels", v.MaxPixels, v.MinPixels, 1<<40)
		p.check(v.TokensPerSecond >= 0 && v.TokensPerSecond <= 1e4, "picture.patches.video.tokens_per_second is %v", v.TokensPerSecond)
	}
}

// validateMRoPE checks that the axes share out the frequencies.
func (m *Manifest) validateMRoPE(p *problems) {
	d := m.Decoder
	switch d.Positions {
	case "":
		p.check(d.Rope == nil || len(d.Rope.Sections) == 0, "decoder.rope.sections is set and decoder.positions is not %q", PositionsMRoPE)
	case PositionsMRoPE:
		if d.Rope == nil || len(d.Rope.Sections) != 3 {
			p.check(false, "decoder.positions is %q, which needs three decoder.rope.sections", PositionsMRoPE)
			return
		}
		sum := 0
		for _, s := range d.Rope.Sections {
			p.within("decoder.rope.sections", s, 0, 1<<12)
			sum += s
		}
		p.check(sum == d.Rope.Dim/2, "decoder.rope.sections %v do not add up to the %d frequencies", d.Rope.Sections, d.Rope.Dim/2)
	default:
		p.check(false, "decoder.positions is %q; known is %q", d.Positions, PositionsMRoPE)
	}
}

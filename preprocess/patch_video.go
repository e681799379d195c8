package preprocess

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"glimpse/manifest"
)

// patchFrame is one frame of a video for a model of patches: Qwen2VLVideoProcessor and Qwen3VLVideoProcessor. Frames are
// prepared one by one, with patches of one frame each, and JoinFrames makes the video's tensors of them.
type patchFrame struct {
	patches
	video         manifest.PatchVideo
	index, frames int
}

func newPatchFrame(p manifest.Picture, o Options) (Recipe, error) {
	base, err := newPatches(p, Options{})
	if err != nil {
		return nil, err
	}
	if p.Patches.Video == nil {
		return nil, errors.New("the model takes no videos")
	}
	r := patchFrame{base.(patches), *p.Patches.Video, o.Index, max(o.Frames, 1)}
	if r.index < 0 || r.index >= r.frames || r.frames > maxVideoFrames {
		return nil, fmt.Errorf("a video of %d frames has no frame %d; at most %d frames are taken", r.frames, r.index, maxVideoFrames)
	}
	if r.video.MinPixels < 1 || r.video.MaxPixels < r.video.MinPixels {
		return nil, fmt.Errorf("a video's pixels are bounded by %d and %d", r.video.MinPixels, r.video.MaxPixels)
	}
	return r, nil
}

// maxVideoFrames keeps the product of a video's sides within an int64 by far.
const maxVideoFrames = 1 << 14

// size is that of a resized frame. Where the bounds count all frames a longer video has smaller ones.
func (r patchFrame) size(width, height int) (w, h int, err error) {
	if !r.video.AllFrames {
		return SmartResize(width, height, r.Factor(), r.video.MinPixels, r.video.MaxPixels)
	}
	if err := checkSides(width, height); err != nil {
		return 0, 0, err
	}
	if f := r.Factor(); width < f || height < f {
		scale := max(float64(f)/float64(height), float64(f)/float64(width))
		width, height = int(float64(width)*scale), int(float64(height)*scale)
	}
	frames := int(math.RoundToEven(float64(r.frames)/float64(r.Temporal))) * r.Temporal
	return smartResize(width, height, r.Factor(), r.video.MinPixels, r.video.MaxPixels, max(frames, r.Temporal), r.frames)
}

// steps is how many patches follow each other in time.
func (r patchFrame) steps() int { return (r.frames + r.Temporal - 1) / r.Temporal }

// Layout gives the rows of the whole video to its first frame or, where each step in time is by itself in the prompt, the
// rows of a step to the first frame of it. The other frames have none.
func (r patchFrame) Layout(width, height int) (Layout, error) {
	w, h, err := r.size(width, height)
	if err != nil {
		return Layout{}, err
	}
	m := Grid{Columns: w / r.Factor(), Rows: h / r.Factor()}
	switch {
	case r.video.Apart && r.index%r.Temporal == 0:
		return Layout{Tiles: 1, Tokens: m.Tiles(), Map: m}, nil
	case !r.video.Apart && r.index == 0:
		if m.Tiles() > math.MaxInt32/r.steps() {
			return Layout{}, fmt.Errorf("a video of %d frames of %d×%d has too many tokens", r.frames, width, height)
		}
		return Layout{Tiles: 1, Tokens: m.Tiles() * r.steps(), Map: m, Steps: r.steps()}, nil
	}
	return Layout{Tiles: 1}, nil
}

// Prepare makes the patches of this frame alone: pixel_values [patches, 3·size·size].
func (r patchFrame) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	if err := begin(ctx, picture); err != nil {
		return nil, err
	}
	layout, err := r.Layout(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	w, h, err := r.size(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	one := r.patches
	one.Temporal = 1
	g := patchGrid{Patches: one.Patches, frames: 1, columns: w / r.Size, rows: h / r.Size}
	pixels := one.pixels(g, resized(canvasOf(picture), w, h, r.filter))
	return &Prepared{Tensors: map[string]*Array{"pixel_values": pixels}, Tiles: 1, Tokens: layout.Tokens, Width: picture.Width, Height: picture.Height, Alone: true}, nil
}

// JoinFrames makes the tensors of a video of its prepared frames, all of one size: the frames of a step lie in one patch,
// channel by channel. A last step that is not full repeats its last frame.
func JoinFrames(p manifest.Picture, frames []*Prepared) (*Prepared, error) {
	if p.Patches == nil || len(frames) == 0 {
		return nil, errors.New("join frames: there are none, or the recipe makes no patches")
	}
	w, h, err := frameSize(p, frames)
	if err != nil {
		return nil, err
	}
	t := p.Patches.Temporal
	steps := (len(frames) + t - 1) / t
	g := patchGrid{Patches: *p.Patches, frames: steps, columns: w / p.Patches.Size, rows: h / p.Patches.Size}
	plane, count := p.Patches.Size*p.Patches.Size, g.columns*g.rows
	values := make([]float32, g.patches()*3*t*plane)
	joined := &Prepared{Tiles: 1, Width: frames[0].Width, Height: frames[0].Height, Alone: true}
	for _, f := range frames {
		joined.Tokens += f.Tokens
	}
	for step := range steps {
		for k := range t {
			from := frames[min(step*t+k, len(frames)-1)].Tensors["pixel_values"]
			if !slices.Equal(from.Shape, []int64{int64(count), int64(3 * plane)}) {
				return nil, fmt.Errorf("join frames: a frame has patches of shape %v, and the first %v: frames of a video have one size", from.Shape, []int{count, 3 * plane})
			}
			for i := range count {
				for c := range 3 {
					at := ((step*count+i)*3+c)*t + k
					copy(values[at*plane:(at+1)*plane], from.Float32[(i*3+c)*plane:])
				}
			}
		}
	}
	joined.Tensors = g.tensors()
	joined.Tensors["pixel_values"] = &Array{Shape: []int64{int64(g.patches()), int64(3 * t * plane)}, Float32: values}
	return joined, nil
}

// frameSize is the size that the frames were resized to.
func frameSize(p manifest.Picture, frames []*Prepared) (w, h int, err error) {
	r, err := newPatchFrame(p, Options{Frame: true, Frames: len(frames)})
	if err != nil {
		return 0, 0, err
	}
	return r.(patchFrame).size(frames[0].Width, frames[0].Height)
}

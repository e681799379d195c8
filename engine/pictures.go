// From encoded pictures to the tensors of the picture recipe.

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"glimpse/manifest"
	"glimpse/preprocess"
)

// pictures decodes and prepares. It is safe for many goroutines, and bounds the pixels of all of them together.
type pictures struct {
	spec   manifest.Picture
	limits preprocess.Limits
	gate   chan struct{}       // a place for each picture being decoded
	budget *semaphore.Weighted // pixels of all pictures being decoded: as many as the largest single one may have
	most   int64               // of them

	soundTokens int // of a sound in the prompt
}

// whole reports whether all frames of a video are one run of the stages.
func (p *pictures) whole() bool { return p.spec.Video != nil && p.spec.Video.Whole }

func newPictures(m *manifest.Picture, limits preprocess.Limits) (*pictures, error) {
	if _, err := preprocess.NewRecipe(*m, preprocess.Options{}); err != nil {
		return nil, err
	}
	if m.Video != nil {
		if _, err := preprocess.NewRecipe(*m, preprocess.Options{LastFrame: true}); err != nil {
			return nil, err
		}
	}
	most := limits.MaxPixels
	if most == 0 {
		most = preprocess.DefaultMaxPixels
	}
	return &pictures{spec: *m, limits: limits, gate: make(chan struct{}, runtime.GOMAXPROCS(0)), budget: semaphore.NewWeighted(most), most: most}, nil
}

// medium is a picture of a prompt, or a video or a sound in it.
type medium struct {
	pictures []*Picture // one, or the frames
	video    bool
	seconds  []float64 // when each frame is shown; nil where that is not known
	sound    *Sound
}

// placed is a picture of a prompt, or a frame of a video in it, with what its size decides; or a sound.
type placed struct {
	*Picture
	sound         *Sound
	recipe        preprocess.Recipe
	options       preprocess.Options // that made the recipe
	number        int                // of the request's pictures and frames, from 0
	layout        preprocess.Layout
	width, height int
	frame         int     // of its video, from 1; 0 for a picture
	last          bool    // of its video
	seconds       float64 // when its step in time is shown
	interval      float64 // what a step adds to the time of positions
}

// place lays out the media of a prompt from their headers alone, frames one by one.
func (p *pictures) place(media []medium, o PictureOptions) ([]placed, error) {
	options := preprocess.Options{Tiling: o.Tiling, MaxTiles: o.MaxTiles, MinPixels: o.MinPixels, MaxPixels: o.MaxPixels}
	recipe, err := preprocess.NewRecipe(p.spec, options)
	if err != nil {
		return nil, badRequest("picture_options", CodeInvalid, err, "%v", err)
	}
	var list []placed
	total, pictures := 0, 0
	for _, m := range media {
		if m.sound != nil {
			list = append(list, placed{sound: m.sound, layout: preprocess.Layout{Tokens: p.soundTokens}})
			total += p.soundTokens
			continue
		}
		if p.whole() && p.spec.Video.MaxFrames > 0 && len(m.pictures) > p.spec.Video.MaxFrames {
			return nil, badRequest("messages", CodeInvalid, nil, "a video has %d frames and the model sees at most %d at once: choose fewer", len(m.pictures), p.spec.Video.MaxFrames)
		}
		for i, pic := range m.pictures {
			one := placed{Picture: pic, recipe: recipe, options: options, number: pictures}
			pictures++
			if m.video {
				one.frame, one.last = i+1, i == len(m.pictures)-1
				one.options = preprocess.Options{Frame: true, FirstFrame: i == 0, LastFrame: one.last, Index: i, Frames: len(m.pictures)}
				if one.recipe, err = preprocess.NewRecipe(p.spec, one.options); err != nil {
					return nil, badRequest("messages", CodeUnsupported, err, "%v", err)
				}
			}
			if err := one.layOut(); err != nil {
				return nil, pictureError(one.number, pic, err)
			}
			if p.spec.Patches != nil && m.video {
				if err := one.inTime(*p.spec.Patches, m, i, list); err != nil {
					return nil, pictureError(one.number, pic, err)
				}
			}
			if total += one.layout.Tokens; total > math.MaxInt32 {
				return nil, badRequest("messages", CodeContextLength, ErrContextTooLong, "the pictures take more than %d tokens", math.MaxInt32)
			}
			list = append(list, one)
		}
	}
	return list, nil
}

// layOut reads the picture's header.
func (p *placed) layOut() error {
	info, err := preprocess.Header(bytes.NewReader(p.Data))
	if err != nil {
		return err
	}
	p.width, p.height = info.Upright()
	if p.IgnoreEXIF {
		p.width, p.height = info.Width, info.Height
	}
	p.layout, err = p.recipe.Layout(p.width, p.height)
	return err
}

// prepare decodes the pictures and returns the recipe's tensors, concatenated along their leading dimension.
func (p *pictures) prepare(ctx context.Context, list []placed) (map[string]Array, error) {
	prepared, err := p.each(ctx, list)
	if err != nil {
		return nil, err
	}
	return concat(prepared)
}

// each decodes the pictures and returns the recipe's tensors of each. A picture whose pixels tell another story than its
// header is refused.
func (p *pictures) each(ctx context.Context, list []placed) ([]*preprocess.Prepared, error) {
	prepared := make([]*preprocess.Prepared, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(p.gate))
	for i, pic := range list {
		g.Go(func() error {
			pixels := min(int64(pic.width)*int64(pic.height), p.most) // one that has more is refused before it is decoded
			if err := p.budget.Acquire(gctx, pixels); err != nil {
				return err
			}
			defer p.budget.Release(pixels)
			select {
			case p.gate <- struct{}{}:
				defer func() { <-p.gate }()
			case <-gctx.Done():
				return gctx.Err()
			}
			out, err := p.one(gctx, pic)
			if err != nil {
				if gctx.Err() != nil {
					return gctx.Err()
				}
				return pictureError(pic.number, pic.Picture, err)
			}
			if out.Tokens != pic.layout.Tokens || out.Tiles != pic.layout.Tiles {
				return pictureError(pic.number, pic.Picture, fmt.Errorf("its header promised %d tiles and %d tokens, and its pixels make %d and %d",
					pic.layout.Tiles, pic.layout.Tokens, out.Tiles, out.Tokens))
			}
			prepared[i] = out
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return prepared, nil
}

func (p *pictures) one(ctx context.Context, pic placed) (*preprocess.Prepared, error) {
	rgb, err := preprocess.Decode(ctx, pic.Data, preprocess.DecodeOptions{Limits: p.limits, IgnoreEXIF: pic.IgnoreEXIF})
	if err != nil {
		return nil, err
	}
	return pic.recipe.Prepare(ctx, rgb)
}

// concat joins the tensors of several pictures along their leading dimension.
func concat(list []*preprocess.Prepared) (map[string]Array, error) {
	out := map[string]Array{}
	for i, p := range list {
		for name, t := range p.Tensors {
			if t.Float32 == nil || len(t.Shape) == 0 {
				return nil, fmt.Errorf("tensor %s of picture %d is no float32 array with a leading dimension", name, i)
			}
			have, ok := out[name]
			switch {
			case !ok && i > 0 || len(p.Tensors) != len(list[0].Tensors):
				return nil, fmt.Errorf("picture %d gives other tensors than picture 0", i)
			case !ok:
				out[name] = Array{Shape: slices.Clone(t.Shape), Data: t.Float32}
				continue
			case !slices.Equal(have.Shape[1:], t.Shape[1:]):
				return nil, fmt.Errorf("tensor %s of picture %d is %v, and those before it %v", name, i, t.Shape, have.Shape)
			}
			have.Shape[0] += t.Shape[0]
			have.Data = append(have.Data, t.Float32...)
			out[name] = have
		}
	}
	return out, nil
}

// pictureError is a picture that the caller must replace.
func pictureError(i int, pic *Picture, err error) error {
	name := pic.Source
	if name == "" {
		name = fmt.Sprintf("number %d", i+1)
	}
	return badRequest("image", CodeImage, errors.Join(ErrPicture, err), "picture %s: %v", name, err)
}

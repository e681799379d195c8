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

	"glimpse/manifest"
	"glimpse/preprocess"
)

// pictures decodes and prepares. It is safe for many goroutines, and bounds the pixels of all of them together.
type pictures struct {
	recipe preprocess.Recipe
	limits preprocess.Limits
	gate   chan struct{} // a place for each picture being decoded
}

func newPictures(m *manifest.Picture, limits preprocess.Limits) (*pictures, error) {
	recipe, err := preprocess.NewRecipe(*m)
	if err != nil {
		return nil, err
	}
	return &pictures{recipe: recipe, limits: limits, gate: make(chan struct{}, runtime.GOMAXPROCS(0))}, nil
}

// tokens returns how many rows of the prompt each picture takes, from the headers alone.
func (p *pictures) tokens(list []*Picture) ([]int, error) {
	counts := make([]int, len(list))
	total := 0
	for i, pic := range list {
		info, err := preprocess.Header(bytes.NewReader(pic.Data))
		if err != nil {
			return nil, pictureError(i, pic, err)
		}
		width, height := info.Upright()
		if pic.IgnoreEXIF {
			width, height = info.Width, info.Height
		}
		if counts[i], err = p.recipe.Tokens(width, height); err != nil {
			return nil, pictureError(i, pic, err)
		}
		if total += counts[i]; total > math.MaxInt32 {
			return nil, badRequest("messages", CodeContextLength, ErrContextTooLong, "the pictures take more than %d tokens", math.MaxInt32)
		}
	}
	return counts, nil
}

// prepare decodes the pictures and returns the recipe's tensors, concatenated along their leading dimension. counts are
// those of tokens: a picture whose pixels tell another story than its header is refused.
func (p *pictures) prepare(ctx context.Context, list []*Picture, counts []int) (map[string]Array, error) {
	prepared := make([]*preprocess.Prepared, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(p.gate))
	for i, pic := range list {
		g.Go(func() error {
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
				return pictureError(i, pic, err)
			}
			if out.Tokens != counts[i] {
				return pictureError(i, pic, fmt.Errorf("its header promised %d tokens and its pixels make %d", counts[i], out.Tokens))
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
	return concat(prepared)
}

func (p *pictures) one(ctx context.Context, pic *Picture) (*preprocess.Prepared, error) {
	rgb, err := preprocess.Decode(ctx, pic.Data, preprocess.DecodeOptions{Limits: p.limits, IgnoreEXIF: pic.IgnoreEXIF})
	if err != nil {
		return nil, err
	}
	return p.recipe.Prepare(ctx, rgb)
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

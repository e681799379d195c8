package preprocess

import (
	"context"
	"errors"
	"image"

	"glimpse/manifest"
)

// frame is one frame of a video, stretched to the tower's size, its features pooled: InternVLVideoProcessor;
// LlavaOnevisionVideoProcessor with apply_pooling and get_video_features of its model.
type frame struct {
	stretch
	side, pool int
	newline    bool
}

func newFrame(p manifest.Picture, o Options) (Recipe, error) {
	if p.Video == nil {
		return nil, errors.New("the model takes no videos")
	}
	s, err := newStretch(p)
	r := frame{stretch: s, side: p.PatchGrid, pool: max(p.Video.Pool, 1), newline: p.Video.EndNewline && o.LastFrame}
	problems := []error{err}
	if p.Video.Whole {
		if r.pool > 1 || p.Video.EndNewline {
			problems = append(problems, errors.New("video.whole is set, and video.pool or video.end_newline are for frames by themselves"))
		}
		if !o.FirstFrame {
			r.tokens = 0
		}
	}
	if r.pool > 1 {
		problems = append(problems, checkPatchGrid(p))
	}
	if r.newline && p.Newline == "" {
		problems = append(problems, errors.New("newline names no tensor, and video.end_newline asks for it"))
	}
	return r, errors.Join(problems...)
}

func (r frame) Layout(width, height int) (Layout, error) {
	l, err := r.stretch.Layout(width, height)
	if err != nil || r.pool == 1 && !r.newline {
		return l, err
	}
	side := 0
	if r.pool > 1 {
		side = (r.side + r.pool - 1) / r.pool
		l.Tokens = side * side
	}
	pooled := l.Tokens
	if r.newline {
		l.Tokens++
	}
	l.arrange = func() []FeatureRow {
		rows := make([]FeatureRow, 0, l.Tokens)
		if r.pool > 1 {
			m := featureMap{grid: Grid{1, 1}, side: r.side}
			rows = m.appendPart(rows, image.Rect(0, 0, r.side, r.side), side, side, false)
		} else {
			rows = appendTile(rows, 0, pooled)
		}
		if r.newline {
			rows = append(rows, FeatureRow{Newline: true})
		}
		return rows
	}
	return l, nil
}

func (r frame) Prepare(ctx context.Context, picture *RGB) (*Prepared, error) {
	out, err := r.stretch.Prepare(ctx, picture)
	if err != nil {
		return nil, err
	}
	layout, err := r.Layout(picture.Width, picture.Height)
	if err != nil {
		return nil, err
	}
	out.Tokens = layout.Tokens
	return out, nil
}

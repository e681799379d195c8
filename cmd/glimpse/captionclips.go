// The videos of caption: what the batch needs done to them.

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"glimpse/batch"
	"glimpse/batch/row"
	"glimpse/engine"
	"glimpse/manifest"
	av "glimpse/media"
)

// clipTool reads videos for a model; nil: it takes none.
func (a *app) clipTool(m *manifest.Manifest) func(context.Context, batch.ClipFile, batch.ClipChoice, bool, func(context.Context, int64) error) (*batch.Clip, error) {
	if m == nil || m.Picture == nil || m.Picture.Video == nil || m.Prompt.Template == "" {
		return nil
	}
	tool := &clipReader{av.New(av.Options{FFmpeg: a.global.FFmpeg}), m}
	return tool.read
}

type clipReader struct {
	reader *av.Reader
	model  *manifest.Manifest
}

func (c *clipReader) read(ctx context.Context, file batch.ClipFile, choice batch.ClipChoice, ignoreEXIF bool, hold func(context.Context, int64) error) (*batch.Clip, error) {
	in := av.Input{Path: file.Path, Data: file.Data, Source: file.Source}
	clip := &batch.Clip{}
	var err error
	heard := int64(0)
	if c.model.Audio != nil && hold != nil { // without hold it is for people, who look only
		if clip.Sound, err = c.sound(ctx, in); err != nil {
			return nil, clipProblem(err)
		}
		if clip.Sound != nil {
			heard = int64(len(clip.Sound.Data))
		}
	}
	chosen := av.Choice{Frames: choice.Frames, FPS: choice.FPS, Rate: choice.Rate}
	if hold != nil {
		chosen.Hold = func(ctx context.Context, bytes int64) error { return hold(ctx, bytes+heard) }
	}
	v, err := c.reader.Video(ctx, in, chosen.For(c.model.Picture, in))
	if err != nil {
		return nil, clipProblem(err)
	}
	for i, frame := range v.Frames {
		source := fmt.Sprintf("%s, frame %d", file.Source, v.Indices[i])
		clip.Frames = append(clip.Frames, engine.Picture{Data: frame, Source: source, IgnoreEXIF: ignoreEXIF})
	}
	clip.Seconds, clip.Width, clip.Height = v.Seconds, v.Width, v.Height
	clip.Seen = row.Clip{Frames: v.Indices, Total: v.Total, FPS: thousandths(v.FPS), Duration: thousandths(v.Duration), Sound: clip.Sound != nil}
	for _, s := range v.Seconds {
		clip.Seen.Seconds = append(clip.Seen.Seconds, thousandths(s))
	}
	return clip, nil
}

// sound is nil where there is none.
func (c *clipReader) sound(ctx context.Context, in av.Input) (*engine.Sound, error) {
	has, err := c.reader.HasSound(ctx, in)
	if err != nil || !has {
		return nil, err
	}
	wave, err := c.reader.Audio(ctx, in)
	if err != nil {
		return nil, err
	}
	return &engine.Sound{Data: wave, Source: in.Source}, nil
}

func thousandths(v float64) float64 { return math.Round(1000*v) / 1000 }

// clipProblem makes a video's error that of its row, and tells it from a machine that can read none.
func clipProblem(err error) error {
	var bad *av.Error
	switch {
	case errors.Is(err, av.ErrNoFFmpeg):
		return fmt.Errorf("%w: %w; --no-clips leaves videos out", batch.ErrTool, err)
	case errors.As(err, &bad):
		return &row.ItemError{Kind: string(bad.Kind), Message: strings.ReplaceAll(bad.What(), "\n", "; ")}
	}
	return err
}

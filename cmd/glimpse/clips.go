// Videos and sounds of a question, from files.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"glimpse/engine"
	"glimpse/manifest"
	av "glimpse/media" // tests have a media of their own

	"github.com/spf13/pflag"
)

// ClipOptions are the flags that say what is taken of videos.
type ClipOptions struct {
	Frames    int
	FPS       float64
	FrameRate float64
}

// AddFlags adds the flags.
func (o *ClipOptions) AddFlags(f *pflag.FlagSet) {
	f.Var(&count{&o.Frames, 0}, "frames", "frames of a video, evenly from its first; 0: as many as the model was released with, else 16 of a file and all of a folder")
	f.Float64Var(&o.FPS, "fps", 0, "frames of a video a second, instead of --frames")
	f.Float64Var(&o.FrameRate, "frame-rate", 0, "how many frames of a folder are a second; 0: not known, and frames then have no times")
}

func (o *ClipOptions) check() error {
	switch {
	case o.Frames > 0 && o.FPS != 0:
		return badInputf("--frames and --fps exclude each other")
	case !within(o.FPS, 0, 1000):
		return badInputf("--fps %v: it must lie in 0..1000", o.FPS)
	case !within(o.FrameRate, 0, 1000):
		return badInputf("--frame-rate %v: it must lie in 0..1000", o.FrameRate)
	}
	return nil
}

// clips reads videos and sounds for one model.
type clips struct {
	reader  *av.Reader
	options ClipOptions
	model   *manifest.Manifest
	noEXIF  bool
}

// newClips reads with FFmpeg as the global flags name it.
func (a *app) newClips(m *manifest.Manifest, o ClipOptions, noEXIF bool) *clips {
	return &clips{av.New(av.Options{FFmpeg: a.global.FFmpeg}), o, m, noEXIF}
}

func (c *clips) video(ctx context.Context, in av.Input) (engine.Part, error) {
	part := engine.Part{Type: engine.PartVideo}
	if c.model.Picture == nil || c.model.Picture.Video == nil {
		return part, fmt.Errorf("this model (%s) takes no videos", c.model.Family)
	}
	choice := av.Choice{Frames: c.options.Frames, FPS: c.options.FPS, Rate: c.options.FrameRate}
	v, err := c.reader.Video(ctx, in, choice.For(c.model.Picture, in))
	if err != nil {
		return part, err
	}
	for i, frame := range v.Frames {
		part.Frames = append(part.Frames, engine.Picture{Data: frame, Source: v.Names[i], IgnoreEXIF: c.noEXIF})
	}
	part.Seconds = v.Seconds
	return part, nil
}

func (c *clips) sound(ctx context.Context, in av.Input) (engine.Part, error) {
	part := engine.Part{Type: engine.PartAudio}
	if c.model.Audio == nil {
		return part, fmt.Errorf("this model (%s) takes no sound", c.model.Family)
	}
	data, err := c.reader.Audio(ctx, in)
	part.Sound = &engine.Sound{Data: data, Source: firstOf(in.Source, in.Path)}
	return part, err
}

// read reads the files of --video and --audio; all that cannot be read are named.
func (c *clips) read(ctx context.Context, videos, audios []string) ([]engine.Part, error) {
	var parts []engine.Part
	var wrong []error
	for _, kind := range []struct {
		flag  string
		paths []string
		read  func(context.Context, av.Input) (engine.Part, error)
	}{{"--video", videos, c.video}, {"--audio", audios, c.sound}} {
		for _, path := range kind.paths {
			part, err := kind.read(ctx, av.Input{Path: path})
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", kind.flag, err))
				continue
			}
			parts = append(parts, part)
		}
	}
	return parts, badInput(errors.Join(wrong...))
}

// part reads a video_url, audio_url or input_audio part of a messages file.
func (c *clips) part(ctx context.Context, p *part) (engine.Part, error) {
	if c == nil {
		return engine.Part{}, errors.New("only pictures and text can be read here")
	}
	if p.Type == "input_audio" {
		var input struct {
			Data   string `json:"data"`
			Format string `json:"format"`
		}
		if err := strictJSON(p.InputAudio, &input); err != nil {
			return engine.Part{}, fmt.Errorf(`it must be {"data": base64, "format": "wav"}: %w`, err)
		}
		data, err := dataURL(";base64," + input.Data)
		if err != nil {
			return engine.Part{}, err
		}
		return c.sound(ctx, av.Input{Data: data, Source: "input_audio"})
	}
	raw, read := p.VideoURL, c.video
	if p.Type == "audio_url" {
		raw, read = p.AudioURL, c.sound
	}
	in, err := clipURL(raw)
	if err != nil {
		return engine.Part{}, err
	}
	return read(ctx, in)
}

// clipURL takes {"url": …} or the URL itself: a data: URL, a file:// URL or a path.
func clipURL(raw json.RawMessage) (av.Input, error) {
	var object struct {
		URL string `json:"url"`
	}
	if json.Unmarshal(raw, &object.URL) != nil {
		if err := strictJSON(raw, &object); err != nil {
			return av.Input{}, fmt.Errorf("it must be {\"url\": …}: %w", err)
		}
	}
	scheme, rest, found := strings.Cut(object.URL, ":")
	switch {
	case found && strings.EqualFold(scheme, "data"):
		data, err := dataURL(rest)
		return av.Input{Data: data, Source: "data: URL"}, err
	case found && strings.EqualFold(scheme, "file"):
		path, err := filePath(object.URL)
		return av.Input{Path: path}, err
	case object.URL == "":
		return av.Input{}, errors.New("url is missing")
	case found && strings.HasPrefix(rest, "//"):
		return av.Input{}, fmt.Errorf("%s: ask fetches nothing from the network; download the file first", object.URL)
	}
	return av.Input{Path: object.URL}, nil
}

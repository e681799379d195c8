// Videos and sounds of a request. Files come as pictures do; frames are chosen as the model was released.

package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/trace"

	"glimpse/engine"
	"glimpse/media"
)

// clipURL is a video_url or audio_url.
type clipURL struct {
	URL string `json:"url" required:"true" doc:"data:video/…;base64,… or data:audio/…;base64,…; http(s) and file URLs as the server allows."`
}

// inputAudio is OpenAI's input_audio.
type inputAudio struct {
	Data   string `json:"data" required:"true" doc:"Base64."`
	Format string `json:"format" required:"true" enum:"wav|mp3|flac|ogg|aac|m4a|webm" doc:"What the data is; the data itself decides."`
}

// video gets a video by URL and chooses its frames.
func (s *Server) video(ctx context.Context, m *served, param, address string) (engine.Part, error) {
	part := engine.Part{Type: engine.PartVideo}
	pic := m.Manifest().Picture
	if pic == nil || pic.Video == nil {
		return part, mediaError(param, "the model %s takes no videos", m.name)
	}
	data, source, err := s.mediaOf(ctx, param, address, "video/", "image/gif", "image/webp", "application/octet-stream")
	if err != nil {
		return part, err
	}
	in := media.Input{Data: data, Source: source}
	choice := media.Choice{}.For(pic, in)
	choice.Hold = func(ctx context.Context, n int64) error { return s.hold(ctx, param, n) }
	var v *media.Video
	err = s.step(ctx, "media_decode", func(ctx context.Context, _ trace.Span) (err error) {
		v, err = s.clips.Video(ctx, in, choice)
		return err
	})
	if err != nil {
		return part, clipError(ctx, param, err)
	}
	for i, frame := range v.Frames {
		part.Frames = append(part.Frames, engine.Picture{Data: frame, Source: v.Names[i]})
	}
	part.Seconds = v.Seconds
	return part, nil
}

// audio gets a sound by URL, or the sound of a video.
func (s *Server) audio(ctx context.Context, m *served, param, address string) (engine.Part, error) {
	if m.Manifest().Audio == nil {
		return engine.Part{}, mediaError(param, "the model %s takes no sound", m.name)
	}
	data, source, err := s.mediaOf(ctx, param, address, "audio/", "video/", "application/octet-stream")
	if err != nil {
		return engine.Part{}, err
	}
	return s.wave(ctx, param, source, data)
}

// inputAudio takes a sound that comes in the request.
func (s *Server) inputAudio(ctx context.Context, m *served, param string, in inputAudio) (engine.Part, error) {
	if m.Manifest().Audio == nil {
		return engine.Part{}, mediaError(param, "the model %s takes no sound", m.name)
	}
	if int64(base64.StdEncoding.DecodedLen(len(in.Data))) > s.limits.MediaBytes+2 {
		return engine.Part{}, mediaTooLarge(param, s.limits.MediaBytes)
	}
	data, err := base64.StdEncoding.DecodeString(in.Data)
	if err != nil {
		return engine.Part{}, mediaError(param, "its data is not base64: %v", err)
	}
	return s.wave(ctx, param, param, data)
}

func (s *Server) wave(ctx context.Context, param, source string, data []byte) (engine.Part, error) {
	var wave []byte
	err := s.step(ctx, "media_decode", func(ctx context.Context, _ trace.Span) (err error) {
		wave, err = s.clips.Audio(ctx, media.Input{Data: data, Source: source})
		return err
	})
	if err != nil {
		return engine.Part{}, clipError(ctx, param, err)
	}
	if err := s.hold(ctx, param, int64(len(wave))); err != nil {
		return engine.Part{}, err
	}
	return engine.Part{Type: engine.PartAudio, Sound: &engine.Sound{Data: wave, Source: source}}, nil
}

// clipError tells what is wrong with a file. What a child process complains about is for the log: it may name files of
// this machine.
func clipError(ctx context.Context, param string, err error) error {
	var bad *media.Error
	var own *Error
	switch {
	case errors.As(err, &own):
		return own
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, media.ErrNoFFmpeg):
		refused := mediaError(param, "this server has no FFmpeg: it reads animated GIF and WebP, and WAV")
		refused.cause = err
		return refused
	case errors.As(err, &bad):
		refused := mediaError(param, "%s", bad.Detail)
		refused.cause = err
		return refused
	}
	return fmt.Errorf("read %s: %w", param, err)
}

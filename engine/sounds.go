// Sounds of a prompt: WAV files through the audio recipe and its graphs, to rows beside those of pictures.

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"glimpse/manifest"
	"glimpse/preprocess"
)

// ArrayFbank is the tensor that the audio recipe makes, [clips, 1, mel_bins, frames]; a Trace may be given another.
const ArrayFbank = "fbank"

// Sound is an encoded sound: WAV. Other formats go through package media first.
type Sound struct {
	Data   []byte
	Source string // file name or URL, shown in errors
}

// sounds prepares sounds and runs their graphs. It is safe for many goroutines.
type sounds struct {
	spec   manifest.Audio
	recipe *preprocess.Fbank
	stages *stages
}

// openSounds loads what manifest.Audio describes.
func openSounds(ctx context.Context, folder string, m *manifest.Manifest, opts Options) (*sounds, error) {
	recipe, err := preprocess.NewFbank(*m.Audio)
	if err != nil {
		return nil, err
	}
	p := &stages{runtime: opts.Runtime, features: m.Audio.Features, gate: make(chan struct{}, 1)}
	if p, err = p.load(ctx, folder, m.Audio.Stages, m, opts); err != nil {
		return nil, fmt.Errorf("audio: %w", err)
	}
	return &sounds{*m.Audio, recipe, p}, nil
}

// sound checks part j of message i, a sound.
func (p *prompter) sound(part Part, param string, j, i int) (medium, error) {
	switch {
	case p.prompt.AudioPlaceholder == "":
		return medium{}, badRequest(param, CodeUnsupported, ErrNoSounds, "part %d of message %d is a sound, and the model takes none", j, i)
	case part.Sound == nil:
		return medium{}, badRequest(param, CodeInvalid, nil, "part %d of message %d is a sound without data", j, i)
	}
	return medium{sound: part.Sound}, nil
}

// prepareSounds makes the tensors of each sound. A given tensor takes the place of the recipe's.
func (e *Engine) prepareSounds(ctx context.Context, p *Prepared, given *Array) error {
	if given != nil && len(p.sounds) != 1 {
		return fmt.Errorf("a tensor %s was given for a request with %d sounds; it is that of one", ArrayFbank, len(p.sounds))
	}
	for i, s := range p.sounds {
		name := s.Source
		if name == "" {
			name = fmt.Sprintf("number %d", i+1)
		}
		decoded, err := preprocess.DecodeWAV(s.Data, preprocess.SoundLimits{})
		if err != nil {
			return badRequest("audio", CodeAudio, errors.Join(ErrSound, err), "sound %s: %v", name, err)
		}
		made, err := e.sounds.recipe.Prepare(ctx, decoded)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return badRequest("audio", CodeAudio, errors.Join(ErrSound, err), "sound %s: %v", name, err)
		}
		tensors := map[string]Array{}
		for name, t := range made {
			tensors[name] = Array{Shape: t.Shape, Data: t.Float32}
		}
		if given != nil {
			tensors[ArrayFbank] = *given
		}
		p.heard = append(p.heard, tensors)
	}
	return nil
}

// listen runs the audio graphs on each sound and puts its rows between those of pictures, as the prompt has them.
func (e *Engine) listen(ctx context.Context, p *Prepared, seen *stageResult, keep keeping) error {
	heard, err := e.sounds.stages.runAlone(ctx, p.heard, p.heard[0], keep)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("run the audio graphs: %w", err)
	}
	hidden, rows := e.manifest.Decoder.HiddenSize, e.sounds.spec.Tokens
	if heard.width != hidden || len(heard.features) != len(p.sounds)*rows*hidden {
		return fmt.Errorf("the audio graphs made %d values in rows of %d and the prompt has %d sounds of %d rows of %d: recipe and graphs do not belong together",
			len(heard.features), heard.width, len(p.sounds), rows, hidden)
	}
	out := make([]float32, 0, len(seen.features)+len(heard.features))
	pictures, sounds := seen.features, heard.features
	for _, one := range p.order {
		from := &pictures
		if one.sound != nil {
			from = &sounds
		}
		n := one.layout.Tokens * hidden
		out = append(out, (*from)[:n]...)
		*from = (*from)[n:]
	}
	seen.features, seen.width = out, hidden
	seen.first, seen.rest = seen.first+heard.first, seen.rest+heard.rest
	if heard.arrays != nil {
		if seen.arrays == nil {
			seen.arrays = map[string]Array{}
		}
		maps.Copy(seen.arrays, heard.arrays)
	}
	return nil
}

// split tells sounds from pictures and the frames of videos.
func (p *Prepared) split() {
	for _, one := range p.order {
		if one.sound != nil {
			p.sounds = append(p.sounds, one.sound)
			p.AudioTokens += one.layout.Tokens
			continue
		}
		p.placed = append(p.placed, one)
		p.ImageTokens += one.layout.Tokens
	}
	if len(p.sounds) == 0 {
		p.order = nil
	}
}

// takeFbank splits a given tensor of sound off those of pictures.
func takeFbank(given map[string]Array) (pictures map[string]Array, sound *Array) {
	own, ok := given[ArrayFbank]
	if !ok {
		return given, nil
	}
	pictures = maps.Clone(given)
	if delete(pictures, ArrayFbank); len(pictures) == 0 {
		pictures = nil
	}
	return pictures, &own
}

// Close closes the graphs. It is idempotent.
func (s *sounds) Close() error {
	if s == nil {
		return nil
	}
	return s.stages.Close()
}

// join appends a tensor's rows to another of the same rows.
func (a Array) join(more Array) Array {
	a.Shape = slices.Clone(a.Shape)
	a.Shape[0] += more.Shape[0]
	a.Data, a.Int64 = append(a.Data, more.Data...), append(a.Int64, more.Int64...)
	return a
}

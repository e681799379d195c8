// A golden case as a request: its messages or prompt, with pictures and frames read from the media folder.

package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/engine"
	"glimpse/preprocess"
)

// pictureOptions turns the options that a case gives upstream's processor into those of a request. An option that is not
// known here is an error: without it the case would be another.
func pictureOptions(kwargs json.RawMessage) (o engine.PictureOptions, err error) {
	if raw := bytes.TrimSpace(kwargs); len(raw) == 0 || string(raw) == "null" {
		return o, nil
	}
	var known struct {
		Images struct {
			CropToPatches *bool `json:"crop_to_patches"`
			MaxPatches    int   `json:"max_patches"`
			Splitting     *bool `json:"do_image_splitting"`
		} `json:"images_kwargs"`
		Videos struct {
			Metadata json.RawMessage `json:"video_metadata"` // clipTimes reads it
			Sample   *bool           `json:"do_sample_frames"`
		} `json:"videos_kwargs"`
		Text struct {
			// false says that the template's own BOS is not to get a second one before it, which no prompt gets here.
			Special *bool `json:"add_special_tokens"`
		} `json:"text_kwargs"`
	}
	decoder := json.NewDecoder(bytes.NewReader(kwargs))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&known); err != nil {
		return o, fmt.Errorf("options of the processor that this version does not know: %w", err)
	}
	if special := known.Text.Special; special != nil && *special {
		return o, errors.New("add_special_tokens is true: special tokens before those of a template are not verified by this version")
	}
	if sample := known.Videos.Sample; sample != nil && *sample {
		return o, errors.New("do_sample_frames is true: which frames are chosen is not verified by this version")
	}
	for _, on := range []*bool{known.Images.CropToPatches, known.Images.Splitting} {
		if on != nil && !*on {
			o.Tiling = engine.TilingOff
		}
	}
	o.MaxTiles = known.Images.MaxPatches
	return o, nil
}

// request makes the case's request.
func (k *checker) request(ctx context.Context) (engine.Request, error) {
	req := engine.Request{MaxTokens: max(1, len(k.c.Expected.GeneratedIDs))}
	var err error
	if req.PictureOptions, err = pictureOptions(k.c.ProcessorKwargs); err != nil {
		return req, err
	}
	pictures, err := k.read(k.c.Images)
	if err != nil {
		return req, err
	}
	if len(k.c.Messages) == 0 {
		req.Raw, req.Pictures = true, pictures
		if req.Videos, err = k.videos(ctx); err != nil {
			return req, err
		}
		if k.c.Prompt != nil { // null: the pictures alone
			req.Prompt = *k.c.Prompt
		}
		return req, nil
	}
	media := map[string][]engine.Part{}
	for i := range pictures {
		media[engine.PartImage] = append(media[engine.PartImage], engine.Part{Type: engine.PartImage, Picture: &pictures[i]})
	}
	if media[engine.PartVideo], err = k.videos(ctx); err != nil {
		return req, err
	}
	audios := k.c.Audios
	if k.c.AudioFile != "" {
		audios = append(slices.Clone(audios), k.c.AudioFile)
	}
	for _, name := range audios {
		sound, err := k.sound(ctx, name)
		if err != nil {
			return req, err
		}
		media[engine.PartAudio] = append(media[engine.PartAudio], sound)
	}
	return req, k.messages(&req, media)
}

// videos reads the case's videos, with the times of their frames where the case gives them.
func (k *checker) videos(ctx context.Context) ([]engine.Part, error) {
	times, err := clipTimes(k.c.ProcessorKwargs)
	if err != nil {
		return nil, err
	}
	var parts []engine.Part
	for i, name := range k.c.Videos {
		read := k.video
		if k.isFile(name) {
			read = k.clip
		}
		video, err := read(ctx, name)
		if err != nil {
			return nil, err
		}
		if i < len(times) {
			if len(times[i]) != len(video.Frames) {
				return nil, fmt.Errorf("video %s has %d frames and the case times of %d", name, len(video.Frames), len(times[i]))
			}
			video.Seconds = times[i]
		}
		parts = append(parts, video)
	}
	return parts, nil
}

// clipTimes are when the frames of each video are shown, in seconds; nil where the case does not say.
func clipTimes(kwargs json.RawMessage) ([][]float64, error) {
	if len(kwargs) == 0 {
		return nil, nil
	}
	var known struct {
		Videos struct {
			Metadata []struct {
				FPS     float64   `json:"fps"`
				Indices []float64 `json:"frames_indices"`
			} `json:"video_metadata"`
		} `json:"videos_kwargs"`
	}
	if err := json.Unmarshal(kwargs, &known); err != nil {
		return nil, fmt.Errorf("video_metadata: %w", err)
	}
	var times [][]float64
	for _, v := range known.Videos.Metadata {
		if !(v.FPS > 0) {
			return nil, fmt.Errorf("video_metadata: fps is %v", v.FPS)
		}
		seconds := make([]float64, len(v.Indices))
		for i, n := range v.Indices {
			seconds[i] = n / v.FPS
		}
		times = append(times, seconds)
	}
	return times, nil
}

// messages fills in the case's messages. Pictures, videos and sounds are used in their order, and all of them.
func (k *checker) messages(req *engine.Request, media map[string][]engine.Part) error {
	list, err := k.writtenPictures()
	if err != nil {
		return err
	}
	used := map[string]int{}
	for _, m := range list {
		parts, err := m.Parts()
		if err != nil {
			return err
		}
		out := engine.Message{Role: m.Role}
		for _, p := range parts {
			switch p.Type {
			case "text":
				out.Content = append(out.Content, engine.Part{Type: engine.PartText, Text: p.Text})
			case "image", "video", "audio": // as the engine's types are called
				if used[p.Type] == len(media[p.Type]) {
					return fmt.Errorf("the messages have more parts of type %s than the %d of the case", p.Type, len(media[p.Type]))
				}
				out.Content = append(out.Content, media[p.Type][used[p.Type]])
				used[p.Type]++
			default:
				return fmt.Errorf("a message has a part of type %q, which this version does not take", p.Type)
			}
		}
		req.Messages = append(req.Messages, out)
	}
	for kind, parts := range media {
		if used[kind] != len(parts) {
			return fmt.Errorf("the messages have %d parts of type %s, and the case %d", used[kind], kind, len(parts))
		}
	}
	return nil
}

// read reads pictures of the media folder.
func (k *checker) read(names []string) ([]engine.Picture, error) {
	pictures := make([]engine.Picture, len(names))
	for i, name := range names {
		path := k.set.Media(name)
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("media: %w", err)
		}
		if info.Size() > preprocess.DefaultMaxBytes {
			return nil, fmt.Errorf("media %s: %d bytes", path, info.Size())
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("media: %w", err)
		}
		pictures[i] = engine.Picture{Data: data, Source: name, IgnoreEXIF: k.c.Options.EXIF != nil && !*k.c.Options.EXIF}
	}
	return pictures, nil
}

// video reads a folder of frames, in the order of their names.
func (k *checker) video(_ context.Context, name string) (engine.Part, error) {
	part := engine.Part{Type: engine.PartVideo}
	entries, err := os.ReadDir(k.set.Media(name))
	if err != nil {
		return part, fmt.Errorf("media: a video is a folder of frames: %w", err)
	}
	var frames []string
	for _, e := range entries {
		if ext := strings.ToLower(filepath.Ext(e.Name())); slices.Contains([]string{".png", ".jpg", ".jpeg"}, ext) {
			frames = append(frames, filepath.Join(name, e.Name()))
		}
	}
	if len(frames) == 0 {
		return part, fmt.Errorf("media: video %s has no frames", name)
	}
	k.frames = append(k.frames, frames...)
	part.Frames, err = k.read(frames)
	return part, err
}

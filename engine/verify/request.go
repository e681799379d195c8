// A golden case as a request: its messages or prompt, with pictures and frames read from the media folder.

package verify

import (
	"bytes"
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
	for _, on := range []*bool{known.Images.CropToPatches, known.Images.Splitting} {
		if on != nil && !*on {
			o.Tiling = engine.TilingOff
		}
	}
	o.MaxTiles = known.Images.MaxPatches
	return o, nil
}

// request makes the case's request.
func (k *checker) request() (engine.Request, error) {
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
		if len(k.c.Videos) > 0 {
			return req, errors.New("the case has videos and no messages, which this version does not run")
		}
		req.Raw, req.Pictures = true, pictures
		if k.c.Prompt != nil { // null: the pictures alone
			req.Prompt = *k.c.Prompt
		}
		return req, nil
	}
	videos := make([][]engine.Picture, len(k.c.Videos))
	for i, name := range k.c.Videos {
		if videos[i], err = k.video(name); err != nil {
			return req, err
		}
	}
	return req, k.messages(&req, pictures, videos)
}

// messages fills in the case's messages. Pictures and videos are used in their order, and all of them.
func (k *checker) messages(req *engine.Request, pictures []engine.Picture, videos [][]engine.Picture) error {
	images, clips := 0, 0
	list, err := k.writtenPictures()
	if err != nil {
		return err
	}
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
			case "image":
				if images == len(pictures) {
					return fmt.Errorf("the messages have more images than the %d of the case", len(pictures))
				}
				out.Content = append(out.Content, engine.Part{Type: engine.PartImage, Picture: &pictures[images]})
				images++
			case "video":
				if clips == len(videos) {
					return fmt.Errorf("the messages have more videos than the %d of the case", len(videos))
				}
				out.Content = append(out.Content, engine.Part{Type: engine.PartVideo, Frames: videos[clips]})
				clips++
			default:
				return fmt.Errorf("a message has a part of type %q, which this version does not take", p.Type)
			}
		}
		req.Messages = append(req.Messages, out)
	}
	if images != len(pictures) || clips != len(videos) {
		return fmt.Errorf("the messages have %d images and %d videos, and the case %d and %d", images, clips, len(pictures), len(videos))
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
func (k *checker) video(name string) ([]engine.Picture, error) {
	entries, err := os.ReadDir(k.set.Media(name))
	if err != nil {
		return nil, fmt.Errorf("media: a video is a folder of frames: %w", err)
	}
	var frames []string
	for _, e := range entries {
		if ext := strings.ToLower(filepath.Ext(e.Name())); slices.Contains([]string{".png", ".jpg", ".jpeg"}, ext) {
			frames = append(frames, filepath.Join(name, e.Name()))
		}
	}
	if len(frames) == 0 {
		return nil, fmt.Errorf("media: video %s has no frames", name)
	}
	k.frames = append(k.frames, frames...)
	return k.read(frames)
}

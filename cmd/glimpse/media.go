// Pictures and conversations from files.

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"glimpse/engine"
	"glimpse/preprocess"
)

// maxMessages bounds a --messages file; pictures in it are base64.
const maxMessages = 256 << 20

func readPictures(paths []string, noEXIF bool) ([]engine.Picture, error) {
	var pictures []engine.Picture
	var wrong []error
	for _, path := range paths {
		data, err := readMedia(path)
		if err != nil {
			wrong = append(wrong, fmt.Errorf("--image: %w", err))
			continue
		}
		pictures = append(pictures, engine.Picture{Data: data, Source: path, IgnoreEXIF: noEXIF})
	}
	return pictures, badInput(errors.Join(wrong...))
}

// readMedia reads a picture's bytes, as many as a picture may have.
func readMedia(path string) ([]byte, error) {
	return readBounded(path, preprocess.DefaultMaxBytes)
}

// readBounded reads a regular file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, nil
}

// readMessages reads an OpenAI `messages` array.
func readMessages(ctx context.Context, path string, noEXIF bool, clips *clips) ([]engine.Message, error) {
	raw, err := readBounded(path, maxMessages)
	if err != nil {
		return nil, err
	}
	return parseMessages(ctx, raw, noEXIF, clips)
}

// message and part are the fields of OpenAI's chat format that mean something here. Others are refused by name.
type message struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"` // text, or parts
}

type part struct {
	Type       string          `json:"type"`
	Text       *string         `json:"text"`
	ImageURL   json.RawMessage `json:"image_url"`
	VideoURL   json.RawMessage `json:"video_url"`
	AudioURL   json.RawMessage `json:"audio_url"`
	InputAudio json.RawMessage `json:"input_audio"`
}

func parseMessages(ctx context.Context, raw []byte, noEXIF bool, clips *clips) ([]engine.Message, error) {
	var list []message
	if err := strictJSON(raw, &list); err != nil {
		return nil, fmt.Errorf("not an OpenAI messages array: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("no messages in it")
	}
	messages := make([]engine.Message, len(list))
	var wrong []error
	for i, m := range list {
		content, err := parseContent(ctx, m.Content, noEXIF, clips)
		if err == nil && m.Role == "" {
			err = errors.New("role is missing")
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("messages[%d]: %w", i, err))
		}
		messages[i] = engine.Message{Role: m.Role, Content: content}
	}
	return messages, errors.Join(wrong...)
}

func parseContent(ctx context.Context, raw json.RawMessage, noEXIF bool, clips *clips) ([]engine.Part, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil && string(raw) != "null" {
		return []engine.Part{{Type: engine.PartText, Text: text}}, nil
	}
	var list []part
	if err := strictJSON(raw, &list); err != nil {
		return nil, fmt.Errorf("content is neither a text nor a list of parts: %w", err)
	}
	parts := make([]engine.Part, len(list))
	for i, p := range list {
		var err error
		if parts[i], err = p.read(ctx, noEXIF, clips); err != nil {
			return nil, fmt.Errorf("content[%d]: %w", i, err)
		}
	}
	return parts, nil
}

func (p *part) read(ctx context.Context, noEXIF bool, clips *clips) (engine.Part, error) {
	switch p.Type {
	case "text":
		if p.Text == nil {
			return engine.Part{}, errors.New("text is missing")
		}
		return engine.Part{Type: engine.PartText, Text: *p.Text}, nil
	case "image_url":
		picture, err := readImageURL(p.ImageURL, noEXIF)
		if err != nil {
			return engine.Part{}, fmt.Errorf("image_url: %w", err)
		}
		return engine.Part{Type: engine.PartImage, Picture: picture}, nil
	case "video_url", "audio_url", "input_audio":
		out, err := clips.part(ctx, p)
		if err != nil {
			return engine.Part{}, fmt.Errorf("%s: %w", p.Type, err)
		}
		return out, nil
	}
	return engine.Part{}, fmt.Errorf("type %q is not known; known are text, image_url, video_url, audio_url and input_audio", p.Type)
}

// readImageURL takes OpenAI's {"url": …} or the URL itself. The URL is a data: URL, a file:// URL or a path, which is
// relative to the working directory.
func readImageURL(raw json.RawMessage, noEXIF bool) (*engine.Picture, error) {
	var object struct {
		URL    string `json:"url"`
		Detail string `json:"detail"`
	}
	if json.Unmarshal(raw, &object.URL) != nil {
		if err := strictJSON(raw, &object); err != nil {
			return nil, fmt.Errorf("it must be {\"url\": …}: %w", err)
		}
	}
	if d := object.Detail; d != "" && d != "auto" {
		return nil, fmt.Errorf("detail %q: this model has one resolution; leave it out or say auto", d)
	}
	data, source, err := readURL(object.URL)
	if err != nil {
		return nil, err
	}
	return &engine.Picture{Data: data, Source: source, IgnoreEXIF: noEXIF}, nil
}

// readURL returns the bytes and what to call them in errors.
func readURL(address string) (data []byte, source string, err error) {
	scheme, rest, found := strings.Cut(address, ":")
	switch {
	case address == "":
		return nil, "", errors.New("url is missing")
	case found && strings.EqualFold(scheme, "data"):
		data, err := dataURL(rest)
		return data, "data: URL", err
	case found && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")) && strings.HasPrefix(rest, "//"):
		return nil, "", fmt.Errorf("%s: ask fetches nothing from the network; download the file first", address)
	case found && strings.EqualFold(scheme, "file"):
		path, err := filePath(address)
		if err != nil {
			return nil, "", err
		}
		data, err := readMedia(path)
		return data, path, err
	}
	data, err = readMedia(address)
	return data, address, err
}

func filePath(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	if u.Host != "" && u.Host != "localhost" {
		return "", fmt.Errorf("%s: a file:// URL has three slashes and names a file of this machine", address)
	}
	if u.Path == "" {
		return "", fmt.Errorf("%s: no path in it", address)
	}
	return u.Path, nil
}

// dataURL decodes what follows "data:".
func dataURL(rest string) ([]byte, error) {
	head, body, found := strings.Cut(rest, ",")
	if !found || !strings.HasSuffix(strings.ToLower(head), ";base64") {
		return nil, errors.New("data: URL is not base64 (data:image/png;base64,…)")
	}
	if base64.StdEncoding.DecodedLen(len(body)) > preprocess.DefaultMaxBytes+3 {
		return nil, fmt.Errorf("data: URL holds more than %d bytes", preprocess.DefaultMaxBytes)
	}
	data, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		return nil, fmt.Errorf("data: URL: %w", err)
	}
	return data, nil
}

// strictJSON decodes one value, refuses unknown fields and anything after it.
func strictJSON(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}

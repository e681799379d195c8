// Pictures and videos in the text of a prompt: which placeholder is whose, and what text takes its place.

package engine

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"glimpse/preprocess"
	"glimpse/tokenizer"
)

// maxFrames bounds the frames of one video, before any is looked at: the context bounds them too, but later.
const maxFrames = 4096

// video checks part j of message i, a video.
func (p *prompter) video(part Part, param string, j, i int) (medium, error) {
	switch {
	case p.prompt.VideoPlaceholder == "":
		return medium{}, badRequest(param, CodeUnsupported, nil, "part %d of message %d is a video, and the model takes none", j, i)
	case len(part.Frames) == 0:
		return medium{}, badRequest(param, CodeInvalid, nil, "part %d of message %d is a video without frames", j, i)
	case len(part.Frames) > maxFrames:
		return medium{}, badRequest(param, CodeInvalid, nil, "part %d of message %d is a video of %d frames; at most %d are taken", j, i, len(part.Frames), maxFrames)
	}
	if len(part.Seconds) > 0 && len(part.Seconds) != len(part.Frames) {
		return medium{}, badRequest(param, CodeInvalid, nil, "part %d of message %d is a video of %d frames, with times of %d", j, i, len(part.Frames), len(part.Seconds))
	}
	m := medium{video: true, seconds: part.Seconds}
	for k := range part.Frames {
		m.pictures = append(m.pictures, &part.Frames[k])
	}
	return m, nil
}

// placeholder is what stands for a part in a prompt; empty where the model takes none of the kind.
func (p *prompter) placeholder(partType string) string {
	switch partType {
	case PartVideo:
		return p.prompt.VideoPlaceholder
	case PartAudio:
		return p.prompt.AudioPlaceholder
	}
	return p.prompt.Placeholder
}

// partType is the kind of part that a medium comes from.
func (m medium) partType() string {
	switch {
	case m.sound != nil:
		return PartAudio
	case m.video:
		return PartVideo
	}
	return PartImage
}

// nextPlaceholder returns the text before the next placeholder, the kind of part that it stands for, and the text behind
// it. The kind is empty where there is none.
func (p *prompter) nextPlaceholder(text string) (before, partType, rest string) {
	at, size := -1, 0
	for _, kind := range []string{PartImage, PartVideo, PartAudio} {
		name := p.placeholder(kind)
		if i := strings.Index(text, name); name != "" && i >= 0 && (at < 0 || i < at) {
			at, size, partType = i, len(name), kind
		}
	}
	if at < 0 {
		return text, "", ""
	}
	return text[:at], partType, text[at+size:]
}

// order checks the prompt's placeholders against its media and brings these into the order of the text: templates may
// print all pictures before all videos, but the first picture is always that of the first picture's placeholder.
func (p *prompter) order(plan *promptPlan, param string) error {
	have, wanted := map[string][]medium{}, map[string]int{}
	for _, m := range plan.media {
		have[m.partType()] = append(have[m.partType()], m)
	}
	ordered := make([]medium, 0, len(plan.media))
	for _, kind, rest := p.nextPlaceholder(plan.text); kind != ""; _, kind, rest = p.nextPlaceholder(rest) {
		if own := have[kind]; wanted[kind] < len(own) {
			ordered = append(ordered, own[wanted[kind]])
		}
		wanted[kind]++
	}
	for _, kind := range []string{PartImage, PartVideo, PartAudio} {
		if wanted[kind] != len(have[kind]) {
			name := map[string]string{PartImage: "picture", PartVideo: "video", PartAudio: "sound"}[kind]
			return badRequest(param, CodeInvalid, nil, "the prompt has %d placeholders (%s) and the request %d %ss; each %s needs one",
				wanted[kind], p.placeholder(kind), len(have[kind]), name, name)
		}
	}
	plan.media = ordered
	return nil
}

// expand puts the text of each medium in the place of its placeholder; order has made sure that they fit.
func (p *prompter) expand(text string, list []placed) string {
	var b strings.Builder
	for {
		before, kind, rest := p.nextPlaceholder(text)
		b.WriteString(before)
		n := 1
		switch kind {
		case "":
			return b.String()
		case PartVideo:
			for !list[n-1].last {
				n++
			}
			p.expandVideo(&b, list[:n])
		case PartAudio:
			b.WriteString(strings.Repeat(p.prompt.ImageToken, list[0].layout.Tokens))
		default:
			p.expandPicture(&b, list[0].layout)
		}
		text, list = rest, list[n:]
	}
}

func (p *prompter) expandPicture(b *strings.Builder, l preprocess.Layout) {
	tokens := l.Tokens
	if p.prompt.Expansion == expansionGrid && l.Grid.Tiles() > 0 {
		each := l.Tokens / l.Tiles
		for row := range l.Grid.Rows {
			for column := range l.Grid.Columns {
				b.WriteString(numbered(p.prompt.TilePrefix, "{row}", row+1, "{column}", column+1))
				b.WriteString(strings.Repeat(p.prompt.ImageToken, each))
				tokens -= each
			}
			b.WriteString(p.prompt.RowSuffix)
		}
		b.WriteString(p.prompt.TilesSuffix)
	}
	b.WriteString(p.prompt.Prefix)
	b.WriteString(strings.Repeat(p.prompt.ImageToken, tokens))
	b.WriteString(p.prompt.Suffix)
}

func (p *prompter) expandVideo(b *strings.Builder, frames []placed) {
	token := p.prompt.VideoToken
	if token == "" {
		token = p.prompt.ImageToken
	}
	for i, f := range frames {
		if i > 0 && f.layout.Tokens == 0 {
			continue // its rows are those of a frame before
		}
		if i > 0 {
			b.WriteString(p.prompt.FrameSeparator)
		}
		b.WriteString(numbered(p.prompt.FramePrefix, "{frame}", f.frame, "{seconds}", strconv.FormatFloat(f.seconds, 'f', 1, 64)))
		b.WriteString(strings.Repeat(token, f.layout.Tokens))
		b.WriteString(p.prompt.FrameSuffix)
	}
}

// encodePieces returns the ids of an expanded text. Where prompt.apart says so, each stretch between image tokens is
// tokenized by itself; an empty one has no tokens, and special tokens go around the first alone.
func (p *prompter) encodePieces(plan *promptPlan, text string) ([]int32, error) {
	if !p.prompt.Apart || p.prompt.ImageToken == "" {
		return p.encodeText(plan, text)
	}
	pieces := strings.Split(text, p.prompt.ImageToken)
	ids, err := p.encodeText(plan, pieces[0])
	if err != nil {
		return nil, err
	}
	for _, piece := range pieces[1:] {
		ids = append(ids, int32(p.tokens.Image))
		if piece == "" {
			continue
		}
		more, err := plan.shield.Encode(piece, false)
		switch {
		case errors.Is(err, tokenizer.ErrNUL):
			return nil, badRequest("messages", CodeInvalid, err, "the prompt: %v", err)
		case err != nil:
			return nil, fmt.Errorf("encode the prompt: %w", err)
		}
		ids = append(ids, more...)
	}
	return ids, nil
}

// numbered replaces names by numbers, or what is written for them, in a text of the manifest.
func numbered(text string, pairs ...any) string {
	list := make([]string, 0, len(pairs))
	for i := 0; i+1 < len(pairs); i += 2 {
		list = append(list, pairs[i].(string), fmt.Sprint(pairs[i+1]))
	}
	return strings.NewReplacer(list...).Replace(text)
}

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
	m := medium{video: true}
	for k := range part.Frames {
		m.pictures = append(m.pictures, &part.Frames[k])
	}
	return m, nil
}

// placeholder is what stands for a part in a prompt that is made without a template's help.
func (p *prompter) placeholder(partType string) string {
	if partType == PartVideo {
		return p.prompt.VideoPlaceholder
	}
	return p.prompt.Placeholder
}

// nextPlaceholder returns the text before the next placeholder, whether that is a video's, and the text behind it. ok is
// false where there is none.
func (p *prompter) nextPlaceholder(text string) (before string, video bool, rest string, ok bool) {
	at, size := strings.Index(text, p.prompt.Placeholder), len(p.prompt.Placeholder)
	if name := p.prompt.VideoPlaceholder; name != "" {
		if v := strings.Index(text, name); v >= 0 && (at < 0 || v < at) {
			at, size, video = v, len(name), true
		}
	}
	if at < 0 {
		return text, false, "", false
	}
	return text[:at], video, text[at+size:], true
}

// order checks the prompt's placeholders against its media and brings these into the order of the text: templates may
// print all pictures before all videos, but the first picture is always that of the first picture's placeholder.
func (p *prompter) order(plan *promptPlan, param string) error {
	var pictures, videos []medium
	for _, m := range plan.media {
		if m.video {
			videos = append(videos, m)
		} else {
			pictures = append(pictures, m)
		}
	}
	ordered := make([]medium, 0, len(plan.media))
	wanted, wantedVideos := 0, 0
	_, video, rest, ok := p.nextPlaceholder(plan.text)
	for ; ok; _, video, rest, ok = p.nextPlaceholder(rest) {
		switch {
		case video:
			if wantedVideos++; wantedVideos <= len(videos) {
				ordered = append(ordered, videos[wantedVideos-1])
			}
		default:
			if wanted++; wanted <= len(pictures) {
				ordered = append(ordered, pictures[wanted-1])
			}
		}
	}
	if wanted != len(pictures) {
		return badRequest(param, CodeInvalid, nil, "the prompt has %d placeholders (%s) and the request %d pictures; each picture needs one",
			wanted, p.prompt.Placeholder, len(pictures))
	}
	if wantedVideos != len(videos) {
		return badRequest(param, CodeInvalid, nil, "the prompt has %d placeholders (%s) and the request %d videos; each video needs one",
			wantedVideos, p.prompt.VideoPlaceholder, len(videos))
	}
	plan.media = ordered
	return nil
}

// expand puts the text of each picture and video in the place of its placeholder; order has made sure that they fit.
func (p *prompter) expand(text string, list []placed) string {
	var b strings.Builder
	for {
		before, video, rest, ok := p.nextPlaceholder(text)
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		n := 1
		if video {
			for !list[n-1].last {
				n++
			}
			p.expandVideo(&b, list[:n])
		} else {
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
		if i > 0 {
			b.WriteString(p.prompt.FrameSeparator)
		}
		b.WriteString(numbered(p.prompt.FramePrefix, "{frame}", f.frame))
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

// numbered replaces names by numbers in a text of the manifest.
func numbered(text string, pairs ...any) string {
	list := make([]string, 0, len(pairs))
	for i := 0; i+1 < len(pairs); i += 2 {
		list = append(list, pairs[i].(string), strconv.Itoa(pairs[i+1].(int)))
	}
	return strings.NewReplacer(list...).Replace(text)
}

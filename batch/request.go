// How a question about pictures is put to a model, which differs by what its manifest says about prompts.

package batch

import (
	"cmp"
	"strings"

	"glimpse/engine"
	"glimpse/manifest"
)

// CaptionPrompt is what a model is asked when nothing was asked: the user's text where the model has a chat template, the
// whole prompt where it has none.
func CaptionPrompt(m *manifest.Manifest) string {
	if m.Prompt.Template == "" {
		return cmp.Or(m.Prompt.RawCaption, m.Prompt.Caption)
	}
	return m.Prompt.Caption
}

// Request asks prompt about the pictures, which come first. An empty prompt asks for a caption. For a model without a chat
// template the prompt is sent as it stands, with the pictures' placeholders before it unless it has some.
func Request(m *manifest.Manifest, pictures []engine.Picture, prompt string) engine.Request {
	prompt = cmp.Or(prompt, CaptionPrompt(m))
	if m.Prompt.Template == "" {
		if holder := m.Prompt.Placeholder; holder != "" && !strings.Contains(prompt, holder) {
			prompt = strings.Repeat(holder, len(pictures)) + prompt
		}
		return engine.Request{Raw: true, Prompt: prompt, Pictures: pictures}
	}
	content := make([]engine.Part, 0, len(pictures)+1)
	for i := range pictures {
		content = append(content, engine.Part{Type: engine.PartImage, Picture: &pictures[i]})
	}
	return message(content, prompt)
}

// clipRequest asks prompt about a video.
func clipRequest(clip *Clip, prompt string) engine.Request { return message(clip.parts(), prompt) }

// message is parts and the text behind them.
func message(parts []engine.Part, prompt string) engine.Request {
	parts = append(parts, engine.Part{Type: engine.PartText, Text: prompt})
	return engine.Request{Messages: []engine.Message{{Role: "user", Content: parts}}}
}

// Checking what a manifest says of texts beside the prompt: instructions and scoring heads.

package manifest

import (
	"fmt"
	"slices"
)

// Kinds of a Score.
const (
	KindSimilarity = "similarity"
	KindPair       = "pair"
)

// ImageIndex is the input of a pair's component that says which picture each pair has.
const ImageIndex = "image_index"

// stages checks that each name is a component.
func (m *Manifest) stages(p *problems, key string, names []string) {
	for _, s := range names {
		_, ok := m.Components[s]
		p.check(ok, "%s names %q, which is not a component", key, s)
	}
}

// makes reports whether one of the components has the output.
func (m *Manifest) makes(components []string, output string) bool {
	return slices.ContainsFunc(components, func(c string) bool { return hasPort(m.Components[c].Outputs, output) })
}

func hasPort(ports []Port, name string) bool {
	return slices.ContainsFunc(ports, func(port Port) bool { return port.Name == name })
}

// reads checks that one of the components takes both inputs of the text.
func (m *Manifest) reads(p *problems, key string, components []string, text TextInput) {
	p.check(slices.ContainsFunc(components, func(c string) bool {
		return hasPort(m.Components[c].Inputs, text.IDs) && hasPort(m.Components[c].Inputs, text.Mask)
	}), "%s: none of %v takes %q and %q", key, components, text.IDs, text.Mask)
}

func (t TextInput) validate(p *problems, key string) {
	p.file(key+".tokenizer", t.Tokenizer, true)
	p.check(t.IDs != "" && t.Mask != "" && t.IDs != t.Mask, "%s.ids is %q and %s.mask %q; they must be two names", key, t.IDs, key, t.Mask)
	p.within(key+".pad", t.Pad, 0, 1<<24)
	p.within(key+".max_tokens", t.MaxTokens, 1, 1<<20)
}

func (m *Manifest) validateInstruction(p *problems) {
	t := m.Instruction
	if t == nil {
		return
	}
	t.validate(p, "instruction")
	if m.Picture == nil {
		p.check(false, "instruction is for picture stages, and there is no picture")
		return
	}
	m.reads(p, "instruction", m.Picture.Stages, *t)
}

func (m *Manifest) validateScoring(p *problems) {
	s := m.Scoring
	if s == nil {
		return
	}
	s.Text.validate(p, "scoring.text")
	if m.Picture == nil {
		p.check(false, "scoring compares pictures, and there is no picture")
		return
	}
	m.stages(p, "scoring.image_stages", s.ImageStages)
	m.stages(p, "scoring.text_stages", s.TextStages)
	if len(s.TextStages) > 0 {
		m.reads(p, "scoring.text_stages", s.TextStages, s.Text)
	}
	image := slices.Concat(m.Picture.Stages, s.ImageStages)
	p.check(s.ImageEmbeds == "" || m.makes(image, s.ImageEmbeds), "scoring.image_embeds is %q, which no stage makes", s.ImageEmbeds)
	p.check(s.TextEmbeds == "" || m.makes(s.TextStages, s.TextEmbeds), "scoring.text_embeds is %q, which no stage makes", s.TextEmbeds)
	p.check(len(s.Scores) > 0, "scoring.scores is empty")
	seen := map[string]bool{}
	for i, score := range s.Scores {
		key := fmt.Sprintf("scoring.scores[%d]", i)
		p.check(plainName(score.Name), "%s.name is %q; it must be a word of letters, digits and _ that begins with a letter", key, score.Name)
		p.check(!seen[score.Name], "%s.name %q is there twice", key, score.Name)
		seen[score.Name] = true
		switch score.Kind {
		case KindSimilarity:
			m.validateSimilarity(p, key, score)
		case KindPair:
			m.validatePair(p, key, score)
		default:
			p.check(false, "%s.kind is %q; known are %s and %s", key, score.Kind, KindSimilarity, KindPair)
		}
	}
}

func (m *Manifest) validateSimilarity(p *problems, key string, score Score) {
	s := m.Scoring
	image, text := s.Embeds(score)
	p.check(m.makes(slices.Concat(m.Picture.Stages, s.ImageStages), image), "%s: no stage makes its picture embeddings %q", key, image)
	p.check(m.makes(s.TextStages, text), "%s: no stage makes its text embeddings %q", key, text)
	p.check(score.Scale > 0 && score.Scale <= 1e6, "%s.scale is %v; it must lie above 0 and be at most 1e6", key, score.Scale)
}

func (m *Manifest) validatePair(p *problems, key string, score Score) {
	c, ok := m.Components[score.Component]
	if !ok {
		p.check(false, "%s.component names %q, which is not a component", key, score.Component)
		return
	}
	p.check(hasPort(c.Outputs, score.Output), "%s.output is %q, which %s does not make", key, score.Output, score.Component)
	p.check(hasPort(c.Inputs, ImageIndex), "%s.component: %s has no input %s", key, score.Component, ImageIndex)
	m.reads(p, key+".component", []string{score.Component}, m.Scoring.Text)
}

// Embeds returns the names of the picture and text embeddings that a similarity compares.
func (s *Scoring) Embeds(score Score) (image, text string) {
	image, text = score.ImageEmbeds, score.TextEmbeds
	if image == "" {
		image = s.ImageEmbeds
	}
	if text == "" {
		text = s.TextEmbeds
	}
	return image, text
}

// plainName reports whether a name can stand as a key of a reply.
func plainName(name string) bool {
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !(letter || i > 0 && (r == '_' || r >= '0' && r <= '9')) {
			return false
		}
	}
	return name != "" && len(name) <= 64 && !slices.Contains(reservedNames, name)
}

// reservedNames are the other keys of a reply with scores.
var reservedNames = []string{"model", "usage", "object", "timings"}

// Pictures with names in the prompt (prompt.named): the model saw <img>name</img> in training, and the bytes of the name
// where the picture's rows then go.

package engine

import (
	"slices"
	"strings"
)

// takeNames cuts the names of pictures out of a raw prompt, which leaves a placeholder of each.
func (p *prompter) takeNames(text string) (unnamed string, names []string) {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(text, p.prompt.Prefix)
		name, after, closed := strings.Cut(rest, p.prompt.Suffix)
		if !ok || !closed {
			b.WriteString(text)
			return b.String(), names
		}
		b.WriteString(before + p.prompt.Placeholder)
		names = append(names, name)
		text = after
	}
}

// showNames puts names into the placeholders of a rendered prompt.
func (p *prompter) showNames(text string, names []string) string {
	var b strings.Builder
	for _, name := range names {
		before, after, ok := strings.Cut(text, p.prompt.Placeholder)
		if !ok {
			break
		}
		b.WriteString(before + p.prompt.Prefix + name + p.prompt.Suffix)
		text = after
	}
	return b.String() + text
}

// named are a prompt's ids as upstream's tokenizer gives them: each byte of a picture's name is an id of that number, in
// place of the picture's first tokens. counts are the pictures' tokens.
func (p *prompter) named(ids []int32, names []string, counts []int) []int32 {
	out := slices.Clone(ids)
	at := 0
	for i, n := range counts {
		for at < len(out) && !p.isImageToken(out[at]) {
			at++
		}
		if i < len(names) && len(names[i]) <= n && at+n <= len(out) {
			for k := range len(names[i]) {
				out[at+k] = int32(names[i][k])
			}
		}
		at += n
	}
	return out
}

// Tokenize returns the ids of a raw prompt as Prepare would report them, with one tile's tokens for each picture that it has
// a placeholder of. No pictures are needed.
func (e *Engine) Tokenize(text string) ([]int32, error) {
	p := e.prompter
	plan := &promptPlan{shield: p.tokenizer.NewShield(), text: text}
	if p.prompt.Named {
		plan.text, plan.names = p.takeNames(text)
	}
	var counts []int
	if p.prompt.Placeholder != "" && !p.prepend && e.manifest.Picture != nil {
		n := strings.Count(plan.text, p.prompt.Placeholder)
		counts = slices.Repeat([]int{e.manifest.Picture.TokensPerTile}, n)
		row := p.prompt.Prefix + strings.Repeat(p.prompt.ImageToken, e.manifest.Picture.TokensPerTile) + p.prompt.Suffix
		plan.text = strings.ReplaceAll(plan.text, p.prompt.Placeholder, row)
	}
	ids, err := p.encodePieces(plan, plan.text)
	if err != nil || !p.prompt.Named {
		return ids, err
	}
	return p.named(ids, plan.names, counts), nil
}

// Decode returns the text of ids, special tokens included.
func (e *Engine) Decode(ids []int32) string { return e.prompter.tokenizer.Decode(ids, false) }

// DecodeText returns the text of ids without special tokens, as an answer shows it.
func (e *Engine) DecodeText(ids []int32) string { return e.prompter.tokenizer.Decode(ids, true) }

// TokenizeUser returns the ids of a text as a user's message holds it: names of special tokens are text.
func (e *Engine) TokenizeUser(text string) ([]int32, error) {
	plan := &promptPlan{shield: e.prompter.tokenizer.NewShield()}
	return e.prompter.encodePieces(plan, plan.shield.Cover(text))
}

// LastPicture returns the name of the last picture of a raw prompt, the one that boxes in its answer lie in; "" where there
// is none or pictures have no names.
func (e *Engine) LastPicture(prompt string) string {
	if !e.prompter.prompt.Named {
		return ""
	}
	_, names := e.prompter.takeNames(prompt)
	if len(names) == 0 {
		return ""
	}
	return names[len(names)-1]
}

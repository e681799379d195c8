// Prompts of models whose pictures go before the whole text (expansion "prepend"): BLIP-2 and its like have no
// placeholders, and mostly no chat template either.

package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"glimpse/manifest"
)

// Values of prompt.expansion.
const (
	expansionRepeat  = "repeat"
	expansionGrid    = "grid"
	expansionPrepend = "prepend"
)

// checkExpansion makes sure that it is known how pictures enter the prompt.
func checkExpansion(m *manifest.Manifest) error {
	if m.Picture == nil {
		return nil
	}
	switch m.Prompt.Expansion {
	case expansionRepeat, expansionGrid:
		if m.Prompt.Placeholder == "" || m.Prompt.ImageToken == "" {
			return errors.New("prompt.placeholder and prompt.image_token must be given where pictures stand in the text")
		}
		if m.Prompt.Expansion == expansionGrid && m.Prompt.TilePrefix == "" {
			return errors.New(`prompt.expansion is "grid", and prompt.tile_prefix, the text before each tile, is empty`)
		}
	case expansionPrepend:
		if m.Prompt.Template != "" {
			return errors.New(`prompt.expansion is "prepend", and prompt.template has placeholders of its own: this is not supported`)
		}
		if m.Decoder != nil && m.Tokens.Image < 0 {
			return errors.New(`tokens.image is not set, and prompt.expansion "prepend" puts it before the text`)
		}
	default:
		return fmt.Errorf(`prompt.expansion is %q; known are "repeat", "grid" and "prepend": run the folder with a newer glimpse, or convert again`, m.Prompt.Expansion)
	}
	if m.Instruction != nil && m.Prompt.Expansion != expansionPrepend {
		return errors.New(`instruction is set, which needs prompt.expansion "prepend"`)
	}
	return nil
}

// planMessage takes one user message as the prompt: without a template there is no way to tell turns apart.
func (p *prompter) planMessage(req Request, plan *promptPlan) error {
	if n := len(req.Messages); n != 1 {
		return badRequest("messages", CodeUnsupported, nil, "the model has no chat template and takes one user message, not %d: put what matters into one", n)
	}
	m := req.Messages[0]
	if m.Role != "user" {
		return badRequest("messages[0].role", CodeUnsupported, nil, "the model has no chat template and takes one user message; the message has the role %.80q", m.Role)
	}
	parts, err := p.message(0, m, plan)
	if err != nil {
		return err
	}
	var texts, words []string
	for i, part := range parts {
		if part.Type == PartText && m.Content[i].Text != "" {
			texts, words = append(texts, part.Text), append(words, m.Content[i].Text)
		}
	}
	plan.text, plan.user = strings.Join(texts, " "), strings.Join(words, " ")
	if plan.text == "" && len(plan.media) == 0 {
		return badRequest("messages", CodeInvalid, nil, "the message is empty")
	}
	plan.shown = plan.shield.Uncover(plan.text)
	return nil
}

// encodePrepended returns an image token for each of the total rows of the pictures, and then the text's ids with the special tokens
// that the tokenizer puts around a text. The text may be empty.
func (p *prompter) encodePrepended(plan *promptPlan, total int) ([]int32, error) {
	ids, err := p.encodeText(plan, plan.text)
	if err != nil {
		return nil, err
	}
	if n := p.imageTokens(ids); n > 0 {
		return nil, badRequest("messages", CodeInvalid, nil, "the text holds %d image tokens; pictures go before the text and have no place in it", n)
	}
	return append(slices.Repeat([]int32{int32(p.tokens.Image)}, total), ids...), nil
}

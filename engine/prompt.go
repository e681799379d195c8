// From messages to token ids: chat template, placeholders of pictures, expansion, tokenizer.
//
// What users write is covered by a tokenizer.Shield before the template sees it, so a special token's name in it stays
// ordinary text and cannot end a turn or stand for a picture. Placeholders that are no token of the vocabulary cannot be
// covered; a text that contains one is refused. Raw prompts are the caller's own and are used as they are.

package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"glimpse/manifest"
	"glimpse/tokenizer"
)

// maxRole bounds a role's name.
const maxRole = 64

// maxTemplateFile bounds the template's file; tokenizer bounds it again.
const maxTemplateFile = 1 << 20

// prompter turns requests into prompts. It is safe for many goroutines.
type prompter struct {
	prompt    manifest.Prompt
	tokens    manifest.Tokens
	tokenizer *tokenizer.Tokenizer
	template  *tokenizer.Template // nil: raw prompts only
	// prepend says that pictures go before the whole text, which has no placeholders (expansion "prepend").
	prepend bool
	// flat says that the template wants a message's content as one string, as those of text models do, and would print
	// a list of parts as it stands.
	flat bool
}

// promptPlan is a prompt before its pictures' sizes are known.
type promptPlan struct {
	text   string // with marks of the shield in it
	shown  string // as users see it
	user   string // what the user wrote: the raw prompt, or the texts of the one message of a model without template
	raw    bool   // user is the caller's own, names of special tokens included
	shield *tokenizer.Shield
	media  []medium // pictures and videos, in the order of their placeholders
	names  []string // of the pictures, where the prompt shows them
}

// openPrompter reads the template and the tokenizer of a model folder.
func openPrompter(folder string, m *manifest.Manifest) (*prompter, error) {
	p := &prompter{prompt: m.Prompt, tokens: m.Tokens, prepend: m.Prompt.Expansion == expansionPrepend}
	if err := checkExpansion(m); err != nil {
		return nil, err
	}
	var err error
	if p.tokenizer, err = tokenizer.Open(folder); err != nil {
		return nil, err
	}
	if m.Prompt.Template == "" {
		return p, nil
	}
	source, err := readTemplate(filepath.Join(folder, m.Prompt.Template))
	if err == nil {
		p.template, err = tokenizer.ParseTemplate(source)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.flat = !p.renders([]templatePart{{Type: PartText, Text: probeText}}) && p.renders(probeText)
	return p, nil
}

// probeText is the text of a message that is rendered to see what a template does with content.
const probeText = "probe"

// renders reports whether the template takes this form of content: the text comes out, and not the form itself.
func (p *prompter) renders(content any) bool {
	text, err := p.template.Render(p.variables([]templateMessage{{Role: "user", Content: content}}))
	return err == nil && strings.Contains(text, probeText) && !strings.Contains(text, `'type'`) && !strings.Contains(text, `"type"`)
}

// variables are what a template sees.
func (p *prompter) variables(messages []templateMessage) map[string]any {
	v := map[string]any{"messages": messages, "add_generation_prompt": true}
	for role, text := range p.tokens.Strings {
		if _, taken := v[role]; !taken {
			v[role] = text
		}
	}
	return v
}

func readTemplate(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("read chat template: %w", err)
	}
	if info.Size() > maxTemplateFile {
		return "", fmt.Errorf("read chat template %s: %d bytes; at most %d are read", path, info.Size(), maxTemplateFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read chat template: %w", err)
	}
	return string(raw), nil
}

// Close frees tokenizer and template. It is idempotent.
func (p *prompter) Close() error {
	if p == nil {
		return nil
	}
	var err error
	if p.template != nil {
		err = p.template.Close()
	}
	return errors.Join(err, p.tokenizer.Close())
}

// plan renders the request's prompt and counts its placeholders against its pictures.
func (p *prompter) plan(req Request) (*promptPlan, error) {
	plan := &promptPlan{shield: p.tokenizer.NewShield()}
	param := "messages"
	var err error
	if req.Raw {
		param = "prompt"
		err = p.planRaw(req, plan)
	} else {
		err = p.planMessages(req, plan)
	}
	if err != nil {
		return nil, err
	}
	if p.prompt.Placeholder == "" {
		return plan, nil
	}
	if err := p.order(plan, param); err != nil {
		return nil, err
	}
	if p.prompt.Named && !req.Raw {
		for _, m := range plan.media {
			plan.names = append(plan.names, m.pictures[0].Source)
		}
		plan.shown = plan.shield.Uncover(p.showNames(plan.text, plan.names))
	}
	return plan, nil
}

func (p *prompter) planRaw(req Request, plan *promptPlan) error {
	switch {
	case len(req.Messages) > 0:
		return badRequest("messages", CodeInvalid, nil, "a raw prompt and messages exclude each other")
	case req.Prompt == "" && !(p.prepend && len(req.Pictures) > 0): // pictures alone are a prompt: plain captioning
		return badRequest("prompt", CodeInvalid, nil, "the prompt is empty")
	case p.prompt.ImageToken != p.prompt.Placeholder && strings.Contains(req.Prompt, p.prompt.ImageToken):
		return badRequest("prompt", CodeInvalid, nil, "the prompt contains %s; a picture's place is written %s", p.prompt.ImageToken, p.prompt.Placeholder)
	}
	plan.text, plan.shown, plan.user, plan.raw = req.Prompt, req.Prompt, req.Prompt, true
	if p.prompt.Named {
		plan.text, plan.names = p.takeNames(req.Prompt)
	}
	for i := range req.Pictures {
		plan.media = append(plan.media, medium{pictures: []*Picture{&req.Pictures[i]}})
	}
	for i, part := range req.Videos {
		video, err := p.video(part, "videos", i, 0)
		if err != nil {
			return err
		}
		plan.media = append(plan.media, video)
	}
	return nil
}

// templateMessage and templatePart are a message as upstream's templates see it.
type templateMessage struct {
	Role    string `json:"role"`
	Content any    `json:"content"` // []templatePart, or a string

	ToolCalls  []templateCall `json:"tool_calls,omitempty"`
	ToolCallID string         `json:"tool_call_id,omitempty"`
}

type templatePart struct {
	Type    string
	Text    string    // of PartText
	Seconds []float64 // of PartVideo, where they are known
}

// MarshalJSON writes {"type":"text","text":…}, {"type":"image"} or, of a video whose frames' times are known, these beside its
// type as texts: upstream's parts have the keys of their type alone.
func (t templatePart) MarshalJSON() ([]byte, error) {
	if t.Type == PartVideo && len(t.Seconds) > 0 {
		return json.Marshal(struct {
			Type    string   `json:"type"`
			Seconds []string `json:"seconds"`
		}{t.Type, tenths(t.Seconds)})
	}
	if t.Type != PartText {
		return json.Marshal(struct {
			Type string `json:"type"`
		}{t.Type})
	}
	return json.Marshal(struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}{t.Type, t.Text})
}

// tenths writes seconds as Python's str(round(s, 1)) does.
func tenths(seconds []float64) []string {
	out := make([]string, len(seconds))
	for i, s := range seconds {
		out[i] = strconv.FormatFloat(s, 'f', 1, 64)
	}
	return out
}

func (p *prompter) planMessages(req Request, plan *promptPlan) error {
	switch {
	case req.Prompt != "" || len(req.Pictures)+len(req.Videos) > 0:
		return badRequest("prompt", CodeInvalid, nil, "a prompt and pictures beside messages are for raw requests")
	case len(req.Messages) == 0:
		return badRequest("messages", CodeInvalid, nil, "there are no messages")
	case p.template == nil && usesTools(req):
		return badRequest("tools", CodeUnsupported, nil, "the model has no chat template and so no place for tools")
	case p.template == nil && p.prepend:
		return p.planMessage(req, plan)
	case p.template == nil:
		return badRequest("messages", CodeUnsupported, nil, "the model has no chat template; send a raw prompt")
	}
	turns := req.Messages
	native := usesTools(req) && p.knowsTools()
	if usesTools(req) && !native {
		turns = spelledOut(req.Messages, req.Tools)
	}
	messages := make([]templateMessage, len(turns))
	for i, m := range turns {
		parts, err := p.message(i, m, plan)
		if err != nil {
			return err
		}
		messages[i] = templateMessage{Role: m.Role, Content: p.content(parts)}
		if native {
			if err := p.toolTurn(i, m, plan, &messages[i]); err != nil {
				return err
			}
		}
	}
	variables := p.variables(messages)
	if native && len(req.Tools) > 0 {
		tools, err := p.toolVariables(req.Tools, plan)
		if err != nil {
			return err
		}
		variables["tools"] = tools
	}
	text, err := p.template.Render(variables)
	if err != nil {
		return badRequest("messages", CodeInvalid, err, "%v", err)
	}
	plan.text, plan.shown = text, plan.shield.Uncover(text)
	return nil
}

// content is a message's parts in the form that the template takes. In a string a picture is its placeholder on a line
// of its own, as LLaVA's authors write it.
func (p *prompter) content(parts []templatePart) any {
	if !p.flat {
		return parts
	}
	var b strings.Builder
	for i, part := range parts {
		switch {
		case part.Type == PartText:
			b.WriteString(part.Text)
		case i < len(parts)-1:
			b.WriteString(p.placeholder(part.Type) + "\n")
		default:
			b.WriteString(p.placeholder(part.Type))
		}
	}
	return b.String()
}

// message checks one message, covers its texts and notes its pictures.
func (p *prompter) message(i int, m Message, plan *promptPlan) ([]templatePart, error) {
	param := fmt.Sprintf("messages[%d]", i)
	if !plainRole(m.Role) {
		return nil, badRequest(param+".role", CodeInvalid, nil, "message %d has the role %.80q; roles are words such as user, assistant and system", i, m.Role)
	}
	parts := make([]templatePart, 0, len(m.Content))
	var joined, covered strings.Builder
	probe := p.tokenizer.NewShield()
	for j, part := range m.Content {
		switch part.Type {
		case PartText:
			parts = append(parts, templatePart{Type: PartText, Text: plan.shield.Cover(part.Text)})
			joined.WriteString(part.Text)
			covered.WriteString(probe.Cover(part.Text))
		case PartImage:
			if part.Picture == nil {
				return nil, badRequest(param, CodeInvalid, nil, "part %d of message %d is an image without a picture", j, i)
			}
			parts = append(parts, templatePart{Type: PartImage})
			plan.media = append(plan.media, medium{pictures: []*Picture{part.Picture}})
		case PartVideo:
			video, err := p.video(part, param, j, i)
			if err != nil {
				return nil, err
			}
			parts = append(parts, templatePart{Type: PartVideo, Seconds: part.Seconds})
			plan.media = append(plan.media, video)
		case PartAudio:
			sound, err := p.sound(part, param, j, i)
			if err != nil {
				return nil, err
			}
			parts = append(parts, templatePart{Type: PartAudio})
			plan.media = append(plan.media, sound)
		default:
			return nil, badRequest(param, CodeInvalid, nil, "part %d of message %d has the type %.40q; known are text, image, video and audio", j, i, part.Type)
		}
	}
	// Texts of one message may be joined by the template; a name made of two of them would not be covered.
	if probe.Cover(joined.String()) != covered.String() {
		return nil, badRequest(param, CodeInvalid, nil, "the texts of message %d join into the name of a special token; send them as one part", i)
	}
	for _, name := range []string{p.prompt.Placeholder, p.prompt.ImageToken, p.prompt.VideoPlaceholder, p.prompt.VideoToken, p.prompt.AudioPlaceholder} {
		if name != "" && strings.Contains(covered.String(), name) {
			return nil, badRequest(param, CodeInvalid, nil, "the text of message %d contains %s, which stands for a picture, a video or a sound; send it as a part of its own", i, name)
		}
	}
	return parts, nil
}

// plainRole reports whether a role is a word: templates print it next to their special tokens.
func plainRole(role string) bool {
	for _, r := range role {
		if !(r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
			return false
		}
	}
	return role != "" && len(role) <= maxRole
}

// encode expands each placeholder to its picture's tokens and returns the ids. The number of image tokens among them is
// what the pictures take, or the prompt is refused.
func (p *prompter) encode(plan *promptPlan, list []placed) ([]int32, error) {
	total := 0
	for _, pic := range list {
		total += pic.layout.Tokens
	}
	if p.prepend {
		return p.encodePrepended(plan, total)
	}
	text := plan.text
	if len(list) > 0 {
		text = p.expand(text, list)
	}
	ids, err := p.encodePieces(plan, text)
	if err != nil {
		return nil, err
	}
	if found := p.imageTokens(ids); found != total {
		return nil, badRequest("messages", CodeInvalid, nil, "the prompt has %d image tokens (%s) and its pictures take %d", found, p.prompt.ImageToken, total)
	}
	return ids, nil
}

// encodeText returns the ids of a text with the marks of the plan's shield in it.
func (p *prompter) encodeText(plan *promptPlan, text string) ([]int32, error) {
	// As transformers' processors do: a prompt that brings its own BOS gets no second one.
	bos := p.tokens.Strings["bos_token"]
	special := bos == "" || !strings.HasPrefix(text, bos)
	ids, err := plan.shield.Encode(text, special)
	if errors.Is(err, tokenizer.ErrNUL) {
		return nil, badRequest("messages", CodeInvalid, err, "the prompt: %v", err)
	}
	if err != nil {
		return nil, fmt.Errorf("encode the prompt: %w", err)
	}
	return ids, nil
}

// imageTokens counts the places of pictures and videos.
func (p *prompter) imageTokens(ids []int32) int {
	found := 0
	for _, id := range ids {
		if p.isImageToken(id) {
			found++
		}
	}
	return found
}

// isImageToken reports whether a row of features takes the id's place.
func (p *prompter) isImageToken(id int32) bool {
	return p.tokens.Image >= 0 && int(id) == p.tokens.Image || p.tokens.Video > 0 && int(id) == p.tokens.Video
}

// piece returns the text that a token adds after another, for listings of log-probabilities.
func (p *prompter) piece(id int32) string {
	// Alone, tokenizers drop a leading space; after itself it shows.
	once := p.tokenizer.Decode([]int32{id}, false)
	if rest, ok := strings.CutPrefix(p.tokenizer.Decode([]int32{id, id}, false), once); ok && once != "" {
		return rest
	}
	return once
}

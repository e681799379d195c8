// Tools: functions that the caller offers and the model may ask for. Templates that know tools get them as they are released
// to; for the others they are described in a system text, and calls and their results become ordinary turns.

package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Bounds on tools.
const (
	maxTools    = 128
	maxToolName = 64
)

// Tool is a function that the model may call.
type Tool struct {
	Name        string          // letters, digits, _ and -
	Description string          // what it does, for the model
	Parameters  json.RawMessage // JSON schema of its arguments, an object; nil: it has none
}

// ToolCall is a call that an assistant's message holds.
type ToolCall struct {
	ID        string
	Name      string
	Arguments json.RawMessage // a JSON object
}

// noParameters is the schema of a function without arguments.
const noParameters = `{"type":"object","properties":{},"additionalProperties":false}`

func (t Tool) parameters() json.RawMessage {
	if len(t.Parameters) == 0 {
		return json.RawMessage(noParameters)
	}
	return t.Parameters
}

// CallConstraint has an answer be one call of one of the tools: {"name": …, "arguments": …}. With strict what a schema says
// and cannot be enforced is an error.
func CallConstraint(tools []Tool, strict bool) (*Constraint, error) {
	var b bytes.Buffer
	b.WriteString(`{"anyOf":[`)
	for i, t := range tools {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, err
		}
		// References of the parameters start at their own root, which lies deeper now.
		root := fmt.Sprintf("#/anyOf/%d/properties/arguments", i)
		parameters, err := mapStrings(t.parameters(), func(key, text string) string {
			if rest, ok := strings.CutPrefix(text, "#"); ok && key == "$ref" {
				return root + rest
			}
			return text
		})
		if err != nil {
			return nil, badRequest("tools", CodeInvalid, err, "the parameters of tool %s are not JSON: %v", t.Name, err)
		}
		fmt.Fprintf(&b, `{"type":"object","properties":{"name":{"const":%s},"arguments":%s},"required":["name","arguments"],"additionalProperties":false}`, name, parameters)
	}
	b.WriteString(`]}`)
	return &Constraint{Schema: b.Bytes(), Lenient: !strict, Param: "tools"}, nil
}

func checkTools(tools []Tool) error {
	if len(tools) > maxTools {
		return badRequest("tools", CodeInvalid, nil, "%d tools; at most %d are allowed", len(tools), maxTools)
	}
	seen := map[string]bool{}
	for i, t := range tools {
		if !plainRole(t.Name) || seen[t.Name] {
			return badRequest(fmt.Sprintf("tools[%d]", i), CodeInvalid, nil, "tool %d is called %.80q; names are up to %d letters, digits, _ and -, each once", i, t.Name, maxToolName)
		}
		seen[t.Name] = true
		if err := object(t.parameters()); err != nil {
			return badRequest(fmt.Sprintf("tools[%d]", i), CodeInvalid, err, "the parameters of tool %s: %v", t.Name, err)
		}
	}
	return nil
}

// checkCalls looks at the calls that messages hold.
func checkCalls(messages []Message) error {
	for i, m := range messages {
		for _, c := range m.ToolCalls {
			param := fmt.Sprintf("messages[%d].tool_calls", i)
			if !plainRole(c.Name) {
				return badRequest(param, CodeInvalid, nil, "message %d calls %.80q, which is no name of a function", i, c.Name)
			}
			if err := object(c.Arguments); err != nil {
				return badRequest(param, CodeInvalid, err, "message %d: the arguments of the call of %s: %v", i, c.Name, err)
			}
		}
	}
	return nil
}

// object returns an error unless raw is one JSON object.
func object(raw json.RawMessage) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil || fields == nil {
		return fmt.Errorf("not a JSON object: %.60q", raw)
	}
	return nil
}

// templateTool and templateCall are tools and calls as upstream's templates see them.
type templateTool struct {
	Type     string           `json:"type"`
	Function templateFunction `json:"function"`
}

type templateFunction struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters,omitempty"`
	Arguments   json.RawMessage `json:"arguments,omitempty"`
}

type templateCall struct {
	ID       string           `json:"id,omitempty"`
	Type     string           `json:"type"`
	Function templateFunction `json:"function"`
}

// knowsTools reports whether the template prints the tools that it is given.
func (p *prompter) knowsTools() bool {
	v := p.variables([]templateMessage{{Role: "user", Content: p.content([]templatePart{{Type: PartText, Text: "x"}})}})
	v["tools"] = []templateTool{{"function", templateFunction{Name: probeText, Parameters: json.RawMessage(noParameters)}}}
	text, err := p.template.Render(v)
	return err == nil && strings.Contains(text, probeText)
}

// usesTools reports whether a request has tools, calls or their results.
func usesTools(req Request) bool {
	for _, m := range req.Messages {
		if len(m.ToolCalls) > 0 || m.Role == roleTool {
			return true
		}
	}
	return len(req.Tools) > 0
}

// toolTurn adds what a message has to do with tools.
func (p *prompter) toolTurn(i int, m Message, plan *promptPlan, turn *templateMessage) (err error) {
	if turn.ToolCalls, err = p.callVariables(m.ToolCalls, plan); err == nil {
		turn.ToolCallID, err = p.coverText(m.ToolCallID, plan)
	}
	if err != nil {
		return badRequest(fmt.Sprintf("messages[%d]", i), CodeInvalid, err, "message %d: %v", i, err)
	}
	return nil
}

// toolVariables covers what users wrote in tools.
func (p *prompter) toolVariables(tools []Tool, plan *promptPlan) ([]templateTool, error) {
	out := make([]templateTool, len(tools))
	for i, t := range tools {
		parameters, err := p.coverJSON(t.parameters(), plan)
		if err != nil {
			return nil, badRequest(fmt.Sprintf("tools[%d]", i), CodeInvalid, err, "the parameters of tool %s: %v", t.Name, err)
		}
		description, err := p.coverText(t.Description, plan)
		if err != nil {
			return nil, badRequest(fmt.Sprintf("tools[%d]", i), CodeInvalid, err, "the description of tool %s: %v", t.Name, err)
		}
		out[i] = templateTool{"function", templateFunction{Name: t.Name, Description: description, Parameters: parameters}}
	}
	return out, nil
}

// callVariables does the same for a message's calls.
func (p *prompter) callVariables(calls []ToolCall, plan *promptPlan) ([]templateCall, error) {
	var out []templateCall
	for _, c := range calls {
		arguments, err := p.coverJSON(c.Arguments, plan)
		if err != nil {
			return nil, fmt.Errorf("the arguments of the call of %s: %w", c.Name, err)
		}
		out = append(out, templateCall{Type: "function", Function: templateFunction{Name: c.Name, Arguments: arguments}})
	}
	return out, nil
}

func (p *prompter) coverJSON(raw json.RawMessage, plan *promptPlan) (json.RawMessage, error) {
	var failed error
	covered, err := mapStrings(raw, func(_, text string) string {
		text, err := p.coverText(text, plan)
		if err != nil {
			failed = err
		}
		return text
	})
	if err == nil {
		err = failed
	}
	return covered, err
}

// coverText covers a text that goes beside the messages' parts, where no picture can stand.
func (p *prompter) coverText(text string, plan *promptPlan) (string, error) {
	covered := plan.shield.Cover(text)
	for _, name := range p.placeholders() {
		if strings.Contains(covered, name) {
			return "", fmt.Errorf("it contains %s, which stands for a picture or a video", name)
		}
	}
	return covered, nil
}

// placeholders are the texts that stand for pictures and videos.
func (p *prompter) placeholders() []string {
	var out []string
	for _, name := range []string{p.prompt.Placeholder, p.prompt.ImageToken, p.prompt.VideoPlaceholder, p.prompt.VideoToken} {
		if name != "" {
			out = append(out, name)
		}
	}
	return out
}

// spelledOut says with ordinary turns what the template has no words for: tools in a system text, calls as the JSON that
// was asked for, results as a user's turn. Turns of one role that come to lie side by side become one.
func spelledOut(messages []Message, tools []Tool) []Message {
	var out []Message
	add := func(role string, parts ...Part) {
		if n := len(out) - 1; n >= 0 && out[n].Role == role {
			out[n].Content = append(out[n].Content, Part{Type: PartText, Text: "\n"})
			out[n].Content = append(out[n].Content, parts...)
			return
		}
		out = append(out, Message{Role: role, Content: parts})
	}
	if len(tools) > 0 {
		add("system", Part{Type: PartText, Text: describeTools(tools)})
	}
	names := map[string]string{}
	for _, m := range messages {
		parts := append([]Part(nil), m.Content...)
		for _, c := range m.ToolCalls {
			names[c.ID] = c.Name
			parts = append(parts, Part{Type: PartText, Text: plainJSON(templateFunction{Name: c.Name, Arguments: c.Arguments})})
		}
		if m.Role == roleTool {
			parts = append([]Part{{Type: PartText, Text: "Result of " + names[m.ToolCallID] + ": "}}, parts...)
			add("user", parts...)
			continue
		}
		add(m.Role, parts...)
	}
	return out
}

// roleTool is the role of a tool's result.
const roleTool = "tool"

// describeTools is the system text.
func describeTools(tools []Tool) string {
	var b strings.Builder
	b.WriteString("You can call these functions:\n")
	for _, t := range tools {
		b.WriteString(plainJSON(templateFunction{Name: t.Name, Description: t.Description, Parameters: t.parameters()}))
		b.WriteByte('\n')
	}
	b.WriteString(`To call one, answer with a JSON object and nothing else: {"name": the function's name, "arguments": an object}.`)
	return b.String()
}

// plainJSON is one line of JSON for a model to read, without escapes for HTML. What is raw in it was checked.
func plainJSON(v any) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(v)
	return strings.TrimSuffix(b.String(), "\n")
}

// mapStrings rewrites the string values of a JSON text and keeps the order of its names, which maps would not. change gets
// the name that a value has, empty in arrays.
func mapStrings(raw []byte, change func(key, text string) string) ([]byte, error) {
	w := &stringMapper{decoder: json.NewDecoder(bytes.NewReader(raw)), change: change}
	w.decoder.UseNumber()
	if err := w.value(""); err != nil {
		return nil, err
	}
	if _, err := w.decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("it goes on after its end")
	}
	return w.out.Bytes(), nil
}

type stringMapper struct {
	decoder *json.Decoder
	change  func(key, text string) string
	out     bytes.Buffer
}

func (w *stringMapper) value(key string) error {
	token, err := w.decoder.Token()
	if err != nil {
		return err
	}
	switch t := token.(type) {
	case json.Delim:
		return w.inside(t)
	case string:
		w.text(w.change(key, t))
	case nil:
		w.out.WriteString("null")
	default:
		fmt.Fprint(&w.out, t) // numbers keep their digits; true and false
	}
	return nil
}

// inside writes what an opening bracket holds. Names are changed too, under the name "".
func (w *stringMapper) inside(open json.Delim) error {
	w.out.WriteRune(rune(open))
	for first := true; w.decoder.More(); first = false {
		if !first {
			w.out.WriteByte(',')
		}
		name := ""
		if open == '{' {
			token, err := w.decoder.Token()
			if err != nil {
				return err
			}
			name, _ = token.(string)
			w.text(w.change("", name))
			w.out.WriteByte(':')
		}
		if err := w.value(name); err != nil {
			return err
		}
	}
	end, err := w.decoder.Token()
	if err == nil {
		w.out.WriteRune(rune(end.(json.Delim)))
	}
	return err
}

func (w *stringMapper) text(s string) {
	w.out.WriteString(plainJSON(s))
}

// What POST /v1/responses takes: OpenAI's request, without everything that needs a stored conversation.

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"glimpse/engine"
	"glimpse/server/spec"
)

type responsesRequest struct {
	conversationRequest

	Input        *spec.TextOr[[]inputItem] `json:"input" required:"true" items:"1..1024" doc:"A user's text, or the conversation so far."`
	Instructions string                    `json:"instructions" doc:"A system text before the conversation."`

	StreamOptions   *responseStreamOptions `json:"stream_options" doc:"Only with stream."`
	MaxOutputTokens *int64                 `json:"max_output_tokens" range:"1..1048576" doc:"Most tokens of the answer. Without it, the model's own default."`

	Text       *textOptions               `json:"text" doc:"The form of the answer; without it plain text."`
	Tools      []responseTool             `json:"tools" items:"0..128" doc:"Functions that the model may ask for."`
	ToolChoice *spec.TextOr[responseCall] `json:"tool_choice" enum:"none|auto|required" doc:"Whether it may, must not or must; or the function that it must. Default auto."`

	PreviousResponseID spec.Refused `json:"previous_response_id" accept:"null"`
	Conversation       spec.Refused `json:"conversation" accept:"null"`
	Background         spec.Refused `json:"background" accept:"null|false"`
	Include            spec.Refused `json:"include" accept:"null|[]"`
	MaxToolCalls       spec.Refused `json:"max_tool_calls" accept:"null"`
	TopLogprobs        spec.Refused `json:"top_logprobs" accept:"null|0"`
	Reasoning          spec.Refused `json:"reasoning" accept:"null|{}"`
	Truncation         spec.Refused `json:"truncation" accept:"null|\"disabled\""`
	Prompt             spec.Refused `json:"prompt" accept:"null"`
	ContextManagement  spec.Refused `json:"context_management" accept:"null|[]"`
}

type responseStreamOptions struct {
	IncludeObfuscation spec.Refused `json:"include_obfuscation" accept:"null|false"`
}

type textOptions struct {
	Format    *textFormat  `json:"format" doc:"Text or JSON."`
	Verbosity spec.Refused `json:"verbosity" accept:"null|\"medium\""`
}

type textFormat struct {
	Type        string    `json:"type" required:"true" enum:"text|json_object|json_schema" doc:"What form the answer must have."`
	Name        string    `json:"name" maxlen:"64" doc:"Of a json_schema: your name for it."`
	Description string    `json:"description" maxlen:"4096" doc:"Not shown to the model."`
	Schema      spec.JSON `json:"schema" doc:"Of a json_schema, which needs it: an object."`
	Strict      bool      `json:"strict" doc:"Refuse keywords that cannot be enforced; without it they are passed over."`
}

type responseTool struct {
	Type        string    `json:"type" required:"true" enum:"function" doc:"What kind of tool."`
	Name        string    `json:"name" required:"true" maxlen:"64" doc:"Letters, digits, _ and -."`
	Description string    `json:"description" maxlen:"16384" doc:"What it does, for the model."`
	Parameters  spec.JSON `json:"parameters" doc:"JSON schema of the arguments; without it there are none."`
	Strict      bool      `json:"strict" doc:"Refuse keywords of parameters that cannot be enforced, when a call is."`
}

type responseCall struct {
	Type string `json:"type" required:"true" enum:"function" doc:"What kind of tool."`
	Name string `json:"name" required:"true" maxlen:"64" doc:"The function to call."`
}

type inputItem struct {
	Type    string                    `json:"type" enum:"message|function_call|function_call_output" doc:"What the item is; without it a message."`
	Role    string                    `json:"role" enum:"system|developer|user|assistant" doc:"Of a message: who speaks."`
	Content *spec.TextOr[[]inputPart] `json:"content" items:"1..256" doc:"Of a message: text, or parts."`

	CallID    string                    `json:"call_id" maxlen:"256" doc:"Of a call and of its output: the call's id."`
	Name      string                    `json:"name" maxlen:"64" doc:"Of a call: the function's name."`
	Arguments string                    `json:"arguments" doc:"Of a call: a JSON object, as text."`
	Output    *spec.TextOr[[]inputPart] `json:"output" items:"1..256" doc:"Of a call's output: what the function gave."`

	ID     string `json:"id" maxlen:"256" doc:"As replies have it; nothing is looked up."`
	Status string `json:"status" enum:"in_progress|completed|incomplete" doc:"As replies have it; nothing depends on it."`
}

type inputPart struct {
	Type     string  `json:"type" required:"true" enum:"input_text|output_text|input_image" doc:"Which of the fields below the part has."`
	Text     *string `json:"text" doc:"Of a text part."`
	ImageURL *string `json:"image_url" doc:"Of an input_image part: data:image/…;base64,…; http(s) and file URLs as the server allows."`

	Detail      spec.Refused `json:"detail" accept:"null|\"auto\""`
	FileID      spec.Refused `json:"file_id" accept:"null"`
	Annotations spec.Refused `json:"annotations" accept:"null|[]"`
	Logprobs    spec.Refused `json:"logprobs" accept:"null|[]"`
}

func (q *responsesRequest) size() (choices, tokens int) { return 1, int(valueOf(q.MaxOutputTokens)) }

// request checks what the types cannot say, gets the pictures and returns the engine's request.
func (s *Server) responsesOf(ctx context.Context, q *responsesRequest) (engine.Request, answerReader, error) {
	var r engine.Request
	sampling := chatRequest{conversationRequest: q.conversationRequest}
	r.Sampling = sampling.sampling()
	if q.MaxOutputTokens != nil {
		r.MaxTokens = int(*q.MaxOutputTokens)
	}
	if q.StreamOptions != nil && !q.Stream {
		return r, answerReader{}, invalid("stream_options", spec.CodeValue, "stream_options is only allowed with stream: true")
	}
	var err error
	if r.Constraint, err = q.Text.constraint(); err != nil {
		return r, answerReader{}, err
	}
	reader, err := q.offered().apply(&r)
	if err != nil {
		return r, reader, err
	}
	r.Messages, err = s.inputMessages(ctx, q)
	return r, reader, err
}

func (t *textOptions) constraint() (*engine.Constraint, error) {
	if t == nil || t.Format == nil {
		return nil, nil
	}
	f := t.Format
	if isSchema := f.Type == "json_schema"; isSchema != (f.Schema != nil) || isSchema != (f.Name != "") {
		return nil, invalid("text.format", spec.CodeValue, "text.format: name and schema belong to the type json_schema, which needs both")
	}
	format := &responseFormat{Type: f.Type}
	if f.Schema != nil {
		format.JSONSchema = &jsonSchema{Schema: f.Schema, Strict: f.Strict}
	}
	return format.constraint()
}

func (q *responsesRequest) offered() offer {
	o := offer{choice: "auto", single: q.ParallelToolCalls != nil && !*q.ParallelToolCalls, strict: map[string]bool{}}
	for _, t := range q.Tools {
		o.add(t.Name, t.Description, t.Parameters, t.Strict)
	}
	if q.ToolChoice != nil {
		if o.choice = q.ToolChoice.Text; !q.ToolChoice.IsText {
			o.choice, o.name = "function", q.ToolChoice.Value.Name
		}
	}
	return o
}

// inputMessages turns the input's items into messages; calls that follow one another or an assistant's text are of one message.
func (s *Server) inputMessages(ctx context.Context, q *responsesRequest) ([]engine.Message, error) {
	text := func(role, text string) engine.Message {
		return engine.Message{Role: role, Content: []engine.Part{{Type: engine.PartText, Text: text}}}
	}
	var out []engine.Message
	if q.Instructions != "" {
		out = append(out, text("system", q.Instructions))
	}
	if q.Input.IsText {
		return append(out, text("user", q.Input.Text)), nil
	}
	pictures := 0
	for i, item := range q.Input.Value {
		path := fmt.Sprintf("input[%d]", i)
		m, err := s.inputMessage(ctx, path, item, &pictures)
		if err != nil {
			return nil, err
		}
		if last := len(out) - 1; item.Type == "function_call" && last >= 0 && out[last].Role == "assistant" {
			out[last].ToolCalls = append(out[last].ToolCalls, m.ToolCalls...)
			continue
		}
		out = append(out, m)
	}
	return out, nil
}

// inputMessage is one item.
func (s *Server) inputMessage(ctx context.Context, path string, item inputItem, pictures *int) (engine.Message, error) {
	kind := item.Type
	if kind == "" {
		kind = "message"
	}
	var m engine.Message
	if err := item.check(path, kind); err != nil {
		return m, err
	}
	content, field := item.Content, ".content"
	switch kind {
	case "function_call":
		arguments := argumentsObject(json.RawMessage(item.Arguments))
		if arguments == nil {
			return m, invalid(path+".arguments", spec.CodeValue, path+".arguments must be a JSON object as text")
		}
		call := engine.ToolCall{ID: item.CallID, Name: item.Name, Arguments: arguments}
		return engine.Message{Role: "assistant", ToolCalls: []engine.ToolCall{call}}, nil
	case "function_call_output":
		m.Role, m.ToolCallID = "tool", item.CallID
		content, field = item.Output, ".output"
	default:
		if m.Role = item.Role; m.Role == "developer" {
			m.Role = "system"
		}
	}
	if content.IsText {
		m.Content = []engine.Part{{Type: engine.PartText, Text: content.Text}}
		return m, nil
	}
	for j, p := range content.Value {
		part, err := s.inputPart(ctx, fmt.Sprintf("%s%s[%d]", path, field, j), p, pictures)
		if err != nil {
			return m, err
		}
		m.Content = append(m.Content, part)
	}
	return m, nil
}

// check says which fields belong to an item of a kind: all of them, and no other.
func (item *inputItem) check(path, kind string) error {
	for _, f := range []struct {
		name  string
		there bool
		kinds string
	}{
		{"role", item.Role != "", "message"}, {"content", item.Content != nil, "message"},
		{"call_id", item.CallID != "", "function_call function_call_output"}, {"name", item.Name != "", "function_call"},
		{"arguments", item.Arguments != "", "function_call"}, {"output", item.Output != nil, "function_call_output"},
	} {
		belongs := false
		for _, k := range strings.Fields(f.kinds) {
			belongs = belongs || k == kind
		}
		at := path + "." + f.name
		switch {
		case belongs && !f.there:
			return invalid(at, spec.CodeMissing, at+" is required")
		case !belongs && f.there:
			return invalid(at, spec.CodeValue, fmt.Sprintf("%s does not belong to an item of type %s", at, kind))
		}
	}
	return nil
}

func (s *Server) inputPart(ctx context.Context, path string, p inputPart, pictures *int) (engine.Part, error) {
	isImage := p.Type == "input_image"
	if (p.ImageURL != nil) != isImage || (p.Text != nil) == isImage {
		return engine.Part{}, invalid(path, spec.CodeValue, fmt.Sprintf("%s: a text part has the field text and no other, a part of type input_image has image_url", path))
	}
	if !isImage {
		return engine.Part{Type: engine.PartText, Text: *p.Text}, nil
	}
	if *pictures++; *pictures > s.limits.Pictures {
		return engine.Part{}, invalid(path, spec.CodeValue, fmt.Sprintf("%s: a request may have at most %d pictures on this server", path, s.limits.Pictures))
	}
	picture, err := s.picture(ctx, path+".image_url", *p.ImageURL)
	if err != nil {
		return engine.Part{}, err
	}
	return engine.Part{Type: engine.PartImage, Picture: picture}, nil
}

// responsesNames are what this endpoint calls the fields that the engine names after chat completions.
var responsesNames = map[string]string{"messages": "input", "response_format": "text.format", "max_tokens": "max_output_tokens"}

// asResponses names the field of an engine's error as this endpoint does. Which item of the input it was is left out: the
// engine's messages are not the request's items one to one.
func asResponses(err error) error {
	var request *engine.RequestError
	if !errors.As(err, &request) {
		return err
	}
	name, _, _ := strings.Cut(request.Param, "[")
	if other, ok := responsesNames[name]; ok {
		renamed := *request
		renamed.Param = other
		return &renamed
	}
	return err
}

// What chat requests say about tools and the form of an answer.

package server

import (
	"encoding/json"
	"fmt"

	"glimpse/engine"
	"glimpse/server/spec"
)

type responseFormat struct {
	Type       string      `json:"type" required:"true" enum:"text|json_object|json_schema" doc:"What form the answer must have."`
	JSONSchema *jsonSchema `json:"json_schema" doc:"Of the type json_schema."`
}

type jsonSchema struct {
	Name        string    `json:"name" required:"true" maxlen:"64" doc:"Your name for it."`
	Description string    `json:"description" maxlen:"4096" doc:"Not shown to the model."`
	Schema      spec.JSON `json:"schema" required:"true" doc:"The JSON schema, an object."`
	Strict      bool      `json:"strict" doc:"Refuse keywords that cannot be enforced; without it they are passed over."`
}

type tool struct {
	Type     string   `json:"type" required:"true" enum:"function" doc:"What kind of tool."`
	Function function `json:"function" required:"true" doc:"The function."`
}

type function struct {
	Name        string    `json:"name" required:"true" maxlen:"64" doc:"Letters, digits, _ and -."`
	Description string    `json:"description" maxlen:"16384" doc:"What it does, for the model."`
	Parameters  spec.JSON `json:"parameters" doc:"JSON schema of the arguments; without it there are none."`
	Strict      bool      `json:"strict" doc:"Refuse keywords of parameters that cannot be enforced, when a call is."`
}

type toolChoice struct {
	Type     string       `json:"type" required:"true" enum:"function" doc:"What kind of tool."`
	Function functionName `json:"function" required:"true" doc:"The function to call."`
}

type functionName struct {
	Name string `json:"name" required:"true" maxlen:"64" doc:"Its name."`
}

// messageCall is a call in an assistant's message.
type messageCall struct {
	ID       string       `json:"id" required:"true" maxlen:"256" doc:"The call's id, which its result names."`
	Type     string       `json:"type" required:"true" enum:"function" doc:"What kind of tool."`
	Function calledByName `json:"function" required:"true" doc:"What was called."`
}

type calledByName struct {
	Name      string `json:"name" required:"true" maxlen:"64" doc:"The function's name."`
	Arguments string `json:"arguments" required:"true" doc:"A JSON object, as text."`
}

// offer is what a request says about tools.
type offer struct {
	tools  []engine.Tool
	strict map[string]bool
	choice string // "none", "auto", "required", or "function" with name
	name   string
	single bool
}

// offered reads the tools of a chat request.
func (q *chatRequest) offered() offer {
	o := offer{choice: "auto", single: q.ParallelToolCalls != nil && !*q.ParallelToolCalls, strict: map[string]bool{}}
	for _, t := range q.Tools {
		f := t.Function
		o.add(f.Name, f.Description, f.Parameters, f.Strict)
	}
	if q.ToolChoice != nil {
		if o.choice = q.ToolChoice.Text; !q.ToolChoice.IsText {
			o.choice, o.name = "function", q.ToolChoice.Value.Function.Name
		}
	}
	return o
}

func (o *offer) add(name, description string, parameters spec.JSON, strict bool) {
	o.tools = append(o.tools, engine.Tool{Name: name, Description: description, Parameters: json.RawMessage(parameters)})
	o.strict[name] = strict
}

// apply puts the offer into an engine's request and returns how its answer is to be read.
func (o offer) apply(r *engine.Request) (answerReader, error) {
	if len(o.tools) == 0 && (o.choice == "required" || o.choice == "function") {
		return answerReader{}, invalid("tool_choice", spec.CodeValue, "tool_choice asks for a call and there are no tools")
	}
	if len(o.tools) == 0 || o.choice == "none" {
		return answerReader{}, nil // the model is not told about tools that it must not call
	}
	r.Tools = o.tools
	reader := answerReader{tools: map[string]bool{}, single: o.single}
	var callable []engine.Tool
	strict := false
	for _, t := range o.tools {
		if o.choice == "function" && t.Name != o.name {
			continue
		}
		callable, strict = append(callable, t), strict || o.strict[t.Name]
		reader.tools[t.Name] = true
	}
	if len(callable) == 0 {
		return answerReader{}, invalid("tool_choice", spec.CodeValue, fmt.Sprintf("tool_choice names the function %.64q, which is not among the tools", o.name))
	}
	if o.choice == "auto" {
		return reader, nil
	}
	if r.Constraint != nil {
		return answerReader{}, invalid("response_format", spec.CodeValue, "an answer that must be a call cannot have a response_format as well")
	}
	constraint, err := engine.CallConstraint(callable, strict)
	if err != nil {
		return answerReader{}, err
	}
	r.Constraint, reader.forced = constraint, true
	return reader, nil
}

// anyObject is what json_object asks for.
const anyObject = `{"type":"object"}`

// constraint is what a response_format asks for; nil: nothing.
func (f *responseFormat) constraint() (*engine.Constraint, error) {
	if f == nil {
		return nil, nil
	}
	if (f.JSONSchema != nil) != (f.Type == "json_schema") {
		return nil, invalid("response_format.json_schema", spec.CodeValue, "response_format.json_schema belongs to the type json_schema, which needs it")
	}
	switch f.Type {
	case "json_object":
		return &engine.Constraint{Schema: []byte(anyObject)}, nil
	case "json_schema":
		return &engine.Constraint{Schema: f.JSONSchema.Schema, Lenient: !f.JSONSchema.Strict}, nil
	}
	return nil, nil
}

// toolMessage checks what a message has to do with tools and returns its calls.
func toolMessage(path string, m chatMessage) ([]engine.ToolCall, error) {
	switch {
	case m.Content == nil && len(m.ToolCalls) == 0:
		return nil, invalid(path+".content", spec.CodeMissing, path+".content is required")
	case len(m.ToolCalls) > 0 && m.Role != "assistant":
		return nil, invalid(path+".tool_calls", spec.CodeValue, path+".tool_calls belongs to the role assistant")
	case (m.ToolCallID != "") != (m.Role == "tool"):
		return nil, invalid(path+".tool_call_id", spec.CodeValue, path+".tool_call_id belongs to the role tool, which needs it")
	}
	return callsOf(path, m)
}

// callsOf are the calls of an assistant's message.
func callsOf(path string, m chatMessage) ([]engine.ToolCall, error) {
	var out []engine.ToolCall
	for i, c := range m.ToolCalls {
		arguments := argumentsObject(json.RawMessage(c.Function.Arguments))
		if arguments == nil {
			at := fmt.Sprintf("%s.tool_calls[%d].function.arguments", path, i)
			return nil, invalid(at, spec.CodeValue, at+" must be a JSON object as text")
		}
		out = append(out, engine.ToolCall{ID: c.ID, Name: c.Function.Name, Arguments: arguments})
	}
	return out, nil
}

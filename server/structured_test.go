package server

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	openai "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/shared"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Random weights say nothing of sense, so whatever is valid here is the constraint's work.

var pictureSchema = map[string]any{
	"type": "object",
	"properties": map[string]any{
		"shape": map[string]any{"enum": []any{"circle", "square"}},
		"count": map[string]any{"type": "integer", "minimum": 0, "maximum": 9},
		"words": map[string]any{"type": "array", "maxItems": 2, "items": map[string]any{"$ref": "#/$defs/word"}},
	},
	"required": []any{"shape", "count", "words"}, "additionalProperties": false,
	"$defs": map[string]any{"word": map[string]any{"type": "string", "maxLength": 5}},
}

func mustBe(t *testing.T, schema map[string]any, text string) {
	t.Helper()
	raw, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:s", doc); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("mem:s")
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Errorf("%q: %v", text, err)
	} else if err := compiled.Validate(v); err != nil {
		t.Errorf("%q: %v", text, err)
	}
}

// chatBoth asks at once and as a stream and returns both answers.
func chatBoth(t *testing.T, c *openai.Client, params openai.ChatCompletionNewParams) []openai.ChatCompletionChoice {
	t.Helper()
	whole, err := c.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	stream := c.Chat.Completions.NewStreaming(t.Context(), params)
	var sum openai.ChatCompletionAccumulator
	for stream.Next() {
		if !sum.AddChunk(stream.Current()) {
			t.Errorf("the client cannot add %s", stream.Current().RawJSON())
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return []openai.ChatCompletionChoice{whole.Choices[0], sum.Choices[0]}
}

func TestStructuredOutputsOfARealModel(t *testing.T) {
	base, _ := start(t, Options{Models: []Model{tinyEngine(t)}})
	c := client(t, base)
	word := func() openai.ChatCompletionNewParams {
		p := ask("Describe the picture.")
		p.MaxTokens = openai.Int(500)
		return p
	}
	var wait sync.WaitGroup
	for _, temperature := range []float64{0, 1} {
		wait.Go(func() {
			p := word()
			p.Temperature, p.Seed = openai.Float(temperature), openai.Int(3)
			p.ResponseFormat = openai.ChatCompletionNewParamsResponseFormatUnion{OfJSONSchema: &shared.ResponseFormatJSONSchemaParam{
				JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "picture", Schema: pictureSchema, Strict: openai.Bool(true)}}}
			got := chatBoth(t, c, p)
			for _, choice := range got {
				mustBe(t, pictureSchema, choice.Message.Content)
				if choice.FinishReason != "stop" {
					t.Errorf("ended with %q", choice.FinishReason)
				}
			}
			if got[0].Message.Content != got[1].Message.Content {
				t.Errorf("%q, streamed %q", got[0].Message.Content, got[1].Message.Content)
			}
		})
	}
	wait.Go(func() {
		p := word()
		p.MaxTokens = openai.Int(40)
		p.ResponseFormat = openai.ChatCompletionNewParamsResponseFormatUnion{OfJSONObject: &shared.ResponseFormatJSONObjectParam{}}
		for _, choice := range chatBoth(t, c, p) {
			text := strings.TrimSpace(choice.Message.Content)
			if valid := json.Valid([]byte(text)); !strings.HasPrefix(text, "{") || valid != (choice.FinishReason == "stop") {
				t.Errorf("%q ended with %q", text, choice.FinishReason)
			}
		}
	})
	wait.Wait()
}

func TestToolCallsOfARealModel(t *testing.T) {
	base, _ := start(t, Options{Models: []Model{tinyEngine(t)}})
	c := client(t, base)
	tools := []openai.ChatCompletionToolUnionParam{
		openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "look", Description: openai.String("Looks."), Parameters: pictureSchema, Strict: openai.Bool(true)}),
		openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "stop"}),
	}
	none := map[string]any{"type": "object", "additionalProperties": false}
	for name, choice := range map[string]openai.ChatCompletionToolChoiceOptionUnionParam{
		"required": {OfAuto: openai.String("required")},
		"look":     openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "look"}),
		"stop":     openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "stop"}),
	} {
		p := ask("What is there?")
		p.MaxTokens, p.Tools, p.ToolChoice = openai.Int(500), tools, choice
		var first string
		for i, got := range chatBoth(t, c, p) {
			if len(got.Message.ToolCalls) != 1 || got.FinishReason != "tool_calls" || got.Message.Content != "" {
				t.Fatalf("%s: %s", name, got.RawJSON())
			}
			call := got.Message.ToolCalls[0]
			if !strings.HasPrefix(call.ID, "call_") || call.Type != "function" || name != "required" && call.Function.Name != name {
				t.Errorf("%s: %+v", name, call)
			}
			if call.Function.Name == "look" {
				mustBe(t, pictureSchema, call.Function.Arguments)
			} else {
				mustBe(t, none, call.Function.Arguments)
			}
			if said := call.Function.Name + call.Function.Arguments; i == 0 {
				first = said
			} else if said != first {
				t.Errorf("%s: %q, streamed %q", name, first, said)
			}
			// The conversation goes on with the call and its result.
			next := ask("What is there?")
			next.MaxTokens, next.Tools = openai.Int(8), tools
			next.Messages = append(next.Messages, got.Message.ToParam(), openai.ToolMessage("a circle", call.ID))
			if i == 0 {
				if _, err := c.Chat.Completions.New(t.Context(), next); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

func TestSchemasThatAreRefused(t *testing.T) {
	h := handler(t, Options{Models: []Model{tinyEngine(t)}})
	const unique = `{"type":"array","uniqueItems":true,"maxItems":1,"items":{"type":"boolean"}}`
	ask := func(more string) (int, string) {
		w := post(h, "/v1/chat/completions", "application/json", `{"model":"tiny","max_tokens":30,"messages":[{"role":"user","content":"x"}],`+more+`}`)
		return w.Code, w.Body.String()
	}
	format := func(strict, schema string) string {
		return `"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":` + strict + `,"schema":` + schema + `}}`
	}
	if code, body := ask(format("true", unique)); code != 400 || !strings.Contains(body, `"param":"response_format"`) || !strings.Contains(body, "uniqueItems") {
		t.Error(code, body)
	}
	if code, body := ask(format("false", unique)); code != 200 {
		t.Error(code, body)
	}
	tool := `"tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{"type":"object","properties":{"a":` + unique + `}}}}],"tool_choice":"required"`
	if code, body := ask(tool); code != 400 || !strings.Contains(body, `"param":"tools"`) {
		t.Error(code, body)
	}
	if code, body := ask(`"logit_bias":{"999999":1}`); code != 400 || !strings.Contains(body, "logit_bias") {
		t.Error(code, body)
	}
}

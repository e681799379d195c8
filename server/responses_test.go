package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	openai "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/responses"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// responsesOnly returns a way to post to a server over a fake model.
func responsesOnly(t *testing.T, fake *fakeModel) func(body string) (int, string) {
	h := handler(t, Options{Models: []Model{fake}, Limits: Limits{Pictures: 2}})
	return func(body string) (int, string) {
		w := post(h, "/v1/responses", "application/json", body)
		return w.Code, w.Body.String()
	}
}

func TestResponsesReachTheModel(t *testing.T) {
	fake := newFake("tiny")
	ask := responsesOnly(t, fake)
	code, body := ask(`{"model":"tiny","instructions":"Be brief.","max_output_tokens":9,"temperature":0.5,"store":false,"input":[
		{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,YWJj","detail":"auto"},{"type":"input_text","text":"What?"}]},
		{"type":"message","id":"msg_1","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Look.","annotations":[],"logprobs":[]}]},
		{"type":"function_call","id":"fc_1","status":"completed","call_id":"c1","name":"f","arguments":"{\"a\":1}"},
		{"type":"function_call","call_id":"c2","name":"f","arguments":"{}"},
		{"type":"function_call_output","call_id":"c1","output":"one"},
		{"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"two"}]}],
		"tools":[{"type":"function","name":"f","parameters":{"type":"object"},"strict":true}]}`)
	if code != 200 {
		t.Fatal(body)
	}
	r := fake.last(t)
	var have []string
	for _, m := range r.Messages {
		line := m.Role + m.ToolCallID
		for _, p := range m.Content {
			if line += " " + p.Type + " " + p.Text; p.Picture != nil {
				line += string(p.Picture.Data)
			}
		}
		for _, c := range m.ToolCalls {
			line += fmt.Sprintf(" %s=%s%s", c.ID, c.Name, c.Arguments)
		}
		have = append(have, line)
	}
	want := "system text Be brief.|user image abc text What?|assistant text Look. c1=f{\"a\":1} c2=f{}|toolc1 text one|toolc2 text two"
	if strings.Join(have, "|") != want || r.MaxTokens != 9 || r.Temperature != 0.5 || len(r.Tools) != 1 {
		t.Errorf("%s\n%+v", strings.Join(have, "|"), r)
	}
	for _, part := range []string{`"object":"response"`, `"status":"completed"`, `"instructions":"Be brief."`, `"store":false`, `"image_tokens":4`,
		`"output":[{"id":"msg_`, `"tools":[{"description":null,"name":"f","parameters":{"type":"object"},"strict":true,"type":"function"}]`} {
		if !strings.Contains(body, part) {
			t.Errorf("no %s in %s", part, body)
		}
	}
}

func TestBadResponses(t *testing.T) {
	fake := newFake("tiny")
	ask := responsesOnly(t, fake)
	item := func(item string) string { return `{"model":"tiny","input":[` + item + `]}` }
	with := func(more string) string { return `{"model":"tiny","input":"x",` + more + `}` }
	const picture = `{"type":"input_image","image_url":"data:image/png;base64,YWJj"}`
	for _, c := range []struct{ body, param, says string }{
		{`{"model":"tiny"}`, "input", "required"},
		{item(``), "input", "at least 1"},
		{item(`{"role":"user"}`), "input[0].content", "required"},
		{item(`{"content":"x"}`), "input[0].role", "required"},
		{item(`{"role":"user","content":"x","name":"f"}`), "input[0].name", "does not belong"},
		{item(`{"type":"item_reference","id":"msg_1"}`), "input[0].type", "supported: message"},
		{item(`{"type":"function_call","call_id":"c","name":"f","arguments":"[]"}`), "input[0].arguments", "JSON object"},
		{item(`{"type":"function_call","call_id":"c","arguments":"{}"}`), "input[0].name", "required"},
		{item(`{"type":"function_call_output","output":"x"}`), "input[0].call_id", "required"},
		{item(`{"role":"user","content":[{"type":"input_file"}]}`), "input[0].content[0].type", "input_text"},
		{item(`{"role":"user","content":[{"type":"input_text","image_url":"x"}]}`), "input[0].content[0]", "text"},
		{item(`{"role":"user","content":[{"type":"input_image","image_url":"x","file_id":"f"}]}`), "input[0].content[0].file_id", "not supported"},
		{item(`{"role":"user","content":[{"type":"input_image","image_url":"file:///etc/passwd"}]}`), "input[0].content[0].image_url", ""},
		{item(`{"role":"user","content":[` + picture + `,` + picture + `,` + picture + `]}`), "input[0].content[2]", "at most 2"},
		{with(`"previous_response_id":"resp_1"`), "previous_response_id", "not supported"},
		{with(`"store":true`), "store", "not supported"},
		{with(`"background":true`), "background", "not supported"},
		{with(`"conversation":"c"`), "conversation", "not supported"},
		{with(`"reasoning":{"effort":"low"}`), "reasoning", "not supported"},
		{with(`"tools":[{"type":"web_search"}]`), "tools[0].type", "supported: function"},
		{with(`"tool_choice":"required"`), "tool_choice", "no tools"},
		{with(`"text":{"format":{"type":"json_schema","name":"n"}}`), "text.format", "needs both"},
		{with(`"text":{"format":{"type":"text","schema":{}}}`), "text.format", "belong"},
		{with(`"stream_options":{}`), "stream_options", "stream: true"},
		{with(`"max_tokens":3`), "max_tokens", "unknown"},
	} {
		code, body := ask(c.body)
		var failed errorBody
		if err := json.Unmarshal([]byte(body), &failed); err != nil || code/100 != 4 || text(failed.Error.Param) != c.param || !strings.Contains(failed.Error.Message, c.says) {
			t.Errorf("%s: %d %s", c.body, code, body)
		}
	}
	if len(fake.requests) > 0 {
		t.Errorf("the model was asked %d times", len(fake.requests))
	}
}

// An event of a stream is what /openapi.json says; so is the reply.
func TestResponsesConform(t *testing.T) {
	h := handler(t, Options{Models: []Model{newFake("tiny")}})
	doc, err := jsonschema.UnmarshalJSON(get(h, "/openapi.json").Body)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:openapi", doc); err != nil {
		t.Fatal(err)
	}
	check := func(pointer string, raw []byte) {
		t.Helper()
		schema, err := c.Compile("mem:openapi#/paths/~1v1~1responses/post" + pointer)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err == nil {
			err = schema.Validate(v)
		}
		if err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
	const tools = `"tools":[{"type":"function","name":"f"}],"text":{"format":{"type":"text"}},"tool_choice":"auto",`
	for _, input := range []string{`"one two"`, `"{\"name\":\"f\",\"arguments\":{}}"`} {
		request := `{"model":"tiny",` + tools + `"input":` + input + `}`
		check("/requestBody/content/application~1json/schema", []byte(request))
		check("/responses/200/content/application~1json/schema", post(h, "/v1/responses", "application/json", request).Body.Bytes())
		stream := post(h, "/v1/responses", "application/json", `{"stream":true,`+request[1:]).Body.String()
		for i, event := range strings.Split(strings.TrimSpace(stream), "\n\n") {
			name, data, ok := strings.Cut(event, "\ndata: ")
			var e struct {
				Type     string
				Sequence int `json:"sequence_number"`
			}
			if err := json.Unmarshal([]byte(data), &e); err != nil || !ok || name != "event: "+e.Type || e.Sequence != i {
				t.Errorf("event %d: %s", i, event)
			}
			check("/responses/200/content/text~1event-stream/x-event-schema", []byte(data))
		}
	}
}

func TestResponsesThatFailLate(t *testing.T) {
	fake := newFake("tiny")
	ask := responsesOnly(t, fake)
	fake.eachWord = func(_ context.Context, word int) error {
		if word == 1 {
			return errors.New("secret detail")
		}
		return nil
	}
	_, body := ask(`{"model":"tiny","input":"one two three","stream":true}`)
	if !strings.Contains(body, "event: error\n") || strings.Contains(body, "response.completed") || strings.Contains(body, "secret") {
		t.Error(body)
	}
	if code, body := ask(`{"model":"tiny","input":"one two three"}`); code != 500 {
		t.Error(body)
	}
}

// OpenAI's client over a real model with random weights: text, JSON, a call, each at once and streamed.
func TestClientResponses(t *testing.T) {
	base, _ := start(t, Options{Models: []Model{tinyEngine(t)}})
	c := client(t, base)
	params := func() responses.ResponseNewParams {
		return responses.ResponseNewParams{Model: "tiny", MaxOutputTokens: openai.Int(500), Store: openai.Bool(false),
			Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Describe the picture.")}}
	}
	structured := params()
	structured.Text = responses.ResponseTextConfigParam{Format: responses.ResponseFormatTextConfigUnionParam{
		OfJSONSchema: &responses.ResponseFormatTextJSONSchemaConfigParam{Name: "picture", Schema: pictureSchema, Strict: openai.Bool(true)}}}
	calling := params()
	calling.Tools = []responses.ToolUnionParam{{OfFunction: &responses.FunctionToolParam{Name: "look", Parameters: pictureSchema, Strict: openai.Bool(true)}}}
	calling.ToolChoice = responses.ResponseNewParamsToolChoiceUnion{OfFunctionTool: &responses.ToolChoiceFunctionParam{Name: "look"}}
	short := params()
	short.MaxOutputTokens = openai.Int(3)

	for name, p := range map[string]responses.ResponseNewParams{"structured": structured, "calling": calling, "short": short} {
		whole, err := c.Responses.New(t.Context(), p)
		if err != nil {
			t.Fatal(name, err)
		}
		stream := c.Responses.NewStreaming(t.Context(), p)
		var deltas strings.Builder
		var types []string
		var last responses.Response
		for stream.Next() {
			e := stream.Current()
			if types = append(types, e.Type); strings.HasSuffix(e.Type, ".delta") {
				deltas.WriteString(e.Delta)
			}
			last = e.Response
		}
		if err := stream.Err(); err != nil {
			t.Fatal(name, err)
		}
		if types[0] != "response.created" || types[1] != "response.in_progress" || types[2] != "response.output_item.added" || types[len(types)-2] != "response.output_item.done" {
			t.Errorf("%s: %v", name, types)
		}
		for _, r := range []responses.Response{*whole, last} {
			item := r.Output[0]
			said := r.OutputText()
			switch name {
			case "structured":
				mustBe(t, pictureSchema, said)
			case "calling":
				said = item.Arguments.OfString
				if item.Type != "function_call" || item.Name != "look" || item.CallID == "" {
					t.Errorf("%s", item.RawJSON())
				}
				mustBe(t, pictureSchema, said)
			case "short":
				if r.Status != "incomplete" || r.IncompleteDetails.Reason != "max_output_tokens" || r.Usage.OutputTokens != 3 {
					t.Errorf("%s", r.RawJSON())
				}
			}
			if name != "short" && r.Status != "completed" || said != deltas.String() {
				t.Errorf("%s is %q, its deltas %q", r.Status, said, deltas.String())
			}
		}
	}
	bad := params()
	bad.Text = responses.ResponseTextConfigParam{Format: responses.ResponseFormatTextConfigUnionParam{
		OfJSONSchema: &responses.ResponseFormatTextJSONSchemaConfigParam{Name: "n", Schema: map[string]any{"type": "array", "uniqueItems": true}, Strict: openai.Bool(true)}}}
	var api *openai.Error
	if _, err := c.Responses.New(t.Context(), bad); !errors.As(err, &api) || api.Param != "text.format" {
		t.Error(err)
	}
}

package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var weather = Tool{Name: "weather", Description: "Weather <now> of a place.", Parameters: json.RawMessage(
	`{"type":"object","properties":{"place":{"$ref":"#/$defs/p"},"day":{"type":"string"}},"$defs":{"p":{"enum":["</s>","Rome"]}}}`)}

// conversation is a call and its result.
func conversation() []Message {
	text := func(s string) []Part { return []Part{{Type: PartText, Text: s}} }
	return []Message{
		{Role: "user", Content: text("How is it in Rome?")},
		{Role: "assistant", ToolCalls: []ToolCall{{ID: "c1", Name: "weather", Arguments: json.RawMessage(`{"place":"Rome"}`)}}},
		{Role: "tool", ToolCallID: "c1", Content: text("sunny")},
		{Role: "user", Content: text("And tomorrow?")},
	}
}

func TestTemplatesThatKnowToolsGetThem(t *testing.T) {
	// As the released templates of the field do it.
	p := testPrompter(t, `{% if tools %}TOOLS{% for tool in tools %} {{ tool | tojson }}{% endfor %}{{ '\n' }}{% endif %}{% for message in messages %}{{ message.role }}:{% if message.content is string %}{{ message.content }}{% else %}{% for c in message.content %}{{ c.text }}{% endfor %}{% endif %}{% for call in message.tool_calls %}<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}{{ message.tool_call_id }}{{ '\n' }}{% endfor %}`, nil)
	plan, err := p.plan(Request{Messages: conversation(), Tools: []Tool{weather}})
	if err != nil {
		t.Fatal(err)
	}
	want := `TOOLS {"type": "function", "function": {"name": "weather", "description": "Weather <now> of a place.", "parameters": {"type": "object", "properties": {"place": {"$ref": "#/$defs/p"}, "day": {"type": "string"}}, "$defs": {"p": {"enum": ["</s>", "Rome"]}}}}}
user:How is it in Rome?
assistant:<tool_call>{"name": "weather", "arguments": {"place": "Rome"}}</tool_call>
tool:sunnyc1
user:And tomorrow?
`
	if diff := cmp.Diff(want, plan.shown); diff != "" {
		t.Error(diff)
	}
	// What users wrote in a schema ends no turn.
	if strings.Contains(plan.text, "</s>") {
		t.Error("a special token's name is not covered")
	}
	if _, err := p.plan(Request{Messages: conversation(), Tools: []Tool{{Name: "f", Description: "<image>"}}}); err != nil {
		t.Errorf("the name of a token is only text: %v", err)
	}
}

func TestTemplatesWithoutToolsGetText(t *testing.T) {
	p := testPrompter(t, `{% for message in messages %}{{ message.role }}:{% for c in message.content %}{{ c.text }}{% endfor %}{{ '\n' }}{% endfor %}`, nil)
	plan, err := p.plan(Request{Messages: conversation(), Tools: []Tool{weather}})
	if err != nil {
		t.Fatal(err)
	}
	want := `system:You can call these functions:
{"name":"weather","description":"Weather <now> of a place.","parameters":{"type":"object","properties":{"place":{"$ref":"#/$defs/p"},"day":{"type":"string"}},"$defs":{"p":{"enum":["</s>","Rome"]}}}}
To call one, answer with a JSON object and nothing else: {"name": the function's name, "arguments": an object}.
user:How is it in Rome?
assistant:{"name":"weather","arguments":{"place":"Rome"}}
user:Result of weather: sunny
And tomorrow?
`
	if diff := cmp.Diff(want, plan.shown); diff != "" {
		t.Error(diff)
	}
	// Without tools nothing changes.
	plain, err := p.plan(Request{Messages: conversation()[:1]})
	if err != nil || plain.shown != "user:How is it in Rome?\n" {
		t.Errorf("%q %v", plain.shown, err)
	}
}

func TestCallConstraint(t *testing.T) {
	c, err := CallConstraint([]Tool{{Name: "none"}, weather}, true)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"anyOf":[{"type":"object","properties":{"name":{"const":"none"},"arguments":` + noParameters + `},"required":["name","arguments"],"additionalProperties":false},` +
		`{"type":"object","properties":{"name":{"const":"weather"},"arguments":{"type":"object","properties":{"place":{"$ref":"#/anyOf/1/properties/arguments/$defs/p"},"day":{"type":"string"}},"$defs":{"p":{"enum":["</s>","Rome"]}}}},"required":["name","arguments"],"additionalProperties":false}]}`
	if diff := cmp.Diff(want, string(c.Schema)); diff != "" || c.Lenient {
		t.Error(diff)
	}
	if _, err := CallConstraint([]Tool{{Name: "f", Parameters: json.RawMessage(`{"a"`)}}, true); err == nil {
		t.Error("half a schema was taken")
	}
}

func TestToolsAreChecked(t *testing.T) {
	for _, tools := range [][]Tool{{{Name: ""}}, {{Name: "a b"}}, {{Name: "f"}, {Name: "f"}}, {{Name: "f", Parameters: json.RawMessage(`[]`)}}, make([]Tool, 200)} {
		if checkTools(tools) == nil {
			t.Errorf("%v", tools)
		}
	}
	if checkCalls([]Message{{ToolCalls: []ToolCall{{Name: "f", Arguments: json.RawMessage(`null`)}}}}) == nil {
		t.Error("arguments that are no object")
	}
	if err := checkTools([]Tool{{Name: "get_weather-2"}}); err != nil {
		t.Error(err)
	}
}

func TestMapStringsKeepsTheRest(t *testing.T) {
	in := `{"b":[1,2.50,1e400,true,null,"x",{}],"a":{"c":"x<"}}`
	out, err := mapStrings([]byte(in), func(key, text string) string { return text })
	if diff := cmp.Diff(in, string(out)); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{``, `{`, `{"a"}`, `1 2`, `[1`} {
		if out, err := mapStrings([]byte(bad), func(_, text string) string { return text }); err == nil {
			t.Errorf("%q became %q", bad, out)
		}
	}
}

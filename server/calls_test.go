package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// told is an answer as a client puts it together: its text, and "name arguments" of its calls.
type told struct {
	Text  string
	Calls []string
}

func read(t *testing.T, r answerReader, pieces []string) told {
	t.Helper()
	var out told
	var all []answerPiece
	for _, p := range pieces {
		all = append(all, r.push(p)...)
	}
	for _, p := range append(all, r.finish()...) {
		switch {
		case p.call == nil && p.content == "":
			t.Error("a piece without anything")
		case p.call == nil:
			out.Text += p.content
		case p.call.id != "":
			if p.call.index != len(out.Calls) {
				t.Errorf("call %d has the index %d", len(out.Calls), p.call.index)
			}
			out.Calls = append(out.Calls, p.call.name+" "+p.call.arguments)
		default:
			out.Calls[p.call.index] += p.call.arguments
		}
	}
	if r.calls != len(out.Calls) {
		t.Errorf("%d calls were counted of %d", r.calls, len(out.Calls))
	}
	return out
}

// Each answer is read the same however it is cut into tokens.
func TestAnswersAreReadAsTheyArrive(t *testing.T) {
	tools := map[string]bool{"f": true, "g": true}
	forced := answerReader{tools: tools, forced: true}
	auto := answerReader{tools: tools}
	const f, g = `{"name": "f", "arguments": {"a": {"b": 1}}}`, `{"name":"g","arguments":{}}`
	compact := `f {"a":{"b":1}}`
	for _, c := range []struct {
		reader answerReader
		text   string
		want   told
	}{
		{answerReader{}, f, told{Text: f}},
		{auto, "It is " + f, told{Text: "It is " + f}},
		{auto, f, told{Calls: []string{compact}}},
		{auto, "\n" + f + "\n" + g, told{Calls: []string{compact, "g {}"}}},
		{answerReader{tools: tools, single: true}, f + g, told{Calls: []string{compact}}},
		{auto, "[" + f + ", " + g + "]", told{Calls: []string{compact, "g {}"}}},
		{auto, `{"name":"f","parameters":{"a":2}}`, told{Calls: []string{`f {"a":2}`}}},
		{auto, `{"name":"f","arguments":"{\"a\":2}"}`, told{Calls: []string{`f {"a":2}`}}},
		{auto, "Let me see. <tool_call>\n" + f + "\n</tool_call>\n<tool_call>" + g + "</tool_call>", told{Text: "Let me see. ", Calls: []string{compact, "g {}"}}},
		{auto, "<tool_call>" + g, told{Calls: []string{"g {}"}}},
		{auto, "a < b <tool", told{Text: "a < b <tool"}},
		{auto, "<tool_call>{}</tool_call>", told{Text: "<tool_call>{}</tool_call>"}},
		{auto, `{"name":"h","arguments":{}}`, told{Text: `{"name":"h","arguments":{}}`}},
		{auto, `{"name":"f","arguments":[]}`, told{Text: `{"name":"f","arguments":[]}`}},
		{auto, f + " and so on", told{Text: f + " and so on"}},
		{auto, `{"name": "f", "argu`, told{Text: `{"name": "f", "argu`}},
		{auto, "  ", told{Text: "  "}},
		{auto, "", told{}},
		{forced, f, told{Calls: []string{`f {"a": {"b": 1}}`}}},
		{forced, " {\n \"name\" : \"g\" , \"arguments\" : { } \n} ", told{Calls: []string{"g { }"}}},
		{forced, `{"name": "f", "arguments": {"a": {"b": 1}`, told{Calls: []string{`f {"a": {"b": 1}`}}},
		{forced, `{"name": "f", "arguments": {"a": "}} `, told{Calls: []string{`f {"a": "}}`}}},
		{forced, `{"name": "f"`, told{Text: `{"name": "f"`}},
	} {
		rapid.Check(t, func(rt *rapid.T) {
			var pieces []string
			for rest := c.text; rest != ""; {
				n := rapid.IntRange(1, min(len(rest), 9)).Draw(rt, "cut")
				pieces, rest = append(pieces, rest[:n]), rest[n:]
			}
			if diff := cmp.Diff(c.want, read(t, c.reader, pieces)); diff != "" {
				rt.Fatalf("%q cut into %q (-want +got):\n%s", c.text, pieces, diff)
			}
		})
	}
}

const callTools = `"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]`

// The fake model says what the user said.
func TestToolCallsInReplies(t *testing.T) {
	fake := newFake("tiny")
	h := handler(t, Options{Models: []Model{fake}})
	ask := func(more, text string) string {
		quoted, _ := json.Marshal(text)
		return post(h, "/v1/chat/completions", "application/json", `{"model":"tiny",`+more+`,"messages":[{"role":"user","content":`+string(quoted)+`}]}`).Body.String()
	}
	call := `{"name":"f","arguments":{"x": "a b"}}`
	if body := ask(callTools, call); !strings.Contains(body, `"content":null,"refusal":null,"tool_calls":[{"id":"call_`) ||
		!strings.Contains(body, `"function":{"name":"f","arguments":"{\"x\":\"a b\"}"}`) || !strings.Contains(body, `"finish_reason":"tool_calls"`) {
		t.Error(body)
	}
	if body := ask(callTools+`,"tool_choice":"none"`, call); !strings.Contains(body, `"finish_reason":"stop"`) || strings.Contains(body, "tool_calls") {
		t.Error(body)
	}
	if r := fake.last(t); len(r.Tools) != 0 {
		t.Error("tool_choice none tells the model of tools")
	}
	stream := ask(callTools+`,"stream":true`, call)
	for _, want := range []string{`"delta":{"tool_calls":[{"index":0,"id":"call_`, `"finish_reason":"tool_calls"`} {
		if strings.Count(stream, want) != 1 {
			t.Errorf("no %s in %s", want, stream)
		}
	}
}

func TestToolMessagesReachTheModel(t *testing.T) {
	fake := newFake("tiny")
	h := handler(t, Options{Models: []Model{fake}})
	body := `{"model":"tiny",` + callTools + `,"messages":[{"role":"user","content":"x"},
		{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}]},
		{"role":"tool","tool_call_id":"c1","content":"y"}]}`
	if w := post(h, "/v1/chat/completions", "application/json", body); w.Code != 200 {
		t.Fatal(w.Body)
	}
	got := fake.last(t)
	if have := fmt.Sprintf("%v %s %v", got.Messages[1].ToolCalls[0].Name, got.Messages[1].ToolCalls[0].Arguments, got.Messages[2].ToolCallID); have != `f {"x":1} c1` {
		t.Error(have)
	}
	if len(got.Tools) != 1 || got.Tools[0].Name != "f" || string(got.Tools[0].Parameters) != `{"type":"object"}` || got.Constraint != nil {
		t.Errorf("%+v", got.Tools)
	}
}

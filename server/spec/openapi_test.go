package spec

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

// values are drawn for every field: right for some, wrong for the others.
var values = []any{nil, true, "", "a", "b", "x", "abc", "toolongtext", 0, 1, 2, 4, -1, 0.5, 1.5, []any{}, []any{"x"}, []any{"x", "yz"}, []any{"toolong"}, []any{1}, []any{nil},
	[]any{"x", "y", "z"}, map[string]any{}, map[string]any{"kind": "a"}, map[string]any{"kind": "b", "score": 0.25}, map[string]any{"kind": "c"}, map[string]any{"kind": "a", "score": 2},
	map[string]any{"kind": "a", "more": 1}, map[string]any{"kind": nil}, []any{map[string]any{"kind": "a"}}, []any{map[string]any{"kind": "a"}, map[string]any{}},
	[]any{map[string]any{"kind": "a"}, map[string]any{"kind": "b"}, map[string]any{"kind": "a"}},
	map[string]any{"a": 0.5}, map[string]any{"a": 2}, map[string]any{"a": 0, "b": 1, "c": 1}}

// The schema and the decoder take the same requests.
func TestSchemaAndDecoderAgree(t *testing.T) {
	schema := compile(t, outerSchema.OpenAPI())
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		request := map[string]any{}
		for _, name := range []string{"name", "count", "on", "list", "words", "best", "no", "weights", "free", "unknown"} {
			// Most requests name themselves rightly and hold few fields, or hardly any would be accepted.
			switch {
			case name == "name" && rapid.IntRange(0, 4).Draw(t, "named") > 0:
				request[name] = "n"
			case rapid.IntRange(0, 3).Draw(t, name+" there") == 0:
				request[name] = rapid.SampledFrom(values).Draw(t, name)
			}
		}
		raw, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		bySchema, byDecoder := schema.Validate(v), outerSchema.Decode(raw, &outer{})
		if (bySchema == nil) != (byDecoder == nil) {
			t.Fatalf("%s\nschema: %v\ndecoder: %v", raw, bySchema, byDecoder)
		}
		if byDecoder == nil {
			accepted++
		}
	})
	if accepted == 0 {
		t.Error("no request was accepted: the test compares nothing")
	}
}

func compile(t *testing.T, doc map[string]any) *jsonschema.Schema {
	t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:schema", v); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("mem:schema")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

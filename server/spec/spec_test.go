package spec

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type inner struct {
	Kind  string   `json:"kind" required:"true" enum:"a|b"`
	Score *float64 `json:"score" range:"0..1"`
}

type outer struct {
	Name  string            `json:"name" required:"true" maxlen:"5" doc:"A name."`
	Count *int64            `json:"count" range:"1..3"`
	On    bool              `json:"on"`
	List  []inner           `json:"list" items:"1..2"`
	Words *TextOr[[]string] `json:"words" items:"1..2" maxlen:"3"`
	Best  TextOr[inner]     `json:"best"`
	No    Refused           `json:"no" accept:"null|0|[]|\"x\""`

	Weights map[string]float64 `json:"weights" items:"1..2" range:"0..1"`
	Free    JSON               `json:"free"`
}

var outerSchema = Of[outer]()

func TestDecode(t *testing.T) {
	two, half := int64(2), 0.5
	cases := []struct {
		in   string
		want outer
	}{
		{`{"name":"n"}`, outer{Name: "n"}},
		{` {"name":"n","count":2,"on":true,"list":[{"kind":"a","score":0.5}],"words":["x","yz"],"best":{"kind":"b"},"no":0.0} `,
			outer{Name: "n", Count: &two, On: true, List: []inner{{Kind: "a", Score: &half}}, Words: &TextOr[[]string]{Value: []string{"x", "yz"}}, Best: TextOr[inner]{Value: inner{Kind: "b"}}}},
		{`{"name":"n","words":"abc","best":"t","no":[ ]}`, outer{Name: "n", Words: &TextOr[[]string]{IsText: true, Text: "abc"}, Best: TextOr[inner]{IsText: true, Text: "t"}}},
		{`{"name":"n","count":null,"on":null,"list":null,"words":null,"best":null,"no":"x"}`, outer{Name: "n"}},
		{`{"name":"n","weights":{"a":1,"b":0.5},"free":{"x": [1]}}`, outer{Name: "n", Weights: map[string]float64{"a": 1, "b": 0.5}, Free: JSON(`{"x": [1]}`)}},
		{`{"n\u0061me":"\ud83d\ude00"}`, outer{Name: "😀"}},
	}
	for _, tc := range cases {
		var got outer
		if err := outerSchema.Decode([]byte(tc.in), &got); err != nil {
			t.Errorf("%s: %v", tc.in, err)
		} else if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s:\n%s", tc.in, diff)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	cases := []struct {
		in   string
		want []Problem // without Message
	}{
		{``, []Problem{{Code: CodeSyntax}}},
		{`null`, []Problem{{Code: CodeType}}},
		{`"x"`, []Problem{{Code: CodeType}}},
		{`{"name":"n"`, []Problem{{Code: CodeSyntax}}},
		{`{"name":"n","weights":{"a":2}}`, []Problem{{Param: "weights.a", Code: CodeValue}}},
		{`{"name":"n","weights":{"a":"b"}}`, []Problem{{Param: "weights.a", Code: CodeType}}},
		{`{"name":"n","weights":{"a":1,"a":1}}`, []Problem{{Param: "weights.a", Code: CodeSyntax}}},
		{`{"name":"n","free":"x"}`, []Problem{{Param: "free", Code: CodeType}}},
		{`{"name":"n",}`, []Problem{{Code: CodeSyntax}}},
		{`{"name":"n"}x`, []Problem{{Code: CodeSyntax}}},
		{`{}`, []Problem{{Param: "name", Code: CodeMissing}}},
		{`{"name":"toolong","count":4,"x":{"y":[1]},"words":["a","long"],"no":1}`, []Problem{
			{Param: "name", Code: CodeValue}, {Param: "count", Code: CodeValue}, {Param: "x", Code: CodeUnknown}, {Param: "words[1]", Code: CodeValue}, {Param: "no", Code: CodeUnsupported}}},
		{`{"name":"n","list":[{"kind":"a"},{"kind":"c","score":-1,"z":0}]}`, []Problem{
			{Param: "list[1].kind", Code: CodeValue}, {Param: "list[1].score", Code: CodeValue}, {Param: "list[1].z", Code: CodeUnknown}}},
		{`{"name":"n","list":[{},{},{}]}`, []Problem{{Param: "list[0].kind", Code: CodeMissing}, {Param: "list[1].kind", Code: CodeMissing}, {Param: "list", Code: CodeValue}}},
		{`{"name":"n","name":"m"}`, []Problem{{Param: "name", Code: CodeSyntax}}},
		{`{"name":"n","best":3}`, []Problem{{Param: "best", Code: CodeType}}},
		{`{"name":"n","count":2.0}`, []Problem{{Param: "count", Code: CodeType}}},
		{`{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,"g":0,"h":0,"i":0,"j":0}`, []Problem{
			{Param: "a", Code: CodeUnknown}, {Param: "b", Code: CodeUnknown}, {Param: "c", Code: CodeUnknown}, {Param: "d", Code: CodeUnknown},
			{Param: "e", Code: CodeUnknown}, {Param: "f", Code: CodeUnknown}, {Param: "g", Code: CodeUnknown}, {Param: "h", Code: CodeUnknown}}},
	}
	for _, tc := range cases {
		var got outer
		err := outerSchema.Decode([]byte(tc.in), &got)
		e, ok := err.(*Error)
		if !ok {
			t.Errorf("%s: got %v", tc.in, err)
			continue
		}
		for i := range e.Problems {
			if e.Problems[i].Message == "" {
				t.Errorf("%s: problem %d has no message", tc.in, i)
			}
			e.Problems[i].Message = ""
		}
		if diff := cmp.Diff(tc.want, e.Problems); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.in, diff)
		}
	}
}

// A name as long as the body must not come back in the error.
func TestMessagesAreShort(t *testing.T) {
	for _, in := range []string{`{"` + strings.Repeat("ä\\n", 1<<16) + `":1}`, `{"name":"n","count":` + strings.Repeat("9", 1<<16) + `}`, `{"name":"n","list":[{"kind":"` + strings.Repeat("x", 1<<16) + `"}]}`} {
		err := outerSchema.Decode([]byte(in), &outer{})
		if err == nil || len(err.Error()) > 500 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.20s…: message of %d bytes", in, len(err.Error()))
		}
	}
}

func TestFields(t *testing.T) {
	want := []FieldName{{Name: "name"}, {Name: "count"}, {Name: "on"}, {Name: "list"}, {Name: "list[].kind"}, {Name: "list[].score"}, {Name: "words"},
		{Name: "best"}, {Name: "best.kind"}, {Name: "best.score"}, {Name: "no", Refused: true}, {Name: "weights"}, {Name: "free"}}
	if diff := cmp.Diff(want, outerSchema.Fields()); diff != "" {
		t.Error(diff)
	}
}

// FuzzDecode holds Decode against encoding/json: what it accepts, encoding/json reads too, and to the same values.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{`{"name":"n"}`, `{"name":"n","count":2,"on":true,"list":[{"kind":"a","score":0.5}],"words":["x"],"best":{"kind":"b"},"no":0}`,
		`{"name":"n","words":"abc","best":"t"}`, `{"name":null}`, `{"name":"n",}`, `[]`, `{"name":"\ud800"}`, `{"name":"n","no":[[[[]]]]}`, `{"x":{"y":[{}]}}`} {
		f.Add([]byte(seed))
	}
	type plain struct {
		Name  string          `json:"name"`
		Count *int64          `json:"count"`
		On    bool            `json:"on"`
		List  []inner         `json:"list"`
		Words json.RawMessage `json:"words"`
		Best  json.RawMessage `json:"best"`
		No    any             `json:"no"`
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var got outer
		if err := outerSchema.Decode(raw, &got); err != nil {
			e, ok := err.(*Error)
			if !ok || len(e.Problems) == 0 || len(e.Problems) > maxProblems+1 {
				t.Fatalf("not a list of problems: %v", err)
			}
			return
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		var want plain
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if diff := cmp.Diff(plain{Name: want.Name, Count: want.Count, On: want.On, List: want.List}, plain{Name: got.Name, Count: got.Count, On: got.On, List: got.List}); diff != "" {
			t.Fatal(diff)
		}
	})
}

type shared struct {
	Name string `json:"name" required:"true" doc:"d"`
}

// The fields of an embedded struct are the object's own.
func TestEmbeddedStructs(t *testing.T) {
	s := Of[struct {
		shared
		Count int64 `json:"count"`
	}]()
	var v struct {
		shared
		Count int64 `json:"count"`
	}
	if err := s.Decode([]byte(`{"name":"x","count":3}`), &v); err != nil || v.Name != "x" || v.Count != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	if err := s.Decode([]byte(`{"count":3}`), &v); err == nil {
		t.Error("a required field of an embedded struct may be missing")
	}
	if properties := s.OpenAPI()["properties"].(map[string]any); len(properties) != 2 || properties["name"] == nil {
		t.Errorf("%v", properties)
	}
}

package engine_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"glimpse/engine"
)

const shapeSchema = `{"type":"object","properties":{"shape":{"enum":["circle","square","cross"]},"count":{"type":"integer","minimum":0,"maximum":99},
	"colors":{"type":"array","items":{"type":"string","maxLength":6},"minItems":1,"maxItems":2}},"required":["shape","count","colors"],"additionalProperties":false}`

func validate(t *testing.T, schema, text string) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
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

func constrained(req engine.Request, schema string) engine.Request {
	req.Constraint = &engine.Constraint{Schema: []byte(schema)}
	req.MaxTokens = 600
	return req
}

// The weights are random, so nothing but the masks makes these answers what they are; and a free answer among them is the
// one that it is alone.
func TestConstrainedAnswersInABatch(t *testing.T) {
	e := openTiny(t, engine.Options{Slots: 4})
	free := ask("What is this?", media(t, "tiny_40x30.png"))
	alone := generate(t, e, t.Context(), free)
	schemas := []string{shapeSchema, `{"type":"object","properties":{"x":{"type":"boolean"}},"required":["x"],"additionalProperties":false}`,
		`{"enum":["yes","no"]}`, `{"type":"array","items":{"type":"integer","minimum":1,"maximum":5},"minItems":3,"maxItems":3}`}
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			req := constrained(ask("Describe the picture.", media(t, "tiny_40x30.png")), schemas[i%4])
			if i >= 4 {
				req.Temperature, req.Seed = 1.5, new(uint64(i))
			}
			r := generate(t, e, t.Context(), req)
			if r.FinishReason != engine.FinishStop {
				t.Errorf("answer %d ended with %q: %q", i, r.FinishReason, r.Text)
				return
			}
			validate(t, schemas[i%4], r.Text)
			again := generate(t, e, t.Context(), req)
			if diff := cmp.Diff(r.TokenIDs, again.TokenIDs); diff != "" {
				t.Errorf("answer %d differs the second time:\n%s", i, diff)
			}
		})
	}
	wait.Go(func() {
		if diff := cmp.Diff(alone.TokenIDs, generate(t, e, t.Context(), free).TokenIDs); diff != "" {
			t.Errorf("the free answer:\n%s", diff)
		}
	})
	wait.Wait()
}

func TestConstrainedAnswersAreCut(t *testing.T) {
	e := openTiny(t, engine.Options{})
	req := constrained(ask("x"), shapeSchema)
	req.MaxTokens, req.Logprobs = 3, 1
	var tokens []engine.Token
	req.Token = func(tok engine.Token) { tokens = append(tokens, tok) }
	if r := generate(t, e, t.Context(), req); r.FinishReason != engine.FinishLength || len(r.TokenIDs) != 3 || !strings.HasPrefix(strings.TrimSpace(r.Text), "{") {
		t.Errorf("%+v", r)
	}
	if len(tokens) != 3 || tokens[2].Stop {
		t.Errorf("%+v", tokens)
	}
}

func TestConstraintsThatCannotBe(t *testing.T) {
	e := openTiny(t, engine.Options{})
	for schema, says := range map[string]string{
		`{"type":"array","uniqueItems":true}`: "uniqueItems",
		`{"$ref":"#"}`:                        "can be an instance",
		`{"type":"object"`:                    "not JSON",
	} {
		_, err := e.Generate(t.Context(), constrained(ask("x"), schema))
		var bad *engine.RequestError
		if !errors.As(err, &bad) || bad.Param != "response_format" || !strings.Contains(bad.Message, says) {
			t.Errorf("%s: %v", schema, err)
		}
	}
	req := constrained(ask("x"), `{"type":"array","uniqueItems":true,"maxItems":1,"items":{"enum":[1,2]}}`)
	req.Constraint.Lenient = true
	validate(t, `{"type":"array","maxItems":1}`, generate(t, e, t.Context(), req).Text)
}

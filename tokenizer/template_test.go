package tokenizer_test

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"glimpse/tokenizer"
)

// Wanted texts are those of Jinja2 as transformers sets it up (trim_blocks, lstrip_blocks, its tojson).
func TestTemplateLanguage(t *testing.T) {
	context := map[string]any{
		"x":     json.RawMessage(`{"z": 1, "a": [1.0, 1e-7, true, null, "é\"<\n"], "m": {}}`),
		"bools": []any{true, false, nil},
		"f":     1.5, "s": " ab ", "q": "it's",
	}
	for _, c := range []struct{ name, source, want string }{
		{"key order and tojson", `{{ x | tojson }}`, `{"z": 1, "a": [1.0, 1e-07, true, null, "é\"<\n"], "m": {}}`},
		{"tojson indent", `{{ x.a | tojson(indent=2) }}`, "[\n  1.0,\n  1e-07,\n  true,\n  null,\n  \"é\\\"<\\n\"\n]"},
		{"tojson empty with indent", `{{ x.m | tojson(indent=4) }}`, "{}"},
		{"tojson options", `{{ x | tojson(ensure_ascii=true, sort_keys=true, separators=(",", ":")) }}`, `{"a":[1.0,1e-07,true,null,"\u00e9\"<\n"],"m":{},"z":1}`},
		{"constants as Python prints them", `{{ bools[0] }} {{ bools[1] }} {{ bools[2] }} {{ f }} {{ missing }}`, "True False None 1.5 "},
		{"containers as Python prints them", `{{ x }}|{{ [q] }}`, `{'z': 1, 'a': [1.0, 1e-07, True, None, 'é"<\n'], 'm': {}}|["it's"]`},
		{"blocks are trimmed", "  {% if true %}\nA\n  {% endif %}\nB\n", "A\nB"},
		{"whitespace control", "a  {%- if true -%}  b  {%- endif -%}  c", "abc"},
		{"generation", "a\n{% generation %}\nb{% endgeneration %}\nc", "a\nbc"},
		{"string methods", `{{ s.strip().upper() }}{{ "a,b".split(",")[1] }}{{ "abc".startswith("ab") }}{{ "aXb".replace("X", "-") }}`, "ABbTruea-b"},
		{"dict methods", `{% for k, v in x.items() %}{{ k }}{% endfor %}{{ x.get("nope", "d") }}{{ "z" in x }}`, "zamdTrue"},
		{"loop controls", `{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}`, "02"},
		{"namespace", `{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}`, "3"},
		{"macro", `{% macro m(a, b="y") %}{{ a }}{{ b }}{% endmacro %}{{ m("x") }}`, "xy"},
		{"slices and inline if", `{{ "abcd"[1:3] }}{{ ("p" if f > 1 else "q") }}{{ [1,2,3][::-1] }}`, "bcp[3, 2, 1]"},
		{"no escaping", `{{ "<a&b>" }}`, "<a&b>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseTemplate(t, c.source).Render(context)
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("\n got %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestTemplateStrftime(t *testing.T) {
	template := parseTemplate(t, `{{ strftime_now("%Y-%m-%d") }}{{ strftime_now("") }}`)
	before := time.Now().Format("2006-01-02")
	got, err := template.Render(map[string]any{})
	if after := time.Now().Format("2006-01-02"); err != nil || (got != before && got != after) {
		t.Errorf("%q %v, want %s", got, err, after)
	}
}

func TestTemplateErrors(t *testing.T) {
	if _, err := tokenizer.ParseTemplate("{% for %}"); err == nil || !strings.Contains(err.Error(), "chat_template:1") {
		t.Errorf("syntax error: %v", err)
	}
	if _, err := tokenizer.ParseTemplate(strings.Repeat("a", 2<<20)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("too long: %v", err)
	}
	if _, err := tokenizer.ParseTemplate("a\xff"); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("not UTF-8: %v", err)
	}
	loop := "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
	for _, c := range []struct {
		name, source, says string
		context            any
	}{
		{"unknown function", "{{ nope() }}", "nope", map[string]any{}},
		{"endless work", loop, "fuel", map[string]any{}},
		{"endless output", "{% for i in range(90000) %}{{ x }}{% endfor %}", "longer than", map[string]any{"x": strings.Repeat("y", 10000)}},
		{"too many messages", "", "limit", map[string]any{"x": strings.Repeat("y", 17<<20)}},
		{"no object", "", "JSON object", []int{1}},
		{"not JSON", "", "encoding its variables", map[string]any{"f": func() {}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseTemplate(t, c.source).Render(c.context)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v does not say %q", err, c.says)
			}
		})
	}
}

func TestTemplateRaise(t *testing.T) {
	for _, source := range []string{
		`{{ raise_exception("only two roles: é") }}`,
		`{% macro m() %}{{ raise_exception("only two roles: é") }}{% endmacro %}{% for i in range(1) %}{{ m() }}{% endfor %}`,
	} {
		_, err := parseTemplate(t, source).Render(map[string]any{})
		var raised *tokenizer.RaisedError
		if !errors.As(err, &raised) || raised.Message != "only two roles: é" {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestTemplateCloseWhileInUse(t *testing.T) {
	template := parseTemplate(t, "{% for i in range(100) %}{{ i }}{% endfor %}")
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				if _, err := template.Render(map[string]any{}); err != nil && !errors.Is(err, tokenizer.ErrClosed) {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		template.Close()
	}
	group.Wait()
	if _, err := template.Render(map[string]any{}); !errors.Is(err, tokenizer.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzTemplate(f *testing.F) {
	files, err := filepath.Glob(testdata + "/templates/*.json")
	if err != nil || len(files) == 0 {
		f.Fatal("no templates")
	}
	for _, file := range files {
		var family familyTemplate
		readJSON(f, file, &family)
		f.Add(family.Template, `{"messages":`+string(family.Cases[0].Messages)+`}`)
	}
	f.Add("{% generation %}{{ x | tojson(indent=2) }}{% endgeneration %}", `{"x": {"a": [1, null]}}`)
	f.Fuzz(func(t *testing.T, source, context string) {
		template, err := tokenizer.ParseTemplate(source)
		if err != nil {
			return
		}
		defer template.Close()
		template.Render(json.RawMessage(context))
	})
}

package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/manifest"
	"glimpse/preprocess"
)

const tokenizerFile = "../testdata/goldens/llava15-tiny/checkpoint/tokenizer.json"

// taking are pictures of one tile that take so many tokens each.
func taking(tokens ...int) []placed {
	list := make([]placed, len(tokens))
	for i, n := range tokens {
		list[i].layout = preprocess.Layout{Tiles: 1, Tokens: n}
	}
	return list
}

// testPrompter is llava15-tiny's tokenizer behind a chat template.
func testPrompter(t *testing.T, template string, edit func(m *manifest.Manifest)) *prompter {
	t.Helper()
	folder := t.TempDir()
	raw, err := os.ReadFile(tokenizerFile)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest.Manifest{
		Picture: &manifest.Picture{},
		Prompt:  manifest.Prompt{Placeholder: "<image>", ImageToken: "<image>", Expansion: "repeat"},
		Tokens:  manifest.Tokens{Image: 1000, Strings: map[string]string{"bos_token": "<s>", "eos_token": "</s>"}},
	}
	if template != "" {
		m.Prompt.Template = "chat_template.jinja"
		err = os.WriteFile(filepath.Join(folder, m.Prompt.Template), []byte(template), 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "tokenizer.json"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(m)
	}
	p, err := openPrompter(folder, m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func turn(role string, parts ...Part) Message { return Message{Role: role, Content: parts} }
func text(s string) Part                      { return Part{Type: PartText, Text: s} }
func image() Part                             { return Part{Type: PartImage, Picture: &Picture{}} }

// Templates of text models take content as a string; a list would be printed with its braces.
func TestContentFollowsTheTemplate(t *testing.T) {
	const (
		list    = `{% for m in messages %}{{ m.role }}:{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %};{% endfor %}`
		flat    = `{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}`
		trimmed = `{% for m in messages %}{{ m.role }}:{{ m.content.strip() }};{% endfor %}`
		both    = `{% for m in messages %}{{ m.role }}:{% if m.content is string %}STRING{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %};{% endfor %}`
	)
	messages := []Message{turn("user", image(), text("What is it?")), turn("assistant", text("A cat."))}
	for _, c := range []struct{ template, want string }{
		{list, "user:<image>What is it?;assistant:A cat.;"},
		{flat, "user:<image>\nWhat is it?;assistant:A cat.;"},
		{trimmed, "user:<image>\nWhat is it?;assistant:A cat.;"},
	} {
		plan, err := testPrompter(t, c.template, nil).plan(Request{Messages: messages})
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		if plan.shown != c.want {
			t.Errorf("%s: %q, want %q", c.template, plan.shown, c.want)
		}
	}
	plan, err := testPrompter(t, both, nil).plan(Request{Messages: messages[1:]})
	if err != nil || plan.shown != "assistant:A cat.;" {
		t.Errorf("a template that takes both gets a list: %v, %v", plan, err)
	}
}

// The released templates of all families take lists.
func TestReleasedTemplatesTakeLists(t *testing.T) {
	files, err := filepath.Glob("../testdata/templates/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no templates: %v", err)
	}
	for _, file := range files {
		var released struct {
			Template string `json:"template"`
		}
		raw, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(raw, &released)
		}
		if err != nil || released.Template == "" {
			t.Fatalf("%s: %v", file, err)
		}
		if testPrompter(t, released.Template, nil).flat {
			t.Errorf("%s would get strings", file)
		}
	}
}

func TestExpansion(t *testing.T) {
	p := testPrompter(t, "", nil)
	plan, err := p.plan(Request{Raw: true, Prompt: "a<image>b<image>", Pictures: make([]Picture, 2)})
	if err != nil {
		t.Fatal(err)
	}
	ids, err := p.encode(plan, taking(3, 2))
	if err != nil {
		t.Fatal(err)
	}
	var runs []int // lengths of the runs of image tokens
	for i, id := range ids {
		switch {
		case id == 1000 && i > 0 && ids[i-1] == 1000:
			runs[len(runs)-1]++
		case id == 1000:
			runs = append(runs, 1)
		}
	}
	if diff := cmp.Diff([]int{3, 2}, runs); diff != "" || ids[0] != 1 {
		t.Errorf("ids %v: %s", ids, diff)
	}
	// Another number of tokens than the pictures take is never handed on.
	p.prompt.ImageToken = "x"
	if _, err := p.encode(plan, taking(3, 2)); err == nil {
		t.Error("a prompt without image tokens was accepted for pictures")
	}
}

func TestPrefixAndSuffix(t *testing.T) {
	p := testPrompter(t, "", func(m *manifest.Manifest) {
		m.Prompt.Placeholder, m.Prompt.Prefix, m.Prompt.Suffix = "[picture]", "(", ")"
	})
	plan, err := p.plan(Request{Raw: true, Prompt: "a [picture] b", Pictures: make([]Picture, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ids, err := p.encode(plan, taking(2))
	if err != nil {
		t.Fatal(err)
	}
	want, err := p.tokenizer.Encode("a (<image><image>) b", true)
	if err != nil || !slices.Equal(ids, want) {
		t.Errorf("%v, want %v (%v)", ids, want, err)
	}
	// This placeholder is no token, so it cannot be covered: a user's text with it is refused.
	p = testPrompter(t, `{% for m in messages %}{% for c in m.content %}{{ c.text or '[picture]' }}{% endfor %}{% endfor %}`,
		func(m *manifest.Manifest) { m.Prompt.Placeholder = "[picture]" })
	for _, parts := range [][]Part{{text("a [picture]")}, {text("[pic"), text("ture]")}} {
		if _, err := p.plan(Request{Messages: []Message{turn("user", parts...)}}); err == nil || !strings.Contains(err.Error(), "[picture]") {
			t.Errorf("%v: %v", parts, err)
		}
	}
	if _, err := p.plan(Request{Raw: true, Prompt: "<image>"}); err == nil {
		t.Error("a raw prompt with an image token was accepted")
	}
}

func TestTemplatesRefuse(t *testing.T) {
	p := testPrompter(t, `{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}`, nil)
	if _, err := p.plan(Request{Messages: []Message{turn("system", text("x"))}}); err == nil || !strings.Contains(err.Error(), "No system role here") {
		t.Errorf("%v", err)
	}
	if _, err := testPrompter(t, "", nil).plan(Request{Messages: []Message{turn("user", text("x"))}}); err == nil || !strings.Contains(err.Error(), "raw") {
		t.Errorf("a model without a template: %v", err)
	}
	// A template that drops a picture leaves it without a place.
	if _, err := p.plan(Request{Messages: []Message{turn("user", image(), text("x"))}}); err == nil || !strings.Contains(err.Error(), "0 placeholders") {
		t.Errorf("a dropped picture: %v", err)
	}
}

func TestPieces(t *testing.T) {
	p := testPrompter(t, "", nil)
	ids, err := p.tokenizer.Encode("the table is red", false)
	if err != nil {
		t.Fatal(err)
	}
	var whole strings.Builder
	for _, id := range ids {
		whole.WriteString(p.piece(id))
	}
	if strings.TrimPrefix(whole.String(), " ") != "the table is red" {
		t.Errorf("the pieces make %q", whole.String())
	}
}

func TestTemplateVariablesCannotBeReplaced(t *testing.T) {
	p := testPrompter(t, `{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}{{ eos_token }}`, func(m *manifest.Manifest) {
		m.Tokens.Strings["messages"] = "a token of this name"
	})
	plan, err := p.plan(Request{Messages: []Message{turn("user", text("x"))}})
	if err != nil || plan.shown != "x</s>" {
		t.Errorf("%v, %v", plan, err)
	}
}

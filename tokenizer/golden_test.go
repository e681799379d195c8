package tokenizer_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/tokenizer"
)

const testdata = "../testdata"

type goldenCase struct {
	ID       string          `json:"id"`
	Messages json.RawMessage `json:"messages"`
	Expected struct {
		PromptText     string  `json:"prompt_text"`
		InputIDs       []int32 `json:"input_ids"`
		NumImageTokens int     `json:"num_image_tokens"`
		GeneratedIDs   []int32 `json:"generated_ids"`
		Text           string  `json:"text"`
		TextSpecial    string  `json:"text_with_special"`
	} `json:"expected"`
}

type familyTemplate struct {
	Template      string            `json:"template"`
	SpecialTokens map[string]string `json:"special_tokens"`
	Cases         []struct {
		ID         string          `json:"id"`
		Messages   json.RawMessage `json:"messages"`
		PromptText string          `json:"prompt_text"`
		InputIDs   []int32         `json:"input_ids"`
	} `json:"cases"`
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func openTokenizer(t testing.TB, path string) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}

func parseTemplate(t testing.TB, source string) *tokenizer.Template {
	t.Helper()
	template, err := tokenizer.ParseTemplate(source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { template.Close() })
	return template
}

func chatContext(messages json.RawMessage, special map[string]string) map[string]any {
	context := map[string]any{"messages": messages, "add_generation_prompt": true}
	for name, token := range special {
		context[name] = token
	}
	return context
}

// The whole golden set: prompt text from the released template, ids with each <image> spread over the tokens of its
// picture, and the text of the generated ids.
func TestGoldenLlava15(t *testing.T) {
	dir := filepath.Join(testdata, "goldens/llava15-tiny")
	var golden struct{ Cases []goldenCase }
	readJSON(t, filepath.Join(dir, "cases.json"), &golden)
	if len(golden.Cases) == 0 {
		t.Fatal("no cases")
	}
	var released struct {
		ChatTemplate string `json:"chat_template"`
	}
	readJSON(t, filepath.Join(dir, "checkpoint/chat_template.json"), &released)
	template := parseTemplate(t, released.ChatTemplate)
	tok := openTokenizer(t, filepath.Join(dir, "checkpoint"))

	for _, c := range golden.Cases {
		t.Run(c.ID, func(t *testing.T) {
			prompt, err := template.Render(chatContext(c.Messages, nil))
			if err != nil {
				t.Fatal(err)
			}
			if prompt != c.Expected.PromptText {
				t.Fatalf("prompt\n got %q\nwant %q", prompt, c.Expected.PromptText)
			}
			pictures := strings.Count(prompt, "<image>")
			expanded := prompt
			if pictures > 0 {
				expanded = strings.ReplaceAll(prompt, "<image>", strings.Repeat("<image>", c.Expected.NumImageTokens/pictures))
			}
			ids, err := tok.Encode(expanded, true)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.Expected.InputIDs, ids); diff != "" {
				t.Errorf("input_ids (-want +got):\n%s", diff)
			}
			if got := tok.Decode(c.Expected.GeneratedIDs, true); got != c.Expected.Text {
				t.Errorf("text\n got %q\nwant %q", got, c.Expected.Text)
			}
			if got := tok.Decode(c.Expected.GeneratedIDs, false); got != c.Expected.TextSpecial {
				t.Errorf("text with special tokens\n got %q\nwant %q", got, c.Expected.TextSpecial)
			}
		})
	}
}

// Every chat of every other golden set that has a template, and the ids of those without pictures.
func TestGoldenTemplates(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(testdata, "templates/*.json"))
	if len(files) < 7 {
		t.Fatalf("found %d families", len(files))
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			var family familyTemplate
			readJSON(t, file, &family)
			template := parseTemplate(t, family.Template)
			tok := openTokenizer(t, filepath.Join(testdata, "tokenizers", name+".json"))
			encoded := 0
			for _, c := range family.Cases {
				prompt, err := template.Render(chatContext(c.Messages, family.SpecialTokens))
				if err != nil {
					t.Errorf("%s: %v", c.ID, err)
					continue
				}
				if diff := cmp.Diff(c.PromptText, prompt); diff != "" {
					t.Errorf("%s: prompt_text (-want +got):\n%s", c.ID, diff)
				}
				if c.InputIDs == nil {
					continue
				}
				encoded++
				// A template that writes BOS itself must not get a second one.
				ids, err := tok.Encode(prompt, !strings.HasPrefix(prompt, "<bos>"))
				if err != nil {
					t.Errorf("%s: %v", c.ID, err)
				}
				if diff := cmp.Diff(c.InputIDs, ids); diff != "" {
					t.Errorf("%s: input_ids (-want +got):\n%s", c.ID, diff)
				}
			}
			if encoded == 0 {
				t.Error("no prompt without pictures was compared")
			}
		})
	}
}

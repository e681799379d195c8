package tokenizer_test

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
	"glimpse/convert/families"
)

// conversation plans a golden checkpoint with an edited configuration and returns its chat template.
func conversation(t *testing.T, set string, edit func(config map[string]any)) string {
	t.Helper()
	folder := filepath.Join(goldenSets, set, "checkpoint")
	var config map[string]any
	readJSON(t, filepath.Join(folder, "config.json"), &config)
	edit(config)
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	cp, err := checkpoint.Open(t.Context(), folder)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	family, _, err := families.Find(raw)
	if err != nil {
		t.Fatal(err)
	}
	tensors := blocks.NewTensors(cp)
	plan, err := family.Plan(&families.Release{Config: raw, PlanOnly: true}, tensors, families.Options{Precision: blocks.FP32})
	if err != nil || plan == nil {
		t.Fatalf("no plan: %v, %v", err, tensors.Problems())
	}
	for _, f := range plan.Files {
		if f.Name == "chat_template.jinja" {
			return string(f.Content)
		}
	}
	t.Fatal("the plan has no chat template")
	return ""
}

// The conversations of the authors' code, written out by hand from their registry (system text, roles, separators).
func TestAuthorsConversations(t *testing.T) {
	const (
		shanghai = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
		intern25 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
	)
	turns := `[{"role":"user","content":[{"type":"image"},{"type":"image"},{"type":"text","text":"Compare."}]},
		{"role":"assistant","content":[{"type":"text","text":"Alike."}]},{"role":"user","content":"Sure?"}]`
	system := `[{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"Look:"},{"type":"image"}]}]`
	for _, tc := range []struct{ template, messages, want string }{
		{"internvl_zh", turns, " <human>: <image>\n<image>\nCompare. <bot>: Alike.</s><human>: Sure? <bot>:"},
		{"Hermes-2", turns, "<|im_start|>system\n" + shanghai + "<|im_end|><|im_start|>user\n<image>\n<image>\nCompare.<|im_end|>" +
			"<|im_start|>assistant\nAlike.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n"},
		{"internlm2-chat", turns, "<|im_start|>system\n" + shanghai + "<|im_end|><|im_start|>user\n<image>\n<image>\nCompare.<|im_end|>" +
			"<|im_start|>assistant\nAlike.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n"},
		{"internvl2_5", turns, "<|im_start|>system\n" + intern25 + "<|im_end|>\n<|im_start|>user\n<image>\n<image>\nCompare.<|im_end|>\n" +
			"<|im_start|>assistant\nAlike.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"},
		{"internvl2_5", system, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook:<image><|im_end|>\n<|im_start|>assistant\n"},
	} {
		source := conversation(t, "internvlchat11-tiny", func(config map[string]any) { config["template"] = tc.template })
		got, err := parseTemplate(t, source).Render(chatContext(json.RawMessage(tc.messages), nil))
		if err != nil || got != tc.want {
			t.Errorf("%s: %v\nhave %q\nwant %q", tc.template, err, got, tc.want)
		}
	}
}

// A conversation with a fixed system text refuses another instead of dropping it.
func TestFixedSystemTextIsNotReplaced(t *testing.T) {
	source := conversation(t, "internvlchat11-tiny", func(map[string]any) {})
	messages := json.RawMessage(`[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}]`)
	if got, err := parseTemplate(t, source).Render(chatContext(messages, nil)); err == nil {
		t.Errorf("rendered %q", got)
	}
}

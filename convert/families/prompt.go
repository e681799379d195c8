// What a release says about text: special tokens, chat template, generation defaults.

package families

import (
	"encoding/json"
	"fmt"
	"slices"

	"glimpse/convert/blocks"
	"glimpse/manifest"
)

// Names of the files that carry text handling into the model folder.
const (
	tokenizerFile = "tokenizer.json"
	templateFile  = "chat_template.jinja"
)

// defaultMaxNewTokens applies when neither the request nor the release says how long an answer may be.
const defaultMaxNewTokens = 256

// addedToken is an entry of tokenizer.json's added_tokens, and how tokenizer_config.json may write a special token.
type addedToken struct {
	ID         int    `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// specialTokens collects the special tokens by role, as chat templates see them.
func (r *Release) specialTokens() map[string]string {
	tokens := map[string]string{}
	for _, raw := range []json.RawMessage{r.SpecialTokensMap, r.TokenizerConfig} {
		var keys map[string]json.RawMessage
		if raw == nil || json.Unmarshal(raw, &keys) != nil {
			continue
		}
		for _, role := range []string{"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token", "image_token"} {
			var text string
			var full addedToken
			switch {
			case json.Unmarshal(keys[role], &text) == nil && text != "":
				tokens[role] = text
			case json.Unmarshal(keys[role], &full) == nil && full.Content != "":
				tokens[role] = full.Content
			}
		}
	}
	return tokens
}

// template returns the chat template: its own file, then tokenizer_config.json's, which may be a list by name.
func (r *Release) template() string {
	if r.ChatTemplate != "" || r.TokenizerConfig == nil {
		return r.ChatTemplate
	}
	var holder struct {
		ChatTemplate json.RawMessage `json:"chat_template"`
	}
	if json.Unmarshal(r.TokenizerConfig, &holder) != nil {
		return ""
	}
	var text string
	if json.Unmarshal(holder.ChatTemplate, &text) == nil {
		return text
	}
	var named []struct{ Name, Template string }
	if json.Unmarshal(holder.ChatTemplate, &named) == nil {
		for _, n := range named {
			if n.Name == "default" {
				return n.Template
			}
		}
	}
	return ""
}

// generationConfig is the part of generation_config.json that applies here.
type generationConfig struct {
	EOS               oneOrMany `json:"eos_token_id"`
	BOS               *int      `json:"bos_token_id"`
	Pad               *int      `json:"pad_token_id"`
	Temperature       *float64  `json:"temperature"`
	TopP              *float64  `json:"top_p"`
	TopK              *int      `json:"top_k"`
	RepetitionPenalty *float64  `json:"repetition_penalty"`
	MaxNewTokens      *int      `json:"max_new_tokens"`
}

// generation reads generation_config.json over the text configuration's token ids, and fills the manifest's tokens and
// defaults. fallback are the text configuration's ids.
func (r *Release) generation(m *manifest.Manifest, fallback generationConfig, t *blocks.Tensors) {
	g := fallback
	if r.Generation != nil {
		if err := json.Unmarshal(r.Generation, &g); err != nil {
			t.Problem("generation_config.json", fmt.Sprintf("cannot be decoded: %v", err))
		}
	}
	if len(g.EOS) == 0 {
		g.EOS = oneOrMany{2} // LlamaConfig's default
	}
	m.Tokens.EOS = slices.Clone(g.EOS)
	m.Tokens.BOS, m.Tokens.Pad = orNone(g.BOS), orNone(g.Pad)
	m.Tokens.Strings = r.specialTokens()
	m.Generation = manifest.Generation{MaxNewTokens: defaultMaxNewTokens, TopP: 1, RepetitionPenalty: 1}
	if g.MaxNewTokens != nil {
		m.Generation.MaxNewTokens = *g.MaxNewTokens
	}
	set(&m.Generation.Temperature, g.Temperature)
	set(&m.Generation.TopP, g.TopP)
	set(&m.Generation.TopK, g.TopK)
	set(&m.Generation.RepetitionPenalty, g.RepetitionPenalty)
}

func orNone(id *int) int {
	if id == nil {
		return -1
	}
	return *id
}

func set[T any](dst *T, v *T) {
	if v != nil {
		*dst = *v
	}
}

// addText puts the tokenizer and the template into the plan.
func (r *Release) addText(p *Plan, tokenizer json.RawMessage, template string, t *blocks.Tensors) {
	if tokenizer == nil {
		if !r.PlanOnly {
			t.Problem(tokenizerFile, "is missing, and there is no tokenizer.model to make it from: copy either from the release into the checkpoint's folder and convert again")
		}
	} else {
		p.Files = append(p.Files, File{tokenizerFile, tokenizer})
	}
	if template != "" {
		p.Manifest.Prompt.Template = templateFile
		p.Files = append(p.Files, File{templateFile, []byte(template)})
	}
}

// tokenID looks a token up in tokenizer.json.
func tokenID(tokenizer json.RawMessage, token string) (int, bool) {
	var doc struct {
		Added []addedToken `json:"added_tokens"`
		Model struct {
			Vocab json.RawMessage `json:"vocab"`
		} `json:"model"`
	}
	if json.Unmarshal(tokenizer, &doc) != nil {
		return 0, false
	}
	for _, a := range doc.Added {
		if a.Content == token {
			return a.ID, true
		}
	}
	var vocab map[string]int
	if json.Unmarshal(doc.Model.Vocab, &vocab) == nil {
		if id, ok := vocab[token]; ok {
			return id, true
		}
	}
	return 0, false
}

// withToken returns tokenizer.json with a special token added under the id; everything else stays as it is.
func withToken(tokenizer json.RawMessage, token string, id int) (json.RawMessage, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(tokenizer, &doc); err != nil {
		return nil, fmt.Errorf("read tokenizer.json: %w", err)
	}
	var added []json.RawMessage
	if raw, ok := doc["added_tokens"]; ok {
		if err := json.Unmarshal(raw, &added); err != nil {
			return nil, fmt.Errorf("read tokenizer.json added_tokens: %w", err)
		}
	}
	entry, err := json.Marshal(addedToken{ID: id, Content: token, Special: true})
	if err != nil {
		return nil, err
	}
	if doc["added_tokens"], err = json.Marshal(append(added, entry)); err != nil {
		return nil, err
	}
	return json.Marshal(doc)
}

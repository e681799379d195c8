// What a release says about its tokenizer beside tokenizer.model.

package sentencepiece

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// Files are the files of a release beside tokenizer.model; nil where it has none.
type Files struct {
	TokenizerConfig  json.RawMessage // tokenizer_config.json
	SpecialTokensMap json.RawMessage // special_tokens_map.json
	AddedTokens      json.RawMessage // added_tokens.json
}

// token is an entry of added_tokens as tokenizer.json has it.
type token struct {
	ID         int    `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// settings are what Files say.
type settings struct {
	class          string
	addBOS, addEOS *bool
	legacy         *bool
	prefixSpace    *bool
	extraIDs       *int
	roles          map[string]string // bos_token, eos_token, …
	special        []token           // special tokens by name, in the order in which transformers adds them
	added          []token           // tokens with ids
}

// specialRoles are in the order in which transformers adds those that the vocabulary lacks.
var specialRoles = []string{"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}

// read decodes the files. tokenizer_config.json wins over special_tokens_map.json, which wins over added_tokens.json.
func (f Files) read() (*settings, error) {
	s := &settings{roles: map[string]string{}}
	var config struct {
		Class       string           `json:"tokenizer_class"`
		AddBOS      *bool            `json:"add_bos_token"`
		AddEOS      *bool            `json:"add_eos_token"`
		Legacy      *bool            `json:"legacy"`
		PrefixSpace *bool            `json:"add_prefix_space"`
		ExtraIDs    *int             `json:"extra_ids"`
		Added       map[string]token `json:"added_tokens_decoder"`
	}
	if f.TokenizerConfig != nil {
		if err := json.Unmarshal(f.TokenizerConfig, &config); err != nil {
			return nil, fmt.Errorf("tokenizer_config.json: %w", err)
		}
	}
	s.class, s.addBOS, s.addEOS, s.legacy, s.prefixSpace, s.extraIDs = config.Class, config.AddBOS, config.AddEOS, config.Legacy, config.PrefixSpace, config.ExtraIDs
	for id, t := range config.Added {
		n, err := strconv.Atoi(id)
		if err != nil {
			return nil, fmt.Errorf("tokenizer_config.json added_tokens_decoder: %q is no token id", id)
		}
		t.ID, t.Normalized = n, false // found before a text is normalised, as by the tokenizers that read tokenizer.model
		s.added = append(s.added, t)
	}
	for _, file := range []struct {
		name string
		raw  json.RawMessage
	}{{"tokenizer_config.json", f.TokenizerConfig}, {"special_tokens_map.json", f.SpecialTokensMap}} {
		if err := s.readSpecial(file.raw); err != nil {
			return nil, fmt.Errorf("%s: %w", file.name, err)
		}
	}
	if err := s.readAdded(f.AddedTokens); err != nil {
		return nil, fmt.Errorf("added_tokens.json: %w", err)
	}
	slices.SortFunc(s.added, func(a, b token) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Content, b.Content)) })
	return s, nil
}

// readSpecial reads the special tokens that a file names by role.
func (s *settings) readSpecial(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return err
	}
	add := func(raw json.RawMessage) (string, error) {
		t, err := readToken(raw)
		if err == nil && t.Content != "" && !slices.ContainsFunc(s.special, func(o token) bool { return o.Content == t.Content }) {
			s.special = append(s.special, t)
		}
		return t.Content, err
	}
	for _, role := range specialRoles {
		if keys[role] == nil || string(keys[role]) == "null" {
			continue
		}
		text, err := add(keys[role])
		if err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
		if s.roles[role] == "" {
			s.roles[role] = text
		}
	}
	var more []json.RawMessage
	if more := keys["additional_special_tokens"]; more == nil || string(more) == "null" {
		return nil
	}
	if err := json.Unmarshal(keys["additional_special_tokens"], &more); err != nil {
		return fmt.Errorf("additional_special_tokens: %w", err)
	}
	for _, raw := range more {
		if _, err := add(raw); err != nil {
			return fmt.Errorf("additional_special_tokens: %w", err)
		}
	}
	return nil
}

// readToken reads a special token: its text, or an AddedToken. It is found in a text before anything is normalised,
// whatever the flag says.
func readToken(raw json.RawMessage) (token, error) {
	var t token
	if json.Unmarshal(raw, &t.Content) != nil {
		if err := json.Unmarshal(raw, &t); err != nil {
			return t, err
		}
	}
	t.Special, t.Normalized = true, false
	return t, nil
}

// readAdded reads added_tokens.json: ids by name. Special are those that another file calls so.
func (s *settings) readAdded(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	var ids map[string]int
	if err := json.Unmarshal(raw, &ids); err != nil {
		return err
	}
	for name, id := range ids {
		if slices.ContainsFunc(s.added, func(t token) bool { return t.Content == name }) {
			continue
		}
		t := token{Content: name, ID: id}
		if i := slices.IndexFunc(s.special, func(o token) bool { return o.Content == name }); i >= 0 {
			t = s.special[i]
			t.ID = id
		}
		s.added = append(s.added, t)
	}
	return nil
}

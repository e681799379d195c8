// From a model and its release to a tokenizer.json.

package sentencepiece

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
)

// space is the character that stands for a space in pieces.
const space = "▁"

// object is a JSON object; encoding/json writes its keys in order.
type object = map[string]any

// Convert returns the tokenizer.json of a tokenizer.model.
func Convert(raw []byte, files Files) (json.RawMessage, error) {
	m, err := parse(raw)
	if err != nil {
		return nil, err
	}
	s, err := files.read()
	if err != nil {
		return nil, err
	}
	var doc object
	switch s.class {
	case "", "LlamaTokenizer", "LlamaTokenizerFast", "InternLM2Tokenizer", "InternLM2TokenizerFast", "T5Tokenizer", "T5TokenizerFast":
	default:
		return nil, fmt.Errorf("tokenizer_class is %q; LlamaTokenizer, InternLM2Tokenizer and T5Tokenizer are read from a tokenizer.model", s.class)
	}
	t5 := s.class == "T5Tokenizer" || s.class == "T5TokenizerFast" || s.class == "" && m.kind == typeUnigram
	switch {
	case m.suffixSpaces || !m.escape:
		return nil, fmt.Errorf("it writes spaces in another way than in front of words (treat_whitespace_as_suffix %v, escape_whitespaces %v), which is not supported", m.suffixSpaces, m.escape)
	case t5 && m.kind == typeUnigram:
		doc, err = t5Style(m, s)
	case !t5 && m.kind == typeBPE:
		doc, err = llamaStyle(m, s)
	default:
		return nil, fmt.Errorf("its model_type is %d for %s; BPE (2) in LLaMA's style and Unigram (1) in T5's are supported", m.kind, cmp.Or(s.class, "no tokenizer_class"))
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// llamaStyle is LlamaConverter: spaces become ▁ and nothing else of a text is changed, each stretch of text between special
// tokens gets a ▁ in front (the legacy behaviour, which models before 2023's fix were trained with) or only the first
// does, and characters without a piece become bytes.
func llamaStyle(m *model, s *settings) (object, error) {
	if len(m.charsmap) > 0 || m.collapse {
		return nil, fmt.Errorf("it normalises text (%d bytes of rules, remove_extra_whitespaces %v), which LLaMA's tokenizers do not", len(m.charsmap), m.collapse)
	}
	prefix := m.dummyPrefix && (s.prefixSpace == nil || *s.prefixSpace)
	spaces := object{"type": "Replace", "pattern": object{"String": " "}, "content": space}
	doc := object{"normalizer": nil, "pre_tokenizer": nil}
	switch legacy := s.legacy == nil || *s.legacy; {
	case legacy && prefix:
		doc["normalizer"] = object{"type": "Sequence", "normalizers": []any{object{"type": "Prepend", "prepend": space}, spaces}}
	case legacy:
		doc["normalizer"] = object{"type": "Sequence", "normalizers": []any{spaces}}
	case prefix:
		doc["pre_tokenizer"] = object{"type": "Metaspace", "replacement": space, "prepend_scheme": "first", "split": false}
	default:
		doc["pre_tokenizer"] = object{"type": "Metaspace", "replacement": space, "prepend_scheme": "never", "split": false}
	}
	decoders := []any{object{"type": "Replace", "pattern": object{"String": space}, "content": " "}, object{"type": "ByteFallback"}, object{"type": "Fuse"}}
	if prefix {
		decoders = append(decoders, object{"type": "Strip", "content": " ", "start": 1, "stop": 0})
	}
	doc["decoder"] = object{"type": "Sequence", "decoders": decoders}
	vocab := make(map[string]int, len(m.pieces))
	for i, p := range m.pieces {
		vocab[p.text] = i
	}
	doc["model"] = object{"type": "BPE", "dropout": nil, "unk_token": m.pieces[m.unk].text, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
		"fuse_unk": true, "byte_fallback": m.byteFallback, "ignore_merges": false, "vocab": vocab, "merges": m.merges()}
	var before, after []string
	if s.addBOS == nil || *s.addBOS {
		before = []string{cmp.Or(s.roles["bos_token"], m.bosPiece)}
	}
	if s.addEOS != nil && *s.addEOS {
		after = []string{cmp.Or(s.roles["eos_token"], m.eosPiece)}
	}
	return m.finish(doc, s, nil, before, after)
}

// t5Style is T5Converter: the release's own normalisation rules, runs of spaces as one, words by Viterbi over the pieces'
// log-probabilities, sentinel tokens behind the vocabulary, </s> at the end.
func t5Style(m *model, s *settings) (object, error) {
	prefix := s.prefixSpace == nil || *s.prefixSpace
	normalizers := []any{object{"type": "Strip", "strip_left": false, "strip_right": true},
		object{"type": "Replace", "pattern": object{"Regex": " {2,}"}, "content": space}}
	if len(m.charsmap) > 0 {
		rules := object{"type": "Precompiled", "precompiled_charsmap": base64.StdEncoding.EncodeToString(m.charsmap)}
		normalizers = append([]any{rules}, normalizers...)
	}
	scheme := "always"
	switch {
	case !prefix:
		scheme = "never"
	case s.legacy != nil && !*s.legacy:
		scheme = "first"
	}
	metaspace := object{"type": "Metaspace", "replacement": space, "prepend_scheme": scheme, "split": true}
	vocab := make([][2]any, 0, len(m.pieces))
	for _, p := range m.pieces {
		vocab = append(vocab, [2]any{p.text, float64(p.score)})
	}
	extra := 100
	if s.extraIDs != nil {
		extra = *s.extraIDs
	}
	if extra < 0 || extra > 1<<12 {
		return nil, fmt.Errorf("tokenizer_config.json extra_ids is %d", extra)
	}
	var sentinels []token
	for i := extra - 1; i >= 0; i-- {
		name := fmt.Sprintf("<extra_id_%d>", i)
		if _, taken := m.byText[name]; taken {
			continue
		}
		sentinels = append(sentinels, token{ID: len(vocab), Content: name, Special: true})
		vocab = append(vocab, [2]any{name, 0.0})
	}
	doc := object{"normalizer": object{"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": metaspace, "decoder": metaspace,
		"model": object{"type": "Unigram", "unk_id": m.unk, "vocab": vocab, "byte_fallback": m.byteFallback}}
	return m.finish(doc, s, sentinels, nil, []string{cmp.Or(s.roles["eos_token"], m.eosPiece)})
}

// finish adds what both styles share: the added tokens, and the special tokens around a text.
func (m *model) finish(doc object, s *settings, sentinels []token, before, after []string) (object, error) {
	added, err := m.addedTokens(s, sentinels)
	if err != nil {
		return nil, err
	}
	doc["version"], doc["truncation"], doc["padding"], doc["added_tokens"] = "1.0", nil, nil, added
	around := object{}
	item := func(name string, sequence int) (any, error) {
		i := slices.IndexFunc(added, func(t token) bool { return t.Content == name })
		if i < 0 {
			return nil, fmt.Errorf("the token %q, which goes around texts, is not in the vocabulary", name)
		}
		around[name] = object{"id": name, "ids": []int{added[i].ID}, "tokens": []string{name}}
		return object{"SpecialToken": object{"id": name, "type_id": sequence}}, nil
	}
	framed := func(id string, sequence int) ([]any, error) {
		var list []any
		for _, group := range [][]string{before, {""}, after} {
			for _, name := range group {
				if name == "" {
					list = append(list, object{"Sequence": object{"id": id, "type_id": sequence}})
					continue
				}
				part, err := item(name, sequence)
				if err != nil {
					return nil, err
				}
				list = append(list, part)
			}
		}
		return list, nil
	}
	single, err := framed("A", 0)
	if err != nil {
		return nil, err
	}
	second, err := framed("B", 1)
	if err != nil {
		return nil, err
	}
	doc["post_processor"] = object{"type": "TemplateProcessing", "single": single, "pair": slices.Concat(single, second), "special_tokens": around}
	return doc, nil
}

// addedTokens are the control and user-defined pieces, the unknown piece, the sentinels, and what the release adds behind
// the vocabulary, by id. Special tokens that no file gives an id follow, as transformers numbers them.
func (m *model) addedTokens(s *settings, sentinels []token) ([]token, error) {
	list := slices.Clone(sentinels)
	next := len(m.pieces) + len(sentinels)
	find := func(name string) int { return slices.IndexFunc(list, func(t token) bool { return t.Content == name }) }
	for i, p := range m.pieces {
		if p.kind == control || p.kind == userDefined || p.kind == unknown {
			list = append(list, token{ID: i, Content: p.text, Special: p.kind != userDefined})
		}
	}
	place := func(t token, hasID bool) error {
		at, stored := m.byText[t.Content]
		if i := find(t.Content); i >= 0 {
			at, stored = list[i].ID, true
		}
		switch {
		case t.Content == "":
			return fmt.Errorf("an added token (id %d) has no text", t.ID)
		case stored && hasID && at != t.ID:
			return fmt.Errorf("the added token %q has id %d and the vocabulary's has %d", t.Content, t.ID, at)
		case stored:
			t.ID = at
		case !hasID:
			t.ID = next
		case t.ID != next:
			return fmt.Errorf("the added token %q has id %d where %d is next: ids behind the vocabulary must follow each other", t.Content, t.ID, next)
		}
		if !stored {
			next++
		}
		if i := find(t.Content); i >= 0 {
			list[i] = t
		} else {
			list = append(list, t)
		}
		return nil
	}
	for _, t := range s.added {
		if err := place(t, true); err != nil {
			return nil, err
		}
	}
	for _, t := range s.special {
		if find(t.Content) >= 0 {
			continue
		}
		if err := place(t, false); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(list, func(a, b token) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

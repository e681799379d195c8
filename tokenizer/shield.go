package tokenizer

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Shield keeps the names of special tokens that users write ("<image>", "</s>") ordinary text. Without it a user could end
// a turn, speak as the system, or claim a picture that is not there.
//
//	shield := tokenizer.NewShield("<image>")
//	message.Text = shield.Cover(message.Text)   // every text that came from outside
//	prompt, err := template.Render(context)     // only the template's own special tokens are in it now
//	ids, err := shield.Encode(prompt, true)
//
// Text that names no special token goes through unchanged, so the ids are those of the plain prompt. A Shield serves one
// prompt; it is not for use by several goroutines at once.
type Shield struct {
	tokenizer *Tokenizer
	names     map[byte][]string // what is covered, by first byte
	covered   []string          // what each mark stands for
}

// Marks are single characters of Unicode's private-use plane 15, so templates carry them along like any letter. A user
// who writes one has it covered as well.
const (
	firstMark = 0xF0000
	lastMark  = 0xFFFFD
)

func isMark(r rune) bool { return r >= firstMark && r <= lastMark }

// NewShield starts a prompt. Covered are the special tokens and the names given, which need not be tokens: placeholders
// that the tokenizer does not call special. Other added tokens (runs of spaces, <tool_call>) are text like any other.
func (t *Tokenizer) NewShield(names ...string) *Shield {
	s := &Shield{tokenizer: t, names: make(map[byte][]string)}
	for _, id := range t.specialIDs {
		token, _ := t.Token(id)
		s.addName(token)
	}
	for _, name := range names {
		s.addName(name)
	}
	return s
}

func (s *Shield) addName(name string) {
	if name != "" {
		s.names[name[0]] = append(s.names[name[0]], name)
	}
}

// Cover replaces each covered name in a user's text by a mark that Encode reads back as plain text.
func (s *Shield) Cover(text string) string {
	var out strings.Builder
	for len(text) > 0 {
		name := s.nameAt(text)
		if name == "" {
			r, size := utf8.DecodeRuneInString(text)
			if !isMark(r) {
				out.WriteString(text[:size])
				text = text[size:]
				continue
			}
			name = text[:size]
		}
		mark := slices.Index(s.covered, name)
		if mark < 0 {
			mark = len(s.covered)
			s.covered = append(s.covered, name)
		}
		// Only a text that holds each of 65,534 private characters could run out of marks; the rest is dropped.
		if firstMark+rune(mark) <= lastMark {
			out.WriteRune(firstMark + rune(mark))
		}
		text = text[len(name):]
	}
	return out.String()
}

// nameAt gives the longest covered name that text starts with.
func (s *Shield) nameAt(text string) string {
	longest := ""
	for _, name := range s.names[text[0]] {
		if len(name) > len(longest) && strings.HasPrefix(text, name) {
			longest = name
		}
	}
	return longest
}

// Uncover puts the users' words back, for showing a prompt.
func (s *Shield) Uncover(prompt string) string {
	var out strings.Builder
	for _, r := range prompt {
		if name, ok := s.original(r); ok {
			out.WriteString(name)
		} else {
			out.WriteRune(r)
		}
	}
	return out.String()
}

func (s *Shield) original(r rune) (string, bool) {
	if !isMark(r) || int(r-firstMark) >= len(s.covered) {
		return "", false
	}
	return s.covered[r-firstMark], true
}

// Encode is Tokenizer.Encode for a prompt made with covered texts.
func (s *Shield) Encode(prompt string, addSpecialTokens bool) ([]int32, error) {
	if !strings.ContainsFunc(prompt, func(r rune) bool { _, ok := s.original(r); return ok }) {
		return s.tokenizer.Encode(prompt, addSpecialTokens)
	}
	before, after, err := s.tokenizer.frame(addSpecialTokens)
	if err != nil {
		return nil, err
	}
	ids := before
	for len(prompt) > 0 {
		var piece []int32
		at := strings.IndexFunc(prompt, func(r rune) bool { _, ok := s.original(r); return ok })
		switch {
		case at == 0:
			r, size := utf8.DecodeRuneInString(prompt)
			name, _ := s.original(r)
			piece, err = s.tokenizer.encodeName(name)
			prompt = prompt[size:]
		case at < 0:
			piece, err = s.tokenizer.Encode(prompt, false)
			prompt = ""
		default:
			piece, err = s.tokenizer.Encode(prompt[:at], false)
			prompt = prompt[at:]
		}
		if err != nil {
			return nil, err
		}
		ids = append(ids, piece...)
	}
	return append(ids, after...), nil
}

// encodeName encodes a covered name as text.
func (t *Tokenizer) encodeName(name string) ([]int32, error) {
	id, isToken := t.byToken[name]
	if !isToken || t.special[id] {
		return t.EncodePlain(name)
	}
	// A token but not a special one: the tokenizer finds it in any text. In two parts it is not there to be found.
	_, size := utf8.DecodeRuneInString(name)
	head, err := t.EncodePlain(name[:size])
	if err != nil {
		return nil, err
	}
	tail, err := t.EncodePlain(name[size:])
	return append(head, tail...), err
}

// frame gives the ids that the tokenizer puts before and after a text.
func (t *Tokenizer) frame(addSpecialTokens bool) (before, after []int32, err error) {
	if !addSpecialTokens {
		return nil, nil, nil
	}
	const probe = "a"
	bare, err := t.Encode(probe, false)
	if err != nil {
		return nil, nil, err
	}
	framed, err := t.Encode(probe, true)
	if err != nil {
		return nil, nil, err
	}
	for at := 0; at+len(bare) <= len(framed); at++ {
		if slices.Equal(framed[at:at+len(bare)], bare) {
			return framed[:at:at], framed[at+len(bare):], nil
		}
	}
	return nil, nil, fmt.Errorf("encoding text: the tokenizer changes a text when it adds special tokens")
}

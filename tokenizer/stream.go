package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// Stream decodes ids one by one into pieces of text that never change afterwards: the pieces together are what Decode gives
// for all the ids. A Stream belongs to one goroutine and one answer.
//
// The text of a token depends on its neighbours (a leading space is dropped at the start, several byte tokens make one
// character), so each step decodes a short window of ids: those of the piece before, as context, and those not yet told.
type Stream struct {
	tokenizer   *Tokenizer
	skipSpecial bool
	window      []int32 // ids of the last piece, then those whose text is not final
	context     int     // how many of window belong to the last piece
	told        int     // bytes of the window's text that were returned
}

// NewStream starts an answer. skipSpecial leaves special tokens out of the text.
func NewStream(t *Tokenizer, skipSpecial bool) *Stream {
	return &Stream{tokenizer: t, skipSpecial: skipSpecial}
}

// Push takes the next id and returns the text that is final now, often "".
func (s *Stream) Push(id int32) string {
	if !s.tokenizer.visible(id, s.skipSpecial) {
		return "" // decoding acts as if it were not there
	}
	s.window = append(s.window, id)
	if s.inByteRun(id) {
		return ""
	}
	text := s.tokenizer.Decode(s.window, false)
	final := strings.TrimSuffix(text, string(utf8.RuneError))
	if len(final) <= s.told {
		return ""
	}
	piece := final[s.told:]
	s.told = len(final)
	if len(final) == len(text) {
		s.slide()
	}
	return piece
}

// inByteRun says whether an id is a byte token (<0xE4>). A run of them is decoded as a whole: one wrong byte turns all of
// the run into U+FFFD, so nothing of it is final before it has ended.
func (s *Stream) inByteRun(id int32) bool {
	token, _ := s.tokenizer.Token(id)
	return len(token) == 6 && strings.HasPrefix(token, "<0x") && token[5] == '>'
}

// slide drops the old context; what was just returned becomes the new one.
func (s *Stream) slide() {
	s.window = append(s.window[:0], s.window[s.context:]...)
	s.context = len(s.window)
	s.told = len(s.tokenizer.Decode(s.window, false))
}

// Flush ends the answer and returns what was held back: characters that were never completed, as U+FFFD.
func (s *Stream) Flush() string {
	text := s.tokenizer.Decode(s.window, false)
	piece := ""
	if len(text) > s.told {
		piece = text[s.told:]
	}
	s.window, s.context, s.told = nil, 0, 0
	return piece
}

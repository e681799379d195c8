package preprocess

import (
	"errors"
	"fmt"
	"io"
)

// Kind says what was wrong with a picture, in a word that a row of a batch can carry.
type Kind string

// The kinds of failure. Their values are stable: scripts match on them.
const (
	KindNotPicture  Kind = "not_a_picture"      // no picture format was recognised
	KindUnsupported Kind = "unsupported_format" // a picture, but of a format or feature that is not read here
	KindTruncated   Kind = "truncated"          // the file ends before the picture does
	KindCorrupt     Kind = "corrupt"            // the file contradicts its own format
	KindTooLarge    Kind = "too_large"          // bytes, pixels or an edge exceed Limits
)

// Error is a picture that could not be read.
type Error struct {
	Kind   Kind
	Format string // "png", "jpeg", …; empty when unknown
	Detail string
	Err    error // cause; may be nil
}

// Sentinels for errors.Is: every *Error matches the one of its Kind.
var (
	ErrNotPicture  = &Error{Kind: KindNotPicture}
	ErrUnsupported = &Error{Kind: KindUnsupported}
	ErrTruncated   = &Error{Kind: KindTruncated}
	ErrCorrupt     = &Error{Kind: KindCorrupt}
	ErrTooLarge    = &Error{Kind: KindTooLarge}
)

var kindText = map[Kind]string{
	KindNotPicture:  "not a picture",
	KindUnsupported: "unsupported picture",
	KindTruncated:   "truncated picture",
	KindCorrupt:     "corrupt picture",
	KindTooLarge:    "picture too large",
}

func (e *Error) Error() string {
	text := kindText[e.Kind]
	if e.Format != "" {
		text += " (" + e.Format + ")"
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrTruncated) true for every truncated picture.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && t.Format == "" && t.Detail == "" && t.Err == nil
}

// KindOf returns the kind of the first *Error in err's chain, and "" when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

func failf(kind Kind, format Format, detail string, args ...any) *Error {
	return &Error{Kind: kind, Format: string(format), Detail: fmt.Sprintf(detail, args...)}
}

// decodeError classifies what a decoder returned. Decoders report an early end in several ways; all of them wrap or
// equal one of io's two values, or are listed in the decoder's own file.
func decodeError(format Format, err error) *Error {
	kind := KindCorrupt
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		kind = KindTruncated
	}
	return &Error{Kind: kind, Format: string(format), Err: err}
}

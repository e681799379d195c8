// One line of the output.

package batch

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"glimpse/engine"
)

// Row is one line of the output. Its keys are public: add, never rename. ID stays the first key, which is how a torn
// line is told from a stranger's file (see sink.go).
type Row struct {
	ID      string     `json:"id"`      // the path with forward slashes
	Path    string     `json:"path"`    // as it was opened
	Caption string     `json:"caption"` // "" with Error
	Prompt  string     `json:"prompt"`  // the user's text
	Model   string     `json:"model"`
	Width   int        `json:"width"`  // pixels, as the picture is shown; 0 where it could not be read
	Height  int        `json:"height"` //
	Tokens  int        `json:"tokens"` // generated
	MS      float64    `json:"ms"`     // from opening the file to the end of the answer, waiting for a slot included
	Error   *ItemError `json:"error,omitempty"`
	SHA256  string     `json:"sha256,omitempty"` // of the file's bytes; absent where it could not be read
}

// Kinds of ItemError.
const (
	KindMissing    = "missing"     // the file vanished after it was listed
	KindUnreadable = "unreadable"  // permission, I/O error, or not a regular file
	KindEmpty      = "empty"       // zero bytes
	KindTooLarge   = "too_large"   // more bytes than Options.MaxBytes
	KindBadPicture = "bad_picture" // not a picture, corrupt, too many pixels; Options.PictureKind may be more exact
	KindTooLong    = "too_long"    // picture and prompt do not fit the context
	KindRejected   = "rejected"    // anything else that the engine refuses
	KindInternal   = "internal"    // the model or the machine failed
)

// ItemError says why a picture has no caption.
type ItemError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"` // one line
}

// key identifies a row: one prompt and one model caption an input once. Eight bytes would make a collision, and so a lost
// row, likely at billions of inputs.
type key [16]byte

func keyOf(id, prompt, model string) key {
	h := sha256.New()
	for _, s := range []string{id, prompt, model} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return key(h.Sum(nil)[:16])
}

// encode returns the row as a line.
func (r *Row) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("encode the row of %s: %w", r.ID, err)
	}
	return b.Bytes(), nil
}

// readPicture reads a file of at most limit bytes.
func readPicture(path string, limit int64) ([]byte, *ItemError) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError(err)
	}
	if !info.Mode().IsRegular() { // opening a pipe would wait for a writer that may never come
		return nil, &ItemError{KindUnreadable, "not a regular file"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fileError(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1)) // the size is counted here, since the file may be growing
	switch {
	case err != nil:
		return nil, fileError(err)
	case len(data) == 0:
		return nil, &ItemError{KindEmpty, "the file is empty"}
	case int64(len(data)) > limit:
		return nil, &ItemError{KindTooLarge, fmt.Sprintf("the file has more than %d bytes", limit)}
	}
	return data, nil
}

func fileError(err error) *ItemError {
	kind := KindUnreadable
	if errors.Is(err, fs.ErrNotExist) {
		kind = KindMissing
	}
	var perr *fs.PathError
	if errors.As(err, &perr) { // the row names the path already
		err = perr.Err
	}
	return &ItemError{kind, err.Error()}
}

// requestError names what Generate refused. pictureKind may say more about a bad picture than that it is one.
func requestError(err error, pictureKind func(error) string) *ItemError {
	var bad *engine.RequestError
	if !errors.As(err, &bad) {
		return &ItemError{KindInternal, err.Error()}
	}
	kind := KindRejected
	switch {
	case errors.Is(err, engine.ErrContextTooLong):
		kind = KindTooLong
	case errors.Is(err, engine.ErrPicture):
		kind = KindBadPicture
		if pictureKind != nil {
			kind = cmp.Or(pictureKind(err), kind)
		}
	}
	return &ItemError{kind, bad.Message}
}

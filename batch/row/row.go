// Package row holds what a batch passes around: the row that a picture becomes, the task that a worker is given for it and
// the answer that comes back. docs/batch.md writes the row down for programs that read it.
package row

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"
)

// Row is one picture's line of the output. Its keys are public: add, never rename. ID stays the first key, which is how a
// torn line is told from a stranger's file.
type Row struct {
	ID          string     `json:"id"`      // names the picture: its path with forward slashes, or what its table says
	Path        string     `json:"path"`    // as it was opened
	Caption     string     `json:"caption"` // of the first prompt; "" with Error and DuplicateOf
	Prompt      string     `json:"prompt"`  // the user's text, the first of several
	Model       string     `json:"model"`
	Width       int        `json:"width"`  // pixels, as the picture is shown; 0 where it could not be read
	Height      int        `json:"height"` //
	Tokens      int        `json:"tokens"` // generated, for all prompts
	MS          float64    `json:"ms"`     // reading, preparing and answering, waiting for a slot included
	Error       *ItemError `json:"error,omitempty"`
	SHA256      string     `json:"sha256,omitempty"` // of the picture's bytes; absent where they could not be read
	ModelHash   string     `json:"model_hash,omitempty"`
	PromptHash  string     `json:"prompt_hash,omitempty"` // of all prompts and of every setting that changes an answer
	Logprob     *float64   `json:"logprob,omitempty"`     // Σ ln p of the generated tokens, for all prompts
	PHash       string     `json:"phash,omitempty"`       // perceptual hash, 16 hex digits
	Captions    []Caption  `json:"captions,omitempty"`    // with several prompts: one each, in their order
	DuplicateOf string     `json:"duplicate_of,omitempty"`
	Embedding   []float32  `json:"embedding,omitempty"` // of the picture, length 1
	ITM         *float64   `json:"itm,omitempty"`       // probability that picture and caption belong together
	Clip        *Clip      `json:"clip,omitempty"`      // of videos: what was seen of it
	Boxes       []Box      `json:"boxes,omitempty"`     // that the caption points at; of the first of several prompts
}

// Clip says which frames of a video the model was shown, and what the video is.
type Clip struct {
	Frames   []int     `json:"frames"`             // their places in the video, from 0
	Seconds  []float64 `json:"seconds,omitempty"`  // when each is shown, to 0.001; absent where that is not known
	Total    int       `json:"total"`              // frames of the video
	FPS      float64   `json:"fps,omitempty"`      // its average rate, to 0.001; absent where that is not known
	Duration float64   `json:"duration,omitempty"` // seconds, to 0.001; absent where that is not known
	Sound    bool      `json:"sound,omitempty"`    // the model heard its sound, too
}

// Box is a place that a caption points at, in whole pixels of the upright picture. Of a quadrangle it is the smallest box
// around it.
type Box struct {
	Label  string   `json:"label"` // what the model says is there; may be empty
	X1     int      `json:"x1"`
	Y1     int      `json:"y1"`
	X2     int      `json:"x2"`
	Y2     int      `json:"y2"`
	Points [][2]int `json:"points,omitempty"` // corners of a quadrangle
	Frame  int      `json:"frame,omitempty"`  // of videos: which of Clip.Frames, from 0
}

// Caption is the answer to one of several prompts.
type Caption struct {
	Prompt  string   `json:"prompt"`
	Caption string   `json:"caption"`
	Tokens  int      `json:"tokens"`
	Logprob *float64 `json:"logprob,omitempty"`
	Boxes   []Box    `json:"boxes,omitempty"`
}

// Kinds of ItemError.
const (
	KindMissing    = "missing"            // the file vanished after it was listed
	KindUnreadable = "unreadable"         // permission, I/O error, or not a regular file
	KindEmpty      = "empty"              // zero bytes
	KindTooLarge   = "too_large"          // more bytes than allowed
	KindBadPicture = "bad_picture"        // not a picture, corrupt, too many pixels; Options.PictureKind may be more exact
	KindTooLong    = "too_long"           // picture and prompt do not fit the context
	KindRejected   = "rejected"           // anything else that the engine refuses
	KindInternal   = "internal"           // the model or the machine failed
	KindBadRecord  = "bad_record"         // a line or record of a table names no picture
	KindDead       = "dead_letter"        // every worker that took it died, or failed inside the model
	KindVideo      = "unsupported_format" // a video, and the model takes none; a sound
	KindURL        = "url"                // an address that is not of a configured object store
)

// ItemError says why a picture has no caption.
type ItemError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"` // one line
}

func (e *ItemError) Error() string { return e.Kind + ": " + e.Message }

// Encode returns the row as a line of JSON.
func (r *Row) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("encode the row of %s: %w", r.ID, err)
	}
	return b.Bytes(), nil
}

// Key identifies a row or a picture. Eight bytes would make a collision, and so a lost row, likely at billions of inputs.
type Key [16]byte

// KeyOf hashes the parts so that no two lists of parts are the same text.
func KeyOf(parts ...string) Key {
	h := sha256.New()
	for _, s := range parts {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return Key(h.Sum(nil)[:16])
}

// Key is which row this is: one prompt and one model caption an input once.
func (r *Row) Key() Key {
	return KeyOf(r.ID, cmp.Or(r.PromptHash, r.Prompt), cmp.Or(r.ModelHash, r.Model))
}

// ContentKey identifies the content under one prompt and model.
func (r *Row) ContentKey() Key {
	return KeyOf(r.SHA256, cmp.Or(r.PromptHash, r.Prompt), cmp.Or(r.ModelHash, r.Model))
}

// Hash is the short form in which rows name a model and a prompt: 16 hex digits.
func Hash(parts ...string) string {
	k := KeyOf(parts...)
	return hex.EncodeToString(k[:8])
}

// Printable writes bytes that are not UTF-8 as \xNN. JSON would make them all the same replacement character, and two
// files that differ in such a byte would then share a row.
func Printable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// FileError names what went wrong with a file.
func FileError(err error) *ItemError {
	var item *ItemError
	if errors.As(err, &item) {
		return item
	}
	kind := KindUnreadable
	if errors.Is(err, fs.ErrNotExist) {
		kind = KindMissing
	}
	var perr *fs.PathError
	if errors.As(err, &perr) { // the row names the path already
		err = perr.Err
	}
	return &ItemError{kind, strings.ReplaceAll(err.Error(), "\n", "; ")}
}

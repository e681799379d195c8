// What the engine takes and gives: the types that server, batch, cmd and verify are written against.

package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"glimpse/graphs"
	"glimpse/preprocess"
)

// Options says how a model folder is opened. Zero values are the defaults in the comments.
type Options struct {
	Runtime  *graphs.Runtime // ONNX Runtime; required, and outlives the engine
	Device   string          // "cpu" (default), "cuda", "auto"
	DeviceID int             // which accelerator, where the device has several
	Threads  int             // threads of one operator; 0: ONNX Runtime's choice, the physical cores

	Slots        int // requests that decode together; 0: 4
	Capacity     int // prompt and answer tokens of one slot; 0: min(max_positions, 4096)
	PrefillChunk int // prompt tokens of one step; 0: 128
	PictureBatch int // tiles that go through the picture stages at once; 0: 8

	VisionCache    int64  // bytes of pictures' feature rows that are kept in memory; 0: none
	VisionCacheDir string // folder where feature rows are kept as well, for later processes; empty: none
	// Speculation is how many tokens of an answer are guessed from what came before, and verified together: 0 for none, up to 8,
	// or SpeculationAuto for as many as make the answer come sooner. The answer is the same.
	Speculation int

	PrefixCache     bool  // prompts use the keys and values of those before that begin like them
	VisionCacheDisk int64 // bytes that VisionCacheDir may hold; 0: 4 GiB

	// WideRows is the number of tokens from which on a step runs on the prefill graph, where the model has one; 0: measured on
	// this machine when a model is first opened, and kept in CacheDir.
	WideRows int
	// LowMemory leaves the prefill graph out: prompts are then read by the decoder's graph, slower and in less memory.
	LowMemory bool
	CacheDir  string // what is measured or made once; empty: the user's cache folder

	Limits preprocess.Limits // bounds on the pictures of strangers; zero: preprocess's defaults
	Logger *slog.Logger      // nil: nothing is logged

	preload *preload // graphs that are being loaded; nil: each is loaded where it is needed
}

// Types of a Part.
const (
	PartText  = "text"
	PartImage = "image"
	PartVideo = "video"
	PartAudio = "audio"
)

// Part is one piece of a message: text, a picture, a video, or a sound.
type Part struct {
	Type    string    // PartText, PartImage, PartVideo or PartAudio
	Text    string    // of PartText
	Picture *Picture  // of PartImage
	Frames  []Picture // of PartVideo, in their order; all are used
	Seconds []float64 // of PartVideo, when each frame is shown; nil where that is not known
	Sound   *Sound    // of PartAudio
}

// Picture is an encoded picture: PNG, JPEG, WebP, GIF, BMP or TIFF.
type Picture struct {
	Data       []byte
	Source     string // file name or URL, shown in errors
	IgnoreEXIF bool   // do not turn the picture upright
}

// Tilings of PictureOptions.
const (
	TilingAuto = preprocess.TilingAuto // as the model was released
	TilingOff  = preprocess.TilingOff  // one tile a picture
	TilingHD   = preprocess.TilingHD   // tiles for a model that was released without (LLaVA-1.5-HD)
	// TilingStretch is the whole picture stretched to one tile, for models that crop or pad it otherwise.
	TilingStretch = preprocess.TilingStretch
)

// PictureOptions say how the pictures of a request are cut into tiles, or how large they are seen. They do not apply to
// frames of videos. An option that the model cannot follow is an error.
type PictureOptions struct {
	Tiling   string // TilingAuto, TilingOff, TilingHD or TilingStretch
	MaxTiles int    // of one picture, the whole picture that some models add not counted; 0: the model's bound
	// MinPixels and MaxPixels bound the area that a picture is resized to, for models that take pictures at their own size;
	// 0: the model's bounds.
	MinPixels, MaxPixels int
}

// Message is one turn of a chat, as the chat template sees it.
type Message struct {
	Role    string // "system", "user", "assistant", or what else the template knows
	Content []Part

	ToolCalls  []ToolCall // of "assistant": functions that it asked for
	ToolCallID string     // of "tool": the call whose result this is
}

// Sampling says how the next token is drawn from the logits. The zero value is greedy. The order is that of
// transformers' logits processors: bias, penalties, temperature, top-k, top-p, min-p, and then the draw.
type Sampling struct {
	Temperature       float64 // 0: greedy, ties to the lowest id; the warpers below then do nothing
	TopP              float64 // smallest set of tokens whose probability reaches this; 0 and 1: off
	MinP              float64 // drop tokens less probable than this share of the most probable one; 0: off
	RepetitionPenalty float64 // of every id already in prompt or answer; 0 and 1: off
	FrequencyPenalty  float64 // taken from a score for each time that the answer has the token; -2..2, 0: off
	PresencePenalty   float64 // taken from a score once when the answer has the token; -2..2, 0: off
	TopK              int     // 0: off
	// LogitBias is added to the scores of these tokens, -100..100.
	LogitBias map[int32]float64
	Seed      *uint64 // nil: another seed for each request
}

// Request is one prompt to answer: Messages through the chat template, or, with Raw, Prompt as it stands.
type Request struct {
	Messages []Message

	Raw      bool
	Prompt   string    // with Raw: contains one placeholder a picture, where the model has placeholders
	Pictures []Picture // with Raw: in the order of their placeholders, or before the text where the model has none
	Videos   []Part    // with Raw: parts of type PartVideo, in the order of their placeholders

	PictureOptions PictureOptions

	// CacheScope parts the caches: what requests of one scope leave there serves those of the same scope alone. Whether
	// something was in a cache shows in the time that an answer takes.
	CacheScope string

	// Tools are functions that the model may ask for. The engine shows them to it and does not read its answer.
	Tools []Tool

	Sampling
	MaxTokens int      // 0: the manifest's default; clipped to what the context leaves
	Stop      []string // the answer ends before the first of these; at most 16
	// Constraint, when set, is what the answer has to be; an answer that MaxTokens or a stop string cuts is not.
	Constraint *Constraint
	Logprobs   int // 0: none; n: each Token carries its log-probability and the n most probable tokens; at most 20
	Token      func(Token)
	// Token, when set, is called for each generated token, in order, from the engine's own goroutine: it must not block
	// long, nor call the engine. The Texts of all calls together are Result.Text.
}

// Token is one generated token.
type Token struct {
	ID int32
	// Text is what became final with this token: whole characters only, without special tokens, and without what may
	// still turn out to be the start of a stop string. Often empty.
	Text string
	// Logprob is the natural logarithm of the token's probability in the model's own distribution, before any
	// penalty, temperature or filter. Set when Request.Logprobs > 0.
	Logprob float32
	Top     []Alternative // the Request.Logprobs most probable tokens, best first; the slice is the receiver's
	Piece   string        // this token's own text, for logprobs listings; may hold a broken character
	Stop    bool          // the token ended the answer: an EOS, or the last piece of a stop string
}

// Alternative is a token that could have been drawn.
type Alternative struct {
	ID      int32
	Logprob float32
	Piece   string
}

// Why a generation ended.
const (
	FinishStop   = "stop"   // an EOS token or a stop string
	FinishLength = "length" // MaxTokens, or the end of the context
)

// Result is a finished answer.
type Result struct {
	Text           string  // without special tokens and without the stop string
	TokenIDs       []int32 // all generated ids, the EOS included
	PromptTokenIDs []int32 // after the expansion of the pictures' placeholders
	FinishReason   string
	Boxes          []Box // what the answer points at in the prompt's pictures; for models whose answers hold boxes
	Usage          Usage
	Timings        Timings
}

// Usage counts tokens.
type Usage struct {
	PromptTokens     int // picture tokens included
	CompletionTokens int // the EOS included
	ImageTokens      int // of PromptTokens, those that pictures take
	AudioTokens      int // of PromptTokens, those that sounds take
	CachedTokens     int // of PromptTokens, those that a cache had and that were not computed again
}

// Timings says where the time of one request went. Other requests share the machine and, in Prefill and Decode, the steps.
type Timings struct {
	Load            time.Duration // of the model, when it was opened
	Preprocess      time.Duration // template, tokenizer, pictures to tensors
	Vision          time.Duration // the first picture stage
	Connector       time.Duration // the later picture stages
	Submitted       time.Duration // from the start of Generate until the prompt waits for a slot: the three above, and waiting for the picture graphs
	Queue           time.Duration // waiting for a slot
	Prefill         time.Duration // admission to the first token
	Decode          time.Duration // first token to the last
	Drafted         int           // tokens that were guessed by speculation
	Accepted        int           // of Drafted, those that were right
	TokensPerSecond float64       // tokens after the first one ÷ Decode; 0 when there is one token only
}

// Errors that RequestError wraps, for errors.Is.
var (
	// ErrContextTooLong: the prompt does not fit the context.
	ErrContextTooLong = errors.New("context length exceeded")
	// ErrNoDecoder: the model generates no text.
	ErrNoDecoder = errors.New("the model has no decoder")
	// ErrNoPictures: the model takes no pictures.
	ErrNoPictures = errors.New("the model takes no pictures")
	// ErrNoScores: the model compares no pictures with texts.
	ErrNoScores = errors.New("the model has no scoring heads")
	// ErrTextTooLong: a text is longer than the graphs that read it take.
	ErrTextTooLong = errors.New("text too long")
	// ErrNoSounds: the model takes no sound.
	ErrNoSounds = errors.New("the model takes no sound")
	// ErrSound: a sound cannot be read, or is longer than the limits allow.
	ErrSound = errors.New("unreadable sound")
	// ErrPicture: a picture cannot be read, or is larger than the limits allow.
	ErrPicture = errors.New("unreadable picture")
)

// ErrClosed is the error of requests that a closing engine did not finish.
var ErrClosed = errors.New("engine is closed")

// ErrBadLogits is the error of a request whose logits are not numbers: the model or its input is broken.
var ErrBadLogits = errors.New("the decoder's logits are not finite")

// Codes of a RequestError, as OpenAI's API names them where it does.
const (
	CodeContextLength = "context_length_exceeded"
	CodeInvalid       = "invalid_value"
	CodeImage         = "invalid_image"
	CodeAudio         = "invalid_audio"
	CodeUnsupported   = "unsupported"
)

// RequestError is what the caller did wrong; a server answers 400 with it.
type RequestError struct {
	Param   string // the part of the request that is wrong: "messages", "max_tokens", …
	Message string // one line for whoever made the request
	Code    string
	Err     error // one of the errors above, or a cause; may be nil
}

func (e *RequestError) Error() string { return e.Message }

// Unwrap returns the sentinel or cause.
func (e *RequestError) Unwrap() error { return e.Err }

func badRequest(param, code string, cause error, format string, args ...any) *RequestError {
	return &RequestError{Param: param, Code: code, Err: cause, Message: fmt.Sprintf(format, args...)}
}

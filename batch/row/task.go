package row

import (
	"context"
	"io"
)

// Task is a picture on its way to a model.
type Task struct {
	Key Key // of the row; the same picture has the same key in every run
	// Content is the same where the picture is, and another where it changed; "": not known.
	Content string
	ID      string // for logs
	Source  string // file name, shown in errors
	Data    []byte // the picture's bytes; not to be changed
	Tiles   int    // how many tiles its header promises; 0: unknown
	// Ref is where a worker on another machine reads the picture; "": Data travels.
	Ref string
	// Clip: it is a video, of which Data holds the file or, of a folder of frames, a tar file of them (IsPackedFolder).
	Clip bool
	// File is a video's file or folder on this machine; Version is that of what was hashed. Where there is no Data, Copy writes
	// what Data would hold. An *ItemError of it is the video's fault.
	File    string
	Version uint64
	Copy    func(io.Writer) error
}

// Answer is what a model said about a picture. Exactly one of Captions and Error is set.
type Answer struct {
	Captions  []Caption  `json:"captions,omitempty"` // one a prompt
	Error     *ItemError `json:"error,omitempty"`
	MS        float64    `json:"ms"`
	Embedding []float32  `json:"embedding,omitempty"`
	ITM       *float64   `json:"itm,omitempty"`
	Read      *Read      `json:"read,omitempty"`   // of a task by reference: what the coordinator has not read
	Clip      *Clip      `json:"clip,omitempty"`   // of a video
	Width     int        `json:"width,omitempty"`  // of a video, in pixels as it is shown
	Height    int        `json:"height,omitempty"` //
}

// Read is what reading a picture tells.
type Read struct {
	SHA256 string `json:"sha256"`
	Width  int    `json:"width"`
	Height int    `json:"height"`
	PHash  string `json:"phash,omitempty"`
}

// Answerer puts tasks to a model, here or elsewhere.
type Answerer interface {
	// Answer is called from several goroutines at once and returns soon after ctx is done. An error ends the run; what is
	// wrong with one picture is in the Answer. done, which is never nil without an error, is called once the row is
	// durable: only then may whoever remembers the answer forget it.
	Answer(ctx context.Context, task Task) (answer *Answer, done func(), err error)
}

package row

import "context"

// Task is a picture on its way to a model.
type Task struct {
	Key    Key    // of the row; the same picture has the same key in every run
	ID     string // for logs
	Source string // file name, shown in errors
	Data   []byte // the picture's bytes; not to be changed
	Tiles  int    // how many tiles its header promises; 0: unknown
	// Ref is where a worker on another machine reads the picture; "": Data travels.
	Ref string
}

// Answer is what a model said about a picture. Exactly one of Captions and Error is set.
type Answer struct {
	Captions  []Caption  `json:"captions,omitempty"` // one a prompt
	Error     *ItemError `json:"error,omitempty"`
	MS        float64    `json:"ms"`
	Embedding []float32  `json:"embedding,omitempty"`
	ITM       *float64   `json:"itm,omitempty"`
	Read      *Read      `json:"read,omitempty"` // of a task by reference: what the coordinator has not read
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

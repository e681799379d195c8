// One request on its way through the scheduler.

package engine

import (
	"context"
	"slices"
	"time"

	"glimpse/preprocess"
)

// sequence is a prompt, the answer so far and what is needed to go on. Until submit it belongs to the request's
// goroutine, then to the scheduler's, and after done is closed to the request's again.
type sequence struct {
	ctx context.Context

	// ids are the prompt's and then the answer's. Capacity is reserved for the whole answer.
	ids    []int32
	prompt int // how many of ids are the prompt's
	cached int // how many of ids have their keys and values in the slot
	maxNew int

	// source is the prompt of an encoder-decoder model, nil for others: ids then begins with the start token, and the
	// encoder has to run before the first step.
	source  []int32
	encoded bool

	// Rows of features stand in for the embeddings of the prompt's image tokens, in order.
	features    []float32
	imageToken  int32
	videoToken  int32 // as imageToken, where rows of videos have another; 0: they have not
	nextFeature int   // row to be used next

	// media says where pictures begin and which they are; scope, with whose requests keys and values may be shared; reused, how
	// many tokens of the prompt were not computed.
	media  []mediaMark
	scope  string
	reused int

	// deepstack are further rows for the same tokens, added behind the decoder's first layers.
	deepstack [][]float32
	// positions are those of the prompt, nil where they are places in the sequence; delta moves the places behind it.
	positions []preprocess.Position
	delta     int32

	guesses

	sampler *sampler
	// constraint follows the answer, nil where it is free.
	constraint constraint

	eos      []int32
	text     textStream
	stopper  stopper
	answer   []byte // final text
	token    func(Token)
	logprobs int
	piece    func(id int32) string // a token's own text, for listings of log-probabilities
	trace    *traceSink            // nil unless traced

	slot     int
	admitted uint64 // order of admission
	finish   string
	err      error
	done     chan struct{}

	submittedAt, admittedAt, firstAt, endAt time.Time
}

// constraint says which tokens may come next: tokenizer.Constraint.
type constraint interface {
	// Mask has a bit for each token, EOS among them where the answer may end. It is valid until the next call.
	Mask() ([]uint32, error)
	// Commit takes a token; complete says that nothing can follow it.
	Commit(id int32) (complete bool, err error)
}

// textStream turns ids into text that never ends within a character: tokenizer.Stream.
type textStream interface {
	// Push returns the text that became final with id.
	Push(id int32) string
	// Flush returns what was held back, broken characters as U+FFFD.
	Flush() string
}

// waiting returns how many tokens are known but not in the cache: 1 while decoding, more during prefill.
func (q *sequence) waiting() int { return len(q.ids) - q.cached }

// isImage reports whether the next row of features takes the place of a prompt's id.
func (q *sequence) isImage(id int32) bool {
	return id == q.imageToken || q.videoToken > 0 && id == q.videoToken
}

// generated returns the answer's ids so far.
func (q *sequence) generated() []int32 { return q.ids[q.prompt:] }

// accept takes the logits that follow the last id, draws the next one and hands it out. It reports whether the answer
// is finished; then finish or err is set.
func (q *sequence) accept(logits []float32, w *samplerScratch) bool {
	id, complete, err := q.draw(logits, w)
	if err != nil {
		q.err = err
		return true
	}
	q.trace.logits(logits)
	tok := Token{ID: id}
	if q.logprobs > 0 {
		tok.Logprob, tok.Top = logprobs(logits, id, q.logprobs)
		tok.Piece = q.piece(id)
		for i := range tok.Top {
			tok.Top[i].Piece = q.piece(tok.Top[i].ID)
		}
	}
	q.ids = append(q.ids, id)
	q.sampler.observe(id)
	q.sampler.drawn(id)
	if q.firstAt.IsZero() {
		q.firstAt = time.Now()
	}
	q.extend(&tok, complete)
	if q.token != nil {
		q.token(tok)
	}
	return q.finish != ""
}

// draw draws the next token; complete says that a constraint lets nothing follow it.
func (q *sequence) draw(logits []float32, w *samplerScratch) (id int32, complete bool, err error) {
	if err = q.limit(); err != nil {
		return 0, false, err
	}
	if id, err = q.sampler.next(logits, w); err != nil || slices.Contains(q.eos, id) {
		return id, false, err
	}
	complete, err = q.follow(id)
	return id, complete, err
}

// extend adds the token's text to the answer and decides whether it is the last.
func (q *sequence) extend(tok *Token, complete bool) {
	eos := slices.Contains(q.eos, tok.ID)
	last := eos || complete || len(q.generated()) >= q.maxNew
	piece := ""
	if !eos {
		piece = q.text.Push(tok.ID)
	}
	if last {
		piece += q.text.Flush()
	}
	text, stopped := q.stopper.push(piece, last)
	switch {
	case eos || stopped:
		q.finish, tok.Stop = FinishStop, true
	case complete:
		q.finish = FinishStop
	case last:
		q.finish = FinishLength
	}
	tok.Text = text
	q.answer = append(q.answer, text...)
}

// position returns where the token at a place of the sequence stands on each axis.
func (q *sequence) position(at int) preprocess.Position {
	if at < len(q.positions) {
		return q.positions[at]
	}
	n := int32(at) + q.delta
	return preprocess.Position{Time: n, Row: n, Column: n}
}

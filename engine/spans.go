// Tokens of a picture that see each other in both directions, in decoders that ask for it by their inputs span_first and
// span_last: for each packed token the places of the first and the last token of its picture, its own place for text.
// A picture is then never split between steps: what it has not seen it could not look at later.

package engine

import (
	"errors"
	"fmt"

	"glimpse/graphs"
)

const (
	spanFirst = "span_first"
	spanLast  = "span_last"
)

// span is the places of the first and the last token that a token sees whatever lies between.
type span struct{ first, last int }

// spanAt returns the span of the token at a place: the run of image tokens around it in the prompt, or itself.
func (q *sequence) spanAt(at int) span {
	if q.source != nil {
		return span{at, at}
	}
	return spanIn(q.ids[:q.prompt], q.imageToken, at)
}

// spanIn is spanAt in the ids of a prompt; places behind it are themselves.
func spanIn(ids []int32, imageToken int32, at int) span {
	s := span{at, at}
	if at >= len(ids) || ids[at] != imageToken {
		return s
	}
	for s.first > 0 && ids[s.first-1] == imageToken {
		s.first--
	}
	for s.last+1 < len(ids) && ids[s.last+1] == imageToken {
		s.last++
	}
	return s
}

// wholePictures shortens a chunk of the prompt that would end within a picture, to end before it. A picture at its very
// beginning must fit: chunks are at least as long as a picture.
func (q *sequence) wholePictures(take int) (int, error) {
	end := q.cached + take
	if end >= q.prompt {
		return take, nil
	}
	switch s := q.spanAt(end); {
	case s.first == end: // text, or the first token of a picture
		return take, nil
	case s.first > q.cached:
		return s.first - q.cached, nil
	default:
		return 0, fmt.Errorf("a picture of %d tokens does not fit into a step of %d", s.last-s.first+1, take)
	}
}

// allocateSpans makes the buffers of span_first and span_last, for decoders that have these inputs.
func (d *decoder) allocateSpans(tokens int64) (err error) {
	if !d.hasInput(spanFirst) {
		return nil
	}
	for _, to := range []**graphs.Tensor{&d.spanFirst, &d.spanLast} {
		if *to, err = d.runtime.NewTensor(graphs.Int64, tokens); err != nil {
			return fmt.Errorf("allocate the decoder's buffers: %w", err)
		}
	}
	return nil
}

// layOutSpans writes the spans of the step's tokens.
func (d *decoder) layOutSpans(s *step) error {
	if d.spanFirst == nil {
		return nil
	}
	if len(s.spans) != s.tokens {
		return fmt.Errorf("lay out a step: %d of its %d tokens have spans", len(s.spans), s.tokens)
	}
	if err := errors.Join(d.spanFirst.Reshape(int64(s.tokens)), d.spanLast.Reshape(int64(s.tokens))); err != nil {
		return fmt.Errorf("lay out a step: %w", err)
	}
	first, last := d.spanFirst.Int64(), d.spanLast.Int64()
	for i, p := range s.spans {
		first[i], last[i] = int64(p.first), int64(p.last)
	}
	return nil
}

// Answers that have to be an instance of a JSON schema. Before each draw the tokens that cannot continue such an answer are
// masked; EOS is among the others only where the answer may end.

package engine

import (
	"errors"
	"fmt"
	"sync"

	"glimpse/tokenizer"
)

// Constraint says what an answer has to be. A model without the tokens for it is an error.
type Constraint struct {
	Schema  []byte // the text of a JSON schema, an object
	Lenient bool   // keywords that cannot be enforced are passed over; otherwise they are an error
	Param   string // what the request calls it, for errors; empty: response_format
}

// constraints makes the constraints of a model's answers. What they share is built when the first one is asked for.
type constraints struct {
	once     sync.Once
	grammars *tokenizer.Grammars
	err      error
}

// Close frees what they share. It is idempotent, and must not be called while requests are under way.
func (c *constraints) Close() error {
	if c.grammars == nil {
		return nil
	}
	return c.grammars.Close()
}

// constrain compiles the request's constraint, nil where it has none. The caller closes it.
func (e *Engine) constrain(req Request) (*tokenizer.Constraint, error) {
	if req.Constraint == nil {
		return nil, nil
	}
	param := req.Constraint.Param
	if param == "" {
		param = "response_format"
	}
	shared := &e.constraints
	shared.once.Do(func() {
		eos := make([]int32, len(e.manifest.Tokens.EOS))
		for i, id := range e.manifest.Tokens.EOS {
			eos[i] = int32(id)
		}
		shared.grammars, shared.err = e.prompter.tokenizer.Grammars(e.manifest.Decoder.VocabSize, eos)
	})
	if shared.err != nil {
		return nil, badRequest(param, CodeUnsupported, shared.err, "model %s cannot be constrained: %v", e.name, shared.err)
	}
	made, err := shared.grammars.Compile(req.Constraint.Schema, req.Constraint.Lenient)
	if bad := new(tokenizer.SchemaError); errors.As(err, &bad) {
		return nil, badRequest(param, CodeInvalid, err, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	// Schemas without any instance, and vocabularies that cannot spell how one begins.
	if _, err := made.Mask(); err != nil {
		return nil, errors.Join(badRequest(param, CodeInvalid, err, "no answer of model %s can be an instance of the JSON schema", e.name), made.Close())
	}
	return made, nil
}

// limit has the sampler draw among the tokens that the constraint allows.
func (q *sequence) limit() error {
	if q.constraint == nil {
		return nil
	}
	mask, err := q.constraint.Mask()
	if err != nil {
		// Of a limit on work, or of a vocabulary that cannot spell what the schema wants here.
		return badRequest("response_format", CodeInvalid, err, "the answer came to a point where the JSON schema could not be followed further: %v", err)
	}
	q.sampler.allowed = mask
	return nil
}

// follow tells the constraint about the token that was drawn; complete says that the answer is.
func (q *sequence) follow(id int32) (complete bool, err error) {
	if q.constraint == nil {
		return false, nil
	}
	if complete, err = q.constraint.Commit(id); err != nil {
		return false, fmt.Errorf("constrained answer: %w", err)
	}
	return complete, nil
}

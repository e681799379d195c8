package tokenizer

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// maxSchemaBytes bounds a JSON schema.
const maxSchemaBytes = 128 << 10

// Grammars compiles JSON schemas into constraints on the tokens of one model. It holds the bytes of all tokens as a trie,
// some ten MB for a vocabulary of 150,000. It may be used by several goroutines at once; Close ends it.
type Grammars struct {
	mu     sync.RWMutex // held for reading while native memory is in use
	native nativeGrammars
	words  int
	closed bool
}

// Grammars makes the tokenizer's. width is the number of the model's logits, eos are the ids that end an answer.
func (t *Tokenizer) Grammars(width int, eos []int32) (*Grammars, error) {
	if width <= 0 || width > 1<<24 {
		return nil, fmt.Errorf("constrained decoding: %d logits", width)
	}
	data, err := t.load()
	if err != nil {
		return nil, fmt.Errorf("constrained decoding: reading the tokenizer: %w", err)
	}
	native, message, status := newNativeGrammars(data, width, eos)
	if status != nativeOK {
		return nil, fmt.Errorf("constrained decoding: %s", message)
	}
	return &Grammars{native: native, words: (width + 31) / 32}, nil
}

// Close frees the grammars. It may be called more than once; constraints live on.
func (g *Grammars) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed = true
		g.native.free()
	}
	return nil
}

// SchemaError says why a JSON schema cannot be enforced.
type SchemaError struct{ Message string }

func (e *SchemaError) Error() string { return "the JSON schema cannot be enforced: " + e.Message }

// Compile makes the constraint of one answer: an instance of a JSON schema, an object. With lenient keywords that cannot be
// enforced are passed over, else they are a *SchemaError. Time and memory are bounded.
func (g *Grammars) Compile(schema []byte, lenient bool) (*Constraint, error) {
	if len(schema) > maxSchemaBytes {
		return nil, &SchemaError{fmt.Sprintf("it has %d bytes, more than the limit of %d", len(schema), maxSchemaBytes)}
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return nil, fmt.Errorf("compiling a JSON schema: the grammars are %w", ErrClosed)
	}
	native, message, status := g.native.compile(schema, lenient)
	if status != nativeOK {
		return nil, &SchemaError{message}
	}
	c := &Constraint{native: native, mask: make([]uint32, g.words)}
	// Answers that never come to their end must not keep native memory.
	c.cleanup = runtime.AddCleanup(c, nativeConstraint.free, native)
	return c, nil
}

// Constraint follows one answer. Close ends it.
type Constraint struct {
	mu      sync.Mutex
	native  nativeConstraint
	mask    []uint32
	closed  bool
	cleanup runtime.Cleanup
}

// Mask returns the tokens that may come next: bit i of word j stands for id 32j+i. EOS is among them exactly when the
// answer may end here. The slice is valid until the next call.
func (c *Constraint) Mask() ([]uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("masking tokens: constraint is %w", ErrClosed)
	}
	if message, status := c.native.fill(c.mask); status != nativeOK {
		return nil, errors.New("masking tokens: " + message)
	}
	return c.mask, nil
}

// Commit takes the token that was drawn. complete says that nothing but EOS can follow.
func (c *Constraint) Commit(id int32) (complete bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, fmt.Errorf("following an answer: constraint is %w", ErrClosed)
	}
	complete, message, status := c.native.commit(id)
	if status != nativeOK {
		return false, fmt.Errorf("following an answer: token %d: %s", id, message)
	}
	return complete, nil
}

// Close frees the constraint. It may be called more than once.
func (c *Constraint) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.cleanup.Stop()
		c.native.free()
	}
	return nil
}

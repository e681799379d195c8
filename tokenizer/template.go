package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"sync"
)

// Bounds of template rendering. The longest released template has 20 kB; a prompt of 32 MiB is beyond every context.
const (
	maxTemplateBytes = 1 << 20
	maxContextBytes  = 16 << 20
	maxPromptBytes   = 32 << 20
)

// RaisedError is a template's own refusal: it called raise_exception. The messages are at fault, not the template.
type RaisedError struct{ Message string }

func (e *RaisedError) Error() string {
	return "the chat template refuses these messages: " + e.Message
}

// Template is a compiled chat template. It may be rendered by several goroutines at once.
//
// It behaves as templates do in transformers (apply_chat_template): blocks are trimmed, there are Python's string methods,
// tojson, raise_exception, strftime_now, break and continue; {% generation %} blocks are plain text.
type Template struct {
	mu      sync.RWMutex // held for reading while native memory is in use
	native  nativeTemplate
	closed  bool
	cleanup runtime.Cleanup
}

// ParseTemplate compiles the text of a chat_template.jinja.
func ParseTemplate(source string) (*Template, error) {
	if len(source) > maxTemplateBytes {
		return nil, fmt.Errorf("parsing chat template: it has %d bytes, more than the limit of %d", len(source), maxTemplateBytes)
	}
	native, message, status := newNativeTemplate([]byte(source))
	if status != nativeOK {
		return nil, fmt.Errorf("parsing chat template: %s", message)
	}
	t := &Template{native: native}
	// A template is small and often lives as long as the process; one that is forgotten is freed with its Go side.
	t.cleanup = runtime.AddCleanup(t, nativeTemplate.free, native)
	return t, nil
}

// Render gives the prompt text. context is what the template sees, marshalled to a JSON object: messages,
// add_generation_prompt, bos_token, eos_token, tools … Where the order of keys matters (tool definitions printed by tojson)
// pass structs or json.RawMessage; Go's maps come out sorted. A refusal by the template is a *RaisedError.
func (t *Template) Render(context any) (string, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(context); err != nil {
		return "", fmt.Errorf("rendering chat template: encoding its variables: %w", err)
	}
	if buffer.Len() > maxContextBytes {
		return "", fmt.Errorf("rendering chat template: the messages have %d bytes, more than the limit of %d", buffer.Len(), maxContextBytes)
	}
	if first := bytes.TrimSpace(buffer.Bytes()); len(first) == 0 || first[0] != '{' {
		return "", fmt.Errorf("rendering chat template: its variables must be a JSON object, not %T", context)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return "", fmt.Errorf("rendering chat template: template is %w", ErrClosed)
	}
	text, status := t.native.render(buffer.Bytes(), maxPromptBytes)
	switch status {
	case nativeOK:
		return text, nil
	case nativeRaised:
		return "", &RaisedError{Message: text}
	default:
		return "", fmt.Errorf("rendering chat template: %s", text)
	}
}

// Close frees the template. It may be called more than once.
func (t *Template) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		t.cleanup.Stop()
		t.native.free()
	}
	return nil
}

// Tool calls: what a request offers, and how an answer's text is told apart into words for the user and calls.
//
// Three forms of a call are read: the JSON object that a constrained answer is, the <tool_call> blocks of templates that know
// tools, and an answer that is nothing but such objects. Everything else, a call of an unknown function too, stays text.

package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strings"
)

const (
	callOpen  = "<tool_call>"
	callClose = "</tool_call>"
)

// answerPiece is what became known of an answer: text for the user, or more of a call.
type answerPiece struct {
	content string
	call    *callPiece
}

// callPiece is the beginning of a call, which has id and name, or more of its arguments.
type callPiece struct {
	index     int
	id, name  string
	arguments string
}

// answerReader reads one answer as it arrives. The zero value reads an answer without tools.
type answerReader struct {
	tools  map[string]bool // the functions there are
	forced bool            // the answer is constrained to one call
	single bool            // calls after the first are dropped

	held  string // text that may be, or belong to, a call
	free  bool   // the answer has begun as text
	calls int
	begun bool // forced: the call's name is out
	raw   strings.Builder
}

// forcedHead is how a constrained call begins, the arguments' bracket included; names have no escapes.
var forcedHead = regexp.MustCompile(`^\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"arguments"\s*:\s*\{`)

// push takes the next text.
func (r *answerReader) push(text string) []answerPiece {
	switch {
	case text == "":
		return nil
	case len(r.tools) == 0:
		return []answerPiece{{content: text}}
	case r.forced:
		return r.pushForced(text)
	}
	r.held += text
	if !r.free {
		start := strings.TrimLeft(r.held, " \t\r\n")
		// A call is only known when it is there as a whole.
		if start == "" || start[0] == '{' || start[0] == '[' || strings.HasPrefix(callOpen, start) || strings.HasPrefix(start, callOpen) {
			return nil
		}
		r.free = true
	}
	at := strings.Index(r.held, callOpen)
	if at < 0 {
		at = len(r.held) - partialSuffix(r.held, callOpen)
	}
	out := r.held[:at]
	r.held = r.held[at:]
	return content(out)
}

func (r *answerReader) pushForced(text string) []answerPiece {
	r.raw.WriteString(text)
	r.held += text
	var out []answerPiece
	if !r.begun {
		head := forcedHead.FindStringSubmatch(r.held)
		if head == nil {
			return nil
		}
		r.begun, r.calls = true, 1
		r.held = r.held[len(head[0])-1:]
		out = append(out, answerPiece{call: &callPiece{id: newID("call_"), name: head[1]}})
	}
	// The last bracket closes the call, not its arguments.
	arguments := strings.TrimRight(r.held, "} \t\r\n")
	r.held = r.held[len(arguments):]
	if arguments != "" {
		out = append(out, answerPiece{call: &callPiece{arguments: arguments}})
	}
	return out
}

// finish ends the answer.
func (r *answerReader) finish() []answerPiece {
	held := r.held
	r.held = ""
	if r.forced {
		if !r.begun {
			return content(held) // cut before it said what to call
		}
		if json.Valid([]byte(r.raw.String())) {
			held = strings.TrimSuffix(strings.TrimRight(held, " \t\r\n"), "}")
		}
		if held = strings.TrimRight(held, " \t\r\n"); held == "" {
			return nil
		}
		return []answerPiece{{call: &callPiece{arguments: held}}}
	}
	text, calls, err := readCalls(held, r.tools)
	if err != nil {
		return content(held)
	}
	out := content(text)
	for i, c := range calls {
		if i > 0 && r.single {
			break
		}
		out = append(out, answerPiece{call: &callPiece{index: i, id: newID("call_"), name: c.Name, arguments: string(c.Arguments)}})
		r.calls++
	}
	return out
}

func content(text string) []answerPiece {
	if text == "" {
		return nil
	}
	return []answerPiece{{content: text}}
}

// partialSuffix is the length of the longest end of text that is the beginning of mark.
func partialSuffix(text, mark string) int {
	for n := min(len(mark)-1, len(text)); n > 0; n-- {
		if strings.HasSuffix(text, mark[:n]) {
			return n
		}
	}
	return 0
}

type call struct {
	Name       string          `json:"name"`
	Arguments  json.RawMessage `json:"arguments"`
	Parameters json.RawMessage `json:"parameters"` // what some models call them
}

var errNoCalls = errors.New("no calls")

// readCalls reads a text that is made of calls; text is what stands beside <tool_call> blocks.
func readCalls(held string, tools map[string]bool) (text string, calls []call, err error) {
	if len(tools) == 0 || strings.TrimSpace(held) == "" {
		return "", nil, errNoCalls
	}
	if !strings.Contains(held, callOpen) {
		calls, err = decodeCalls(held, tools)
		return "", calls, err
	}
	for held != "" {
		before, rest, found := strings.Cut(held, callOpen)
		if before = strings.TrimSpace(before); before != "" {
			text += before
		}
		if !found {
			break
		}
		inside, after, _ := strings.Cut(rest, callClose) // models end answers without it
		more, err := decodeCalls(inside, tools)
		if err != nil {
			return "", nil, err
		}
		calls, held = append(calls, more...), after
	}
	return text, calls, nil
}

// decodeCalls reads JSON objects, or arrays of them, one after another.
func decodeCalls(text string, tools map[string]bool) ([]call, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	var calls []call
	for {
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) && len(calls) > 0 {
			return calls, nil
		}
		if err != nil {
			return nil, errNoCalls
		}
		list := []call{{}}
		if raw[0] == '[' {
			err = json.Unmarshal(raw, &list)
		} else {
			err = json.Unmarshal(raw, &list[0])
		}
		if err != nil {
			return nil, errNoCalls
		}
		for _, c := range list {
			if c.Arguments == nil {
				c.Arguments = c.Parameters
			}
			if c.Arguments = argumentsObject(c.Arguments); c.Arguments == nil || !tools[c.Name] {
				return nil, errNoCalls
			}
			calls = append(calls, c)
		}
	}
}

// argumentsObject returns the arguments as a compact JSON object, nil when they are none. Some models write them as a string.
func argumentsObject(raw json.RawMessage) json.RawMessage {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		raw = json.RawMessage(text)
	}
	var object map[string]json.RawMessage
	if len(raw) == 0 {
		return json.RawMessage("{}")
	}
	var out bytes.Buffer
	if json.Unmarshal(raw, &object) != nil || object == nil || json.Compact(&out, raw) != nil {
		return nil
	}
	return out.Bytes()
}

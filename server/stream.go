// POST /v1/chat/completions with stream: true: server-sent events, closed by [DONE].
//
// Nothing is sent before the model's first token, so that what is wrong with a request is still a status code. From then
// on a failure is an error event, and the stream ends without [DONE].

package server

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"glimpse/engine"
)

type chunk struct {
	ID      string        `json:"id"`
	Object  string        `json:"object"`
	Created int64         `json:"created"`
	Model   string        `json:"model"`
	Choices []chunkChoice `json:"choices"`
	Usage   *usage        `json:"usage,omitempty"`
}

// chunkWithUsage is a chunk of a stream that ends with usage: there every other chunk says null.
type chunkWithUsage struct {
	chunk
	Usage *usage `json:"usage"`
}

type chunkChoice struct {
	Index        int       `json:"index"`
	Delta        delta     `json:"delta"`
	Logprobs     *logprobs `json:"logprobs"`
	FinishReason *string   `json:"finish_reason"`
}

type delta struct {
	Role    string       `json:"role,omitempty"`
	Content *string      `json:"content,omitempty"`
	Boxes   []engine.Box `json:"boxes,omitempty"` // in the last chunk of a choice

	ToolCalls []deltaCall `json:"tool_calls,omitempty"`
}

// deltaCall is more of a call: its id, type and name in the first, then its arguments.
type deltaCall struct {
	Index    int           `json:"index"`
	ID       string        `json:"id,omitempty"`
	Type     string        `json:"type,omitempty"`
	Function deltaFunction `json:"function"`
}

type deltaFunction struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

// eventWriter sends events, each write under its own deadline: a client that stops reading must not hold a place.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	begun   bool
}

// named is an event that has its name on a line of its own.
type named interface{ eventName() string }

func (e *eventWriter) send(events ...any) error {
	if len(events) == 0 {
		return nil
	}
	if !e.begun {
		e.begun = true
		h := e.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("X-Accel-Buffering", "no") // nginx would hold events back
		e.w.WriteHeader(http.StatusOK)
	}
	_ = e.control.SetWriteDeadline(time.Now().Add(e.timeout)) // recorders of tests have none
	for _, v := range events {
		line, isLine := v.([]byte)
		if !isLine {
			line = encode(v)
		}
		name := ""
		if n, ok := v.(named); ok {
			name = "event: " + n.eventName() + "\n"
		}
		if _, err := fmt.Fprintf(e.w, "%sdata: %s\n", name, line); err != nil {
			return fmt.Errorf("write event: %w", err)
		}
	}
	if err := e.control.Flush(); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

// streamState makes chunks out of tokens.
type streamState struct {
	c       *chat
	id      string
	created int64
	opened  []bool         // choices whose role was sent
	readers []answerReader // one a choice
	total   usage
}

// stream writes the events of a generation. When it cannot, it cancels and waits for the model to let go.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, c *chat, g *generation) error {
	out := &eventWriter{w: w, control: http.NewResponseController(w), timeout: s.limits.WriteTimeout}
	st := &streamState{c: c, id: newID("chatcmpl-"), created: time.Now().Unix(), opened: make([]bool, c.choices), readers: make([]answerReader, c.choices)}
	for i := range st.readers {
		st.readers[i] = c.reader
	}
	x := exchangeOf(r)
	for done := false; !done; {
		select {
		case <-g.queue.ready:
		case <-g.done:
			done = true
		}
		events := st.chunks(g.queue.take())
		x.prompt, x.completion = st.total.PromptTokens, st.total.CompletionTokens
		if len(events) == 0 {
			continue
		}
		if err := out.send(events...); err != nil {
			return s.abandon(g, err)
		}
	}
	return finishStream(out, st, g)
}

// abandon gives an answer up whose client does not take it.
func (s *Server) abandon(g *generation, err error) error {
	g.cancel()
	<-g.done
	return &Error{Status: statusClientClosed, Type: typeInvalid, Code: codeClientGone, Message: "the client does not read its stream", cause: err}
}

func finishStream(out *eventWriter, st *streamState, g *generation) error {
	if g.err != nil {
		if !out.begun {
			return g.err
		}
		failed := asError(g.err)
		if failed.Status != statusClientClosed {
			_ = out.send(failed.body()) // the error is reported either way
		}
		return failed
	}
	var last []any
	if st.c.includeUsage {
		last = append(last, chunkWithUsage{chunk: st.chunk(), Usage: &st.total})
	}
	if err := out.send(append(last, []byte("[DONE]\n"))...); err != nil {
		return &Error{Status: statusClientClosed, Type: typeInvalid, Code: codeClientGone, Message: "the client does not read its stream", cause: err}
	}
	return nil
}

func (st *streamState) chunk(choices ...chunkChoice) chunk {
	if choices == nil {
		choices = []chunkChoice{}
	}
	return chunk{ID: st.id, Object: "chat.completion.chunk", Created: st.created, Model: st.c.model.name, Choices: choices}
}

// event wraps one choice's news.
func (st *streamState) event(c chunkChoice) any {
	if st.c.includeUsage {
		return chunkWithUsage{chunk: st.chunk(c)}
	}
	return st.chunk(c)
}

// chunks turns tokens into events: tokens of one choice that arrived together share one.
func (st *streamState) chunks(tokens []choiceToken) []any {
	var events []any
	for i := 0; i < len(tokens); {
		first := tokens[i]
		if !st.opened[first.choice] {
			st.opened[first.choice] = true
			empty := ""
			events = append(events, st.event(chunkChoice{Index: first.choice, Delta: delta{Role: "assistant", Content: &empty}}))
		}
		if first.result != nil {
			st.total.add(first.result)
			reader := &st.readers[first.choice]
			events = append(events, st.pieces(first.choice, reader.finish(), nil)...)
			reason := reader.reason(first.result.FinishReason)
			events = append(events, st.event(chunkChoice{Index: first.choice, Delta: delta{Boxes: first.result.Boxes}, FinishReason: &reason}))
			i++
			continue
		}
		end := i + 1
		for end < len(tokens) && tokens[end].choice == first.choice && tokens[end].result == nil {
			end++
		}
		events = append(events, st.textEvents(tokens[i:end])...)
		i = end
	}
	return events
}

// textEvents joins tokens of one choice; there are none when there is nothing to tell.
func (st *streamState) textEvents(tokens []choiceToken) []any {
	var text strings.Builder
	var probabilities *logprobs
	for _, t := range tokens {
		text.WriteString(t.token.Text)
		if st.c.logprobs && !t.token.Stop {
			if probabilities == nil {
				probabilities = &logprobs{}
			}
			probabilities.Content = append(probabilities.Content, logprobOf(t.token, st.c.topLogprobs))
		}
	}
	choice := tokens[0].choice
	return st.pieces(choice, st.readers[choice].push(text.String()), probabilities)
}

// pieces makes an event of each piece; the first carries the log-probabilities, which come as their tokens do.
func (st *streamState) pieces(choice int, pieces []answerPiece, probabilities *logprobs) []any {
	if len(pieces) == 0 && probabilities != nil {
		pieces = []answerPiece{{}}
	}
	var events []any
	for i, p := range pieces {
		c := chunkChoice{Index: choice}
		if i == 0 {
			c.Logprobs = probabilities
		}
		if p.call == nil {
			c.Delta.Content = &p.content
		} else {
			c.Delta.ToolCalls = []deltaCall{{Index: p.call.index, ID: p.call.id, Function: deltaFunction{p.call.name, p.call.arguments}}}
			if p.call.id != "" {
				c.Delta.ToolCalls[0].Type = "function"
			}
		}
		events = append(events, st.event(c))
	}
	return events
}

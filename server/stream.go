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
}

// eventWriter sends events, each write under its own deadline: a client that stops reading must not hold a place.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	begun   bool
}

func (e *eventWriter) send(events ...any) error {
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
		if _, err := fmt.Fprintf(e.w, "data: %s\n", line); err != nil {
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
	opened  []bool // choices whose role was sent
	total   usage
}

// stream writes the events of a generation. When it cannot, it cancels and waits for the model to let go.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, c *chat, g *generation) error {
	out := &eventWriter{w: w, control: http.NewResponseController(w), timeout: s.limits.WriteTimeout}
	st := &streamState{c: c, id: newID("chatcmpl-"), created: time.Now().Unix(), opened: make([]bool, c.choices)}
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
			events = append(events, st.event(chunkChoice{Index: first.choice, Delta: delta{Boxes: first.result.Boxes}, FinishReason: &first.result.FinishReason}))
			i++
			continue
		}
		end := i + 1
		for end < len(tokens) && tokens[end].choice == first.choice && tokens[end].result == nil {
			end++
		}
		if c, ok := st.textChunk(tokens[i:end]); ok {
			events = append(events, st.event(c))
		}
		i = end
	}
	return events
}

// textChunk joins tokens of one choice; it says no when there is nothing to tell.
func (st *streamState) textChunk(tokens []choiceToken) (chunkChoice, bool) {
	var text strings.Builder
	c := chunkChoice{Index: tokens[0].choice}
	for _, t := range tokens {
		text.WriteString(t.token.Text)
		if st.c.logprobs && !t.token.Stop {
			if c.Logprobs == nil {
				c.Logprobs = &logprobs{}
			}
			c.Logprobs.Content = append(c.Logprobs.Content, logprobOf(t.token, st.c.topLogprobs))
		}
	}
	content := text.String()
	c.Delta.Content = &content
	return c, content != "" || c.Logprobs != nil
}

// POST /v1/responses with stream: true. As in chat completions nothing is sent before the first token.

package server

import "net/http"

// responseEvent is one event; which fields it has depends on its type.
type responseEvent struct {
	Type         string          `json:"type"`
	Sequence     int             `json:"sequence_number"`
	Response     *responseObject `json:"response,omitempty"`
	OutputIndex  *int            `json:"output_index,omitempty"`
	ContentIndex *int            `json:"content_index,omitempty"`
	ItemID       string          `json:"item_id,omitempty"`
	Item         *outputItem     `json:"item,omitempty"`
	Part         *outputText     `json:"part,omitempty"`
	Delta        *string         `json:"delta,omitempty"`
	Text         *string         `json:"text,omitempty"`
	Arguments    *string         `json:"arguments,omitempty"`
	Name         string          `json:"name,omitempty"`
	Logprobs     *[]string       `json:"logprobs,omitempty"`
	Code         string          `json:"code,omitempty"`
	Message      string          `json:"message,omitempty"`
	Param        *string         `json:"param,omitempty"`
}

// eventName is what stands on the event's own line.
func (e responseEvent) eventName() string { return e.Type }

// streamResponse writes the events of a generation. When it cannot, it cancels and waits for the model to let go.
func (s *Server) streamResponse(w http.ResponseWriter, r *http.Request, b *responseBuilder, g *generation) error {
	out := &eventWriter{w: w, control: http.NewResponseController(w), timeout: s.limits.WriteTimeout}
	x := exchangeOf(r)
	for done := false; !done; {
		select {
		case <-g.queue.ready:
		case <-g.done:
			done = true
		}
		for _, t := range g.queue.take() {
			b.take(t)
		}
		if u := b.object.Usage; u != nil {
			x.prompt, x.completion = u.InputTokens, u.OutputTokens
		}
		if err := out.send(b.ready()...); err != nil {
			return s.abandon(g, err)
		}
	}
	if g.err == nil {
		return nil
	}
	err := asResponses(g.err)
	if !out.begun {
		return err
	}
	failed := asError(err)
	if failed.Status != statusClientClosed {
		b.tell(responseEvent{Type: "error", Code: failed.Code, Message: failed.Message, Param: optional(failed.Param)})
		_ = out.send(b.ready()...) // the error is reported either way
	}
	return failed
}

// ready takes the events that were not yet sent.
func (b *responseBuilder) ready() []any {
	events := make([]any, len(b.events))
	for i, e := range b.events {
		events[i] = e
	}
	b.events = nil
	return events
}

// POST /v1/responses: OpenAI's newer endpoint, stateless: nothing is stored, the whole conversation comes with each request.

package server

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"glimpse/engine"
)

type responseObject struct {
	ID                 string            `json:"id"`
	Object             string            `json:"object"`
	CreatedAt          int64             `json:"created_at"`
	CompletedAt        *int64            `json:"completed_at"`
	Status             string            `json:"status"`
	Error              *errorObject      `json:"error"`
	IncompleteDetails  *incompleteReason `json:"incomplete_details"`
	Instructions       *string           `json:"instructions"`
	MaxOutputTokens    *int64            `json:"max_output_tokens"`
	Model              string            `json:"model"`
	Output             []outputItem      `json:"output"`
	ParallelToolCalls  bool              `json:"parallel_tool_calls"`
	PreviousResponseID *string           `json:"previous_response_id"` // always null
	Store              bool              `json:"store"`                // always false
	Temperature        float64           `json:"temperature"`
	TopP               float64           `json:"top_p"`
	Text               repeated          `json:"text"`
	ToolChoice         repeated          `json:"tool_choice"`
	Tools              []repeated        `json:"tools"`
	Truncation         string            `json:"truncation"`
	Metadata           map[string]string `json:"metadata"`
	Usage              *responseUsage    `json:"usage"`
}

// repeated is a part of the request that the reply has too.
type repeated json.RawMessage

// MarshalJSON writes it as it stands.
func (e repeated) MarshalJSON() ([]byte, error) { return e, nil }

func (repeated) replySchema() map[string]any { return map[string]any{} }

func repeat(v any) repeated { return repeated(encode(v)) }

type incompleteReason struct {
	Reason string `json:"reason"`
}

// outputItem is a message or a function call.
type outputItem struct {
	ID        string        `json:"id"`
	Type      string        `json:"type"`
	Status    string        `json:"status"`
	Role      string        `json:"role,omitempty"`
	Content   *[]outputText `json:"content,omitempty"`
	CallID    string        `json:"call_id,omitempty"`
	Name      string        `json:"name,omitempty"`
	Arguments *string       `json:"arguments,omitempty"`
}

type outputText struct {
	Type        string   `json:"type"`
	Text        string   `json:"text"`
	Annotations []string `json:"annotations"` // always empty
	Logprobs    []string `json:"logprobs"`    // always empty
}

func newOutputText(text string) outputText {
	return outputText{Type: "output_text", Text: text, Annotations: []string{}, Logprobs: []string{}}
}

type responseUsage struct {
	InputTokens   int               `json:"input_tokens"`
	InputDetails  inputTokenDetails `json:"input_tokens_details"`
	OutputTokens  int               `json:"output_tokens"`
	OutputDetails outputDetails     `json:"output_tokens_details"`
	TotalTokens   int               `json:"total_tokens"`
}

type inputTokenDetails struct {
	CachedTokens int `json:"cached_tokens"`
	ImageTokens  int `json:"image_tokens"`
}

type outputDetails struct {
	ReasoningTokens int `json:"reasoning_tokens"`
}

func (s *Server) responses(w http.ResponseWriter, r *http.Request) error {
	var q responsesRequest
	return s.converse(w, r, responsesSchema, &q, func(ctx context.Context, m *served) error {
		request, reader, err := s.responsesOf(ctx, &q)
		if err != nil {
			return asResponses(err)
		}
		x := exchangeOf(r)
		x.pictures = pictures(request)
		b := newResponseBuilder(&q, m.name, request.Sampling, reader)
		g := s.generate(ctx, m, request, 1)
		if q.Stream {
			return s.streamResponse(w, r, b, g)
		}
		<-g.done
		if g.err != nil {
			return asResponses(g.err)
		}
		for _, t := range g.queue.take() {
			b.take(t)
		}
		x.prompt, x.completion = b.object.Usage.InputTokens, b.object.Usage.OutputTokens
		writeJSON(w, http.StatusOK, b.object)
		return nil
	})
}

// responseBuilder puts a response together and tells each step as an event.
type responseBuilder struct {
	object responseObject
	reader answerReader
	events []responseEvent // not yet sent
	next   int             // number of the next event
	open   bool            // the last item is not finished
}

func newResponseBuilder(q *responsesRequest, model string, sampling engine.Sampling, reader answerReader) *responseBuilder {
	b := &responseBuilder{reader: reader}
	o := responseObject{
		ID: newID("resp_"), Object: "response", CreatedAt: time.Now().Unix(), Status: "in_progress", Instructions: optional(q.Instructions),
		MaxOutputTokens: q.MaxOutputTokens, Model: model, Output: []outputItem{}, ParallelToolCalls: !reader.single,
		Temperature: sampling.Temperature, TopP: 1, ToolChoice: repeat("auto"), Tools: []repeated{}, Truncation: "disabled", Metadata: map[string]string{},
	}
	if q.TopP != nil {
		o.TopP = *q.TopP
	}
	if q.Temperature != nil {
		o.Temperature = *q.Temperature
	}
	format := map[string]any{"type": "text"}
	if q.Text != nil && q.Text.Format != nil {
		f := q.Text.Format
		if format["type"] = f.Type; f.Schema != nil {
			format["name"], format["schema"], format["strict"] = f.Name, json.RawMessage(f.Schema), f.Strict
		}
	}
	o.Text = repeat(map[string]any{"format": format})
	if c := q.ToolChoice; c != nil && c.IsText {
		o.ToolChoice = repeat(c.Text)
	} else if c != nil {
		o.ToolChoice = repeat(map[string]string{"type": "function", "name": c.Value.Name})
	}
	for _, t := range q.Tools {
		tool := map[string]any{"type": "function", "name": t.Name, "description": optional(t.Description), "strict": t.Strict, "parameters": nil}
		if t.Parameters != nil {
			tool["parameters"] = json.RawMessage(t.Parameters)
		}
		o.Tools = append(o.Tools, repeat(tool))
	}
	b.object = o
	return b
}

// take takes the next token, or the end.
func (b *responseBuilder) take(t choiceToken) {
	if b.next == 0 {
		b.tell(responseEvent{Type: "response.created", Response: b.snapshot()})
		b.tell(responseEvent{Type: "response.in_progress", Response: b.snapshot()})
	}
	if t.result == nil {
		b.pieces(b.reader.push(t.token.Text))
		return
	}
	b.pieces(b.reader.finish())
	if len(b.object.Output) == 0 {
		b.begin(b.message())
	}
	status := "completed"
	if t.result.FinishReason == engine.FinishLength {
		status, b.object.IncompleteDetails = "incomplete", &incompleteReason{"max_output_tokens"}
	}
	b.end(status)
	b.object.Status = status
	now := time.Now().Unix()
	b.object.CompletedAt = &now
	u := t.result.Usage
	b.object.Usage = &responseUsage{InputTokens: u.PromptTokens, InputDetails: inputTokenDetails{CachedTokens: u.CachedTokens, ImageTokens: u.ImageTokens},
		OutputTokens: u.CompletionTokens, TotalTokens: u.PromptTokens + u.CompletionTokens}
	b.tell(responseEvent{Type: "response." + status, Response: b.snapshot()})
}

func (b *responseBuilder) pieces(pieces []answerPiece) {
	for _, p := range pieces {
		if p.call == nil {
			b.text(p.content)
			continue
		}
		if p.call.id != "" {
			b.begin(outputItem{ID: newID("fc_"), Type: "function_call", Status: "in_progress", CallID: p.call.id, Name: p.call.name, Arguments: new(string)})
		}
		if p.call.arguments != "" {
			item := b.last()
			*item.Arguments += p.call.arguments
			b.tell(b.about(responseEvent{Type: "response.function_call_arguments.delta", Delta: &p.call.arguments}))
		}
	}
}

func (b *responseBuilder) message() outputItem {
	return outputItem{ID: newID("msg_"), Type: "message", Status: "in_progress", Role: "assistant", Content: &[]outputText{}}
}

func (b *responseBuilder) text(text string) {
	if !b.open || b.last().Type != "message" {
		b.begin(b.message())
	}
	(*b.last().Content)[0].Text += text
	b.tell(b.about(responseEvent{Type: "response.output_text.delta", ContentIndex: new(int), Delta: &text, Logprobs: &[]string{}}))
}

func (b *responseBuilder) last() *outputItem { return &b.object.Output[len(b.object.Output)-1] }

// begin opens an item and ends the one before.
func (b *responseBuilder) begin(item outputItem) {
	b.end("completed")
	b.object.Output, b.open = append(b.object.Output, item), true
	index := len(b.object.Output) - 1
	b.tell(responseEvent{Type: "response.output_item.added", OutputIndex: &index, Item: b.last().copied()})
	if item.Content != nil {
		part := newOutputText("")
		*b.last().Content = []outputText{part}
		b.tell(b.about(responseEvent{Type: "response.content_part.added", ContentIndex: new(int), Part: &part}))
	}
}

// end closes the last item.
func (b *responseBuilder) end(status string) {
	if !b.open {
		return
	}
	b.open = false
	item := b.last()
	item.Status = status
	if item.Content != nil {
		part := (*item.Content)[0]
		b.tell(b.about(responseEvent{Type: "response.output_text.done", ContentIndex: new(int), Text: &part.Text, Logprobs: &[]string{}}))
		b.tell(b.about(responseEvent{Type: "response.content_part.done", ContentIndex: new(int), Part: &part}))
	} else {
		arguments := *item.Arguments
		b.tell(b.about(responseEvent{Type: "response.function_call_arguments.done", Arguments: &arguments, Name: item.Name}))
	}
	index := len(b.object.Output) - 1
	b.tell(responseEvent{Type: "response.output_item.done", OutputIndex: &index, Item: item.copied()})
}

// copied is the item as it is now: events are sent later.
func (item outputItem) copied() *outputItem {
	if item.Content != nil {
		content := append([]outputText{}, *item.Content...)
		item.Content = &content
	}
	if item.Arguments != nil {
		arguments := *item.Arguments
		item.Arguments = &arguments
	}
	return &item
}

// snapshot is the response as it is now.
func (b *responseBuilder) snapshot() *responseObject {
	o := b.object
	o.Output = []outputItem{}
	for _, item := range b.object.Output {
		o.Output = append(o.Output, *item.copied())
	}
	return &o
}

// about says which item an event is about: the last one.
func (b *responseBuilder) about(e responseEvent) responseEvent {
	index := len(b.object.Output) - 1
	e.OutputIndex, e.ItemID = &index, b.last().ID
	return e
}

func (b *responseBuilder) tell(e responseEvent) {
	e.Sequence = b.next
	b.next++
	b.events = append(b.events, e)
}

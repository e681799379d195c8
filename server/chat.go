// POST /v1/chat/completions: the whole answer at once. stream.go is the other way.

package server

import (
	"context"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"glimpse/engine"
)

type completion struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Created int64    `json:"created"`
	Model   string   `json:"model"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage"`
}

type choice struct {
	Index        int       `json:"index"`
	Message      reply     `json:"message"`
	Logprobs     *logprobs `json:"logprobs"`
	FinishReason string    `json:"finish_reason"`
}

type reply struct {
	Role      string      `json:"role"`
	Content   *string     `json:"content"` // null beside calls
	Refusal   *string     `json:"refusal"` // always null: there for clients that expect it
	ToolCalls []replyCall `json:"tool_calls,omitempty"`
	// Boxes are the places in the pictures that the content points at; absent where there are none.
	Boxes []engine.Box `json:"boxes,omitempty"`
}

type replyCall struct {
	ID       string        `json:"id"`
	Type     string        `json:"type"`
	Function replyFunction `json:"function"`
}

type replyFunction struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// finishCalls is why an answer ended that asks for calls.
const finishCalls = "tool_calls"

// replyOf reads a whole answer.
func replyOf(reader answerReader, r *engine.Result) (reply, string) {
	out := reply{Role: "assistant", Boxes: r.Boxes}
	var text strings.Builder
	for _, p := range append(reader.push(r.Text), reader.finish()...) {
		switch {
		case p.call == nil:
			text.WriteString(p.content)
		case p.call.id != "":
			out.ToolCalls = append(out.ToolCalls, replyCall{ID: p.call.id, Type: "function", Function: replyFunction{p.call.name, p.call.arguments}})
		default:
			out.ToolCalls[p.call.index].Function.Arguments += p.call.arguments
		}
	}
	if content := text.String(); content != "" || len(out.ToolCalls) == 0 {
		out.Content = &content
	}
	return out, reader.reason(r.FinishReason)
}

// reason is why the answer ended, as clients are told.
func (r *answerReader) reason(finish string) string {
	if r.calls > 0 && finish == engine.FinishStop {
		return finishCalls
	}
	return finish
}

type usage struct {
	PromptTokens     int          `json:"prompt_tokens"`
	CompletionTokens int          `json:"completion_tokens"`
	TotalTokens      int          `json:"total_tokens"`
	PromptDetails    usageDetails `json:"prompt_tokens_details"`
}

type usageDetails struct {
	CachedTokens int `json:"cached_tokens"` // that were not computed again
	ImageTokens  int `json:"image_tokens"`  // videos included
	AudioTokens  int `json:"audio_tokens,omitempty"`
}

type logprobs struct {
	Content []tokenLogprob `json:"content"`
}

type tokenLogprob struct {
	Token   string       `json:"token"`
	Logprob float64      `json:"logprob"`
	Bytes   []int        `json:"bytes"`
	Top     []topLogprob `json:"top_logprobs"`
}

type topLogprob struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

func (s *Server) chatCompletions(w http.ResponseWriter, r *http.Request) error {
	var q chatRequest
	return s.converse(w, r, chatSchema, &q, func(ctx context.Context, m *served) error {
		c, err := s.chatOf(ctx, m, &q)
		if err != nil {
			return err
		}
		x := exchangeOf(r)
		x.pictures = pictures(c.request)
		g := s.generate(ctx, m, c.request, c.choices)
		if c.stream {
			return s.stream(w, r, c, g)
		}
		<-g.done
		if g.err != nil {
			return g.err
		}
		writeJSON(w, http.StatusOK, completionOf(x, c, g.queue.take()))
		return nil
	})
}

// completionOf puts finished choices together.
func completionOf(x *exchange, c *chat, tokens []choiceToken) completion {
	out := completion{ID: newID("chatcmpl-"), Object: "chat.completion", Created: time.Now().Unix(), Model: c.model.name, Choices: make([]choice, c.choices)}
	total := &usage{}
	for i := range out.Choices {
		out.Choices[i] = choice{Index: i, Message: reply{Role: "assistant"}}
		if c.logprobs {
			out.Choices[i].Logprobs = &logprobs{Content: []tokenLogprob{}}
		}
	}
	for _, t := range tokens {
		ch := &out.Choices[t.choice]
		if t.result != nil {
			ch.Message, ch.FinishReason = replyOf(c.reader, t.result)
			total.add(t.result)
			continue
		}
		if c.logprobs && !t.token.Stop {
			ch.Logprobs.Content = append(ch.Logprobs.Content, logprobOf(t.token, c.topLogprobs))
		}
	}
	out.Usage = total
	x.prompt, x.completion = total.PromptTokens, total.CompletionTokens
	return out
}

// add counts one choice. Choices share their prompt, which is counted once.
func (u *usage) add(r *engine.Result) {
	u.PromptTokens = r.Usage.PromptTokens
	u.PromptDetails.ImageTokens, u.PromptDetails.AudioTokens = r.Usage.ImageTokens, r.Usage.AudioTokens
	if u.CompletionTokens == 0 || r.Usage.CachedTokens < u.PromptDetails.CachedTokens { // of the choice that read the prompt
		u.PromptDetails.CachedTokens = r.Usage.CachedTokens
	}
	u.CompletionTokens += r.Usage.CompletionTokens
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
}

// lowestLogprob stands for minus infinity, which JSON has no number for; OpenAI's value.
const lowestLogprob = -9999

func logprobOf(t engine.Token, top int) tokenLogprob {
	out := tokenLogprob{Token: t.Piece, Logprob: finite(t.Logprob), Bytes: pieceBytes(t.Piece), Top: []topLogprob{}}
	for _, a := range t.Top[:min(top, len(t.Top))] {
		out.Top = append(out.Top, topLogprob{Token: a.Piece, Logprob: finite(a.Logprob), Bytes: pieceBytes(a.Piece)})
	}
	return out
}

func finite(x float32) float64 {
	if !(x > lowestLogprob) { // NaN too
		return lowestLogprob
	}
	return min(float64(x), 0)
}

// pieceBytes are the bytes of a token, or null where it is a part of a character and its text does not tell them.
func pieceBytes(piece string) []int {
	if strings.ContainsRune(piece, utf8.RuneError) {
		return nil
	}
	out := make([]int, len(piece))
	for i := range len(piece) {
		out[i] = int(piece[i])
	}
	return out
}

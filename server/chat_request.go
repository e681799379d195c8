// What POST /v1/chat/completions takes: OpenAI's request, with vLLM's extra sampling parameters, as types that both the
// decoder and the OpenAPI document are made from.

package server

import (
	"context"
	"fmt"
	"strconv"

	"glimpse/engine"
	"glimpse/server/spec"
)

type chatRequest struct {
	conversationRequest

	Messages []chatMessage `json:"messages" required:"true" items:"1..1024" doc:"The conversation so far."`

	StreamOptions *streamOptions `json:"stream_options" doc:"Only with stream."`

	MaxTokens           *int64             `json:"max_tokens" range:"1..1048576" doc:"Most tokens of the answer; older name of max_completion_tokens. Without either, the model's own default."`
	MaxCompletionTokens *int64             `json:"max_completion_tokens" range:"1..1048576" doc:"Most tokens of the answer."`
	N                   *int64             `json:"n" range:"1..128" doc:"Number of answers; the server may allow fewer than the bound here."`
	TopK                *int64             `json:"top_k" range:"-1..1048576" doc:"Keep this many most probable tokens. Default 0, off; so is -1."`
	MinP                *float64           `json:"min_p" range:"0..1" doc:"Drop tokens less probable than this share of the most probable one. Default 0, off."`
	RepetitionPenalty   *float64           `json:"repetition_penalty" range:"0.01..100" doc:"Divides the positive logits of tokens that were there before, multiplies negative ones. Default 1, off."`
	FrequencyPenalty    *float64           `json:"frequency_penalty" range:"-2..2" doc:"Taken from a token's score for each time that the answer already has it. Default 0."`
	PresencePenalty     *float64           `json:"presence_penalty" range:"-2..2" doc:"Taken from a token's score once when the answer already has it. Default 0."`
	LogitBias           map[string]float64 `json:"logit_bias" items:"0..1024" range:"-100..100" doc:"Token ids and what is added to their scores."`
	Seed                *int64             `json:"seed" doc:"The same seed gives the same answers. Choice i of several uses seed + i."`

	Processor *processorOptions `json:"mm_processor_kwargs" doc:"How pictures are prepared, by the name that other servers have for it."`

	Stop        *spec.TextOr[[]string] `json:"stop" items:"1..4" maxlen:"256" doc:"The answer ends before the first of these."`
	Logprobs    bool                   `json:"logprobs" doc:"Return the log-probability of each token of the answer."`
	TopLogprobs *int64                 `json:"top_logprobs" range:"0..20" doc:"And of this many most probable tokens at its place; needs logprobs."`

	ResponseFormat *responseFormat          `json:"response_format" doc:"The form of the answer; without it plain text."`
	Tools          []tool                   `json:"tools" items:"0..128" doc:"Functions that the model may ask for."`
	ToolChoice     *spec.TextOr[toolChoice] `json:"tool_choice" enum:"none|auto|required" doc:"Whether it may, must not or must; or the function that it must. Default auto."`

	Functions        spec.Refused `json:"functions" accept:"null|[]"`
	FunctionCall     spec.Refused `json:"function_call" accept:"null|\"none\"|\"auto\""`
	Modalities       spec.Refused `json:"modalities" accept:"null|[\"text\"]"`
	Audio            spec.Refused `json:"audio" accept:"null"`
	Prediction       spec.Refused `json:"prediction" accept:"null"`
	ReasoningEffort  spec.Refused `json:"reasoning_effort" accept:"null|\"none\""`
	Verbosity        spec.Refused `json:"verbosity" accept:"null"`
	WebSearchOptions spec.Refused `json:"web_search_options" accept:"null"`
}

// processorOptions bound the area that a picture is resized to, and so its tokens.
type processorOptions struct {
	MinPixels *int64 `json:"min_pixels" range:"1..268435456" doc:"Least area that a picture is resized to, for models that take pictures at their own size."`
	MaxPixels *int64 `json:"max_pixels" range:"1..268435456" doc:"Largest such area."`
}

// options are those of the engine.
func (o *processorOptions) options() (out engine.PictureOptions) {
	if o == nil {
		return out
	}
	if o.MinPixels != nil {
		out.MinPixels = int(*o.MinPixels)
	}
	if o.MaxPixels != nil {
		out.MaxPixels = int(*o.MaxPixels)
	}
	return out
}

type streamOptions struct {
	IncludeUsage       bool         `json:"include_usage" doc:"Send one more event, with the tokens used, at the end."`
	IncludeObfuscation spec.Refused `json:"include_obfuscation" accept:"null|false"`
}

type chatMessage struct {
	Role       string                      `json:"role" required:"true" enum:"system|developer|user|assistant|tool" doc:"Who speaks; developer is the newer name of system, tool is the result of a call."`
	Content    *spec.TextOr[[]contentPart] `json:"content" items:"1..256" doc:"Text, or parts. Only an assistant's message with tool_calls may be without."`
	ToolCalls  []messageCall               `json:"tool_calls" items:"0..128" doc:"Of an assistant's message: the functions that it asked for."`
	ToolCallID string                      `json:"tool_call_id" maxlen:"256" doc:"Of a tool's message, which needs it: the call whose result it is."`

	Name         spec.Refused `json:"name" accept:"null"`
	FunctionCall spec.Refused `json:"function_call" accept:"null"`
	Refusal      spec.Refused `json:"refusal" accept:"null"`
	Audio        spec.Refused `json:"audio" accept:"null"`
	Annotations  spec.Refused `json:"annotations" accept:"null|[]"`
}

type contentPart struct {
	Type     string    `json:"type" required:"true" enum:"text|image_url|video_url|audio_url|input_audio" doc:"Which of the fields below the part has."`
	Text     *string   `json:"text" doc:"Of a text part."`
	ImageURL *imageURL `json:"image_url" doc:"Of an image_url part."`

	VideoURL   *clipURL    `json:"video_url" doc:"Of a video_url part, for models that take videos."`
	AudioURL   *clipURL    `json:"audio_url" doc:"Of an audio_url part, for models that take sound; of a video, its sound."`
	InputAudio *inputAudio `json:"input_audio" doc:"Of an input_audio part."`

	File    spec.Refused `json:"file" accept:"null"`
	Refusal spec.Refused `json:"refusal" accept:"null"`
}

type imageURL struct {
	URL    string       `json:"url" required:"true" doc:"data:image/…;base64,…; http(s) and file URLs as the server allows."`
	Detail spec.Refused `json:"detail" accept:"null|\"auto\""`
}

// chat is a checked request.
type chat struct {
	model        *served
	request      engine.Request // without Token
	choices      int
	stream       bool
	includeUsage bool
	logprobs     bool
	topLogprobs  int
	reader       answerReader // a copy reads each answer
}

// chatOf checks what the types cannot say and gets the pictures.
func (s *Server) chatOf(ctx context.Context, m *served, q *chatRequest) (*chat, error) {
	c := &chat{model: m, choices: 1, stream: q.Stream, logprobs: q.Logprobs}
	if q.StreamOptions != nil {
		if !q.Stream {
			return nil, invalid("stream_options", spec.CodeValue, "stream_options is only allowed with stream: true")
		}
		c.includeUsage = q.StreamOptions.IncludeUsage
	}
	if q.N != nil {
		if *q.N > int64(s.limits.Choices) {
			return nil, invalid("n", spec.CodeValue, fmt.Sprintf("n is %d; this server allows at most %d", *q.N, s.limits.Choices))
		}
		c.choices = int(*q.N)
	}
	if q.TopLogprobs != nil {
		if !q.Logprobs {
			return nil, invalid("top_logprobs", spec.CodeValue, "top_logprobs needs logprobs: true")
		}
		c.topLogprobs = int(*q.TopLogprobs)
	}
	if c.logprobs {
		c.request.Logprobs = max(c.topLogprobs, 1) // the engine's 0 means none at all
	}
	var err error
	if err = q.limitTokens(&c.request); err != nil {
		return nil, err
	}
	if err = q.stops(&c.request); err != nil {
		return nil, err
	}
	c.request.Sampling = q.sampling()
	c.request.PictureOptions = q.Processor.options()
	if c.request.LogitBias, err = biases(q.LogitBias); err != nil {
		return nil, err
	}
	if c.request.Constraint, err = q.ResponseFormat.constraint(); err != nil {
		return nil, err
	}
	if c.reader, err = q.offered().apply(&c.request); err != nil {
		return nil, err
	}
	if c.request.Messages, err = s.messages(ctx, m, q.Messages); err != nil {
		return nil, err
	}
	return c, nil
}

func (q *chatRequest) size() (choices, tokens int) {
	return int(max(1, valueOf(q.N))), int(max(valueOf(q.MaxTokens), valueOf(q.MaxCompletionTokens)))
}

// valueOf is what a field says, or the zero of its type.
func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (q *chatRequest) limitTokens(r *engine.Request) error {
	most := q.MaxCompletionTokens
	if most == nil {
		most = q.MaxTokens
	} else if q.MaxTokens != nil && *q.MaxTokens != *most {
		return invalid("max_tokens", spec.CodeValue, "max_tokens and max_completion_tokens are both there and differ: send one")
	}
	if most != nil {
		r.MaxTokens = int(*most)
	}
	return nil
}

func (q *chatRequest) stops(r *engine.Request) error {
	if q.Stop == nil {
		return nil
	}
	r.Stop = q.Stop.Value
	if q.Stop.IsText {
		r.Stop = []string{q.Stop.Text}
	}
	for _, stop := range r.Stop {
		if stop == "" {
			return invalid("stop", spec.CodeValue, "stop must not hold an empty string")
		}
	}
	return nil
}

func (q *chatRequest) sampling() engine.Sampling {
	var p engine.Sampling
	if q.Temperature != nil {
		p.Temperature = *q.Temperature
	}
	if q.TopP != nil {
		p.TopP = *q.TopP
		if p.TopP == 0 { // the engine's 0 is "off"; here it leaves one token, which is what greedy decoding takes
			p.Temperature = 0
		}
	}
	if q.TopK != nil {
		p.TopK = int(max(*q.TopK, 0))
	}
	if q.MinP != nil {
		p.MinP = *q.MinP
	}
	if q.RepetitionPenalty != nil {
		p.RepetitionPenalty = *q.RepetitionPenalty
	}
	if q.FrequencyPenalty != nil {
		p.FrequencyPenalty = *q.FrequencyPenalty
	}
	if q.PresencePenalty != nil {
		p.PresencePenalty = *q.PresencePenalty
	}
	if q.Seed != nil {
		seed := uint64(*q.Seed)
		p.Seed = &seed
	}
	return p
}

// biases reads the token ids of logit_bias, which JSON has as names.
func biases(in map[string]float64) (map[int32]float64, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make(map[int32]float64, len(in))
	for name, bias := range in {
		id, err := strconv.ParseInt(name, 10, 32)
		if err != nil || id < 0 || strconv.FormatInt(id, 10) != name {
			return nil, invalid("logit_bias", spec.CodeValue, fmt.Sprintf("logit_bias has the key %.40q, which is not a token id", name))
		}
		out[int32(id)] = bias
	}
	return out, nil
}

// messages turns OpenAI's messages into the engine's.
func (s *Server) messages(ctx context.Context, model *served, list []chatMessage) ([]engine.Message, error) {
	out := make([]engine.Message, 0, len(list))
	pictures := 0
	for i, m := range list {
		role := m.Role
		if role == "developer" {
			role = "system"
		}
		path := fmt.Sprintf("messages[%d]", i)
		calls, err := toolMessage(path, m)
		if err != nil {
			return nil, err
		}
		turn := engine.Message{Role: role, ToolCalls: calls, ToolCallID: m.ToolCallID}
		if m.Content == nil || m.Content.IsText {
			if m.Content != nil {
				turn.Content = []engine.Part{{Type: engine.PartText, Text: m.Content.Text}}
			}
			out = append(out, turn)
			continue
		}
		for j, p := range m.Content.Value {
			path := fmt.Sprintf("%s.content[%d]", path, j)
			if p.Type != "text" {
				if pictures++; pictures > s.limits.Pictures {
					return nil, invalid(path, spec.CodeValue, fmt.Sprintf("%s: a request may have at most %d pictures, videos and sounds on this server", path, s.limits.Pictures))
				}
			}
			part, err := s.part(ctx, model, path, p)
			if err != nil {
				return nil, err
			}
			turn.Content = append(turn.Content, part)
		}
		out = append(out, turn)
	}
	return out, nil
}

func (s *Server) part(ctx context.Context, m *served, path string, p contentPart) (engine.Part, error) {
	fields := map[string]bool{"text": p.Text != nil, "image_url": p.ImageURL != nil, "video_url": p.VideoURL != nil,
		"audio_url": p.AudioURL != nil, "input_audio": p.InputAudio != nil}
	for name, given := range fields {
		if given != (name == p.Type) {
			return engine.Part{}, invalid(path, spec.CodeValue, fmt.Sprintf("%s: a part of type %s has the field %s and no other", path, p.Type, p.Type))
		}
	}
	switch p.Type {
	case "text":
		return engine.Part{Type: engine.PartText, Text: *p.Text}, nil
	case "video_url":
		return s.video(ctx, m, path+".video_url.url", p.VideoURL.URL)
	case "audio_url":
		return s.audio(ctx, m, path+".audio_url.url", p.AudioURL.URL)
	case "input_audio":
		return s.inputAudio(ctx, m, path+".input_audio.data", *p.InputAudio)
	}
	picture, err := s.picture(ctx, path+".image_url.url", p.ImageURL.URL)
	if err != nil {
		return engine.Part{}, err
	}
	return engine.Part{Type: engine.PartImage, Picture: picture}, nil
}

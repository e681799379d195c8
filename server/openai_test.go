package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"glimpse/engine"
)

// These tests are what OpenAI's own client makes of the server.

func client(t *testing.T, base string, more ...option.RequestOption) *openai.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c := openai.NewClient(append([]option.RequestOption{
		option.WithBaseURL(base + "/v1"), option.WithAPIKey("unused"), option.WithMaxRetries(0), option.WithHTTPClient(&http.Client{Transport: transport}),
	}, more...)...)
	return &c
}

func ask(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "tiny", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}}
}

func TestClientCompletion(t *testing.T) {
	fake := newFake("tiny")
	base, _ := start(t, Options{Models: []Model{fake}})
	params := ask("what is this?")
	params.Messages = append([]openai.ChatCompletionMessageParamUnion{openai.SystemMessage("be brief")}, params.Messages...)
	params.Temperature, params.TopP, params.Seed = openai.Float(0.5), openai.Float(0.9), openai.Int(-3)
	params.MaxCompletionTokens = openai.Int(2)
	params.Stop = openai.ChatCompletionNewParamsStopUnion{OfStringArray: []string{"\n", "##"}}
	params.SetExtraFields(map[string]any{"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1})
	got, err := client(t, base).Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	c := got.Choices[0]
	if c.Message.Content != "what is " || c.Message.Role != "assistant" || c.FinishReason != "length" || got.Model != "tiny" || got.Object != "chat.completion" {
		t.Errorf("got %s", got.RawJSON())
	}
	if got.Usage.PromptTokens != 7 || got.Usage.CompletionTokens != 2 || got.Usage.TotalTokens != 9 {
		t.Errorf("usage %+v", got.Usage)
	}
	r := fake.last(t)
	seed := ^uint64(2)
	if diff := cmp.Diff(engine.Sampling{Temperature: 0.5, TopP: 0.9, TopK: 5, MinP: 0.1, RepetitionPenalty: 1.1, Seed: &seed}, r.Sampling); diff != "" {
		t.Errorf("sampling (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"\n", "##"}, r.Stop); diff != "" {
		t.Error(diff)
	}
	want := []engine.Message{
		{Role: "system", Content: []engine.Part{{Type: "text", Text: "be brief"}}},
		{Role: "user", Content: []engine.Part{{Type: "text", Text: "what is this?"}}},
	}
	if diff := cmp.Diff(want, r.Messages); diff != "" {
		t.Error(diff)
	}
}

func TestClientPicture(t *testing.T) {
	fake := newFake("tiny")
	base, _ := start(t, Options{Models: []Model{fake}})
	picture := []byte("\x89PNG not really, the model is fake")
	params := openai.ChatCompletionNewParams{Model: "tiny", Messages: []openai.ChatCompletionMessageParamUnion{
		openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{
			openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64," + base64.StdEncoding.EncodeToString(picture), Detail: "auto"}),
			openai.TextContentPart("look:"),
		}),
	}}
	got, err := client(t, base).Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	parts := fake.last(t).Messages[0].Content
	if len(parts) != 2 || parts[0].Type != engine.PartImage || string(parts[0].Picture.Data) != string(picture) {
		t.Fatalf("the model got %+v", parts)
	}
	if want := fake.answer(fake.last(t)); got.Choices[0].Message.Content != want {
		t.Errorf("got %q, want %q", got.Choices[0].Message.Content, want)
	}
	if got.Usage.PromptTokensDetails.ImageTokens != 4 {
		t.Errorf("image tokens: %s", got.Usage.RawJSON())
	}
}

func TestClientStream(t *testing.T) {
	for _, n := range []int64{1, 3} {
		for _, withUsage := range []bool{false, true} {
			t.Run(fmt.Sprintf("n=%d usage=%v", n, withUsage), func(t *testing.T) {
				base, _ := start(t, Options{Models: []Model{newFake("tiny")}})
				params := ask("one two three four")
				params.N = openai.Int(n)
				if withUsage {
					params.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
				}
				params.Logprobs, params.TopLogprobs = openai.Bool(true), openai.Int(2)
				stream := client(t, base).Chat.Completions.NewStreaming(t.Context(), params)
				defer stream.Close()
				var acc openai.ChatCompletionAccumulator
				tokens := make([]string, n)
				begun := make([]bool, n)
				for stream.Next() {
					chunk := stream.Current()
					if !acc.AddChunk(chunk) {
						t.Fatalf("the accumulator refuses %s", chunk.RawJSON())
					}
					for _, c := range chunk.Choices {
						if !begun[c.Index] && c.Delta.Role != "assistant" {
							t.Errorf("choice %d begins without its role: %s", c.Index, chunk.RawJSON())
						}
						begun[c.Index] = true
						for _, lp := range c.Logprobs.Content {
							tokens[c.Index] += lp.Token
							if len(lp.TopLogprobs) != 2 {
								t.Errorf("%d top_logprobs", len(lp.TopLogprobs))
							}
						}
					}
				}
				if err := stream.Err(); err != nil {
					t.Fatal(err)
				}
				if len(acc.Choices) != int(n) {
					t.Fatalf("%d choices", len(acc.Choices))
				}
				for i, c := range acc.Choices {
					if c.Message.Content != "one two three four" || tokens[i] != c.Message.Content || c.FinishReason != "stop" {
						t.Errorf("choice %d: %q, tokens %q, %q", i, c.Message.Content, tokens[i], c.FinishReason)
					}
				}
				want := int64(0)
				if withUsage {
					want = 7 + 5*n
				}
				if acc.Usage.TotalTokens != want {
					t.Errorf("total tokens %d, want %d", acc.Usage.TotalTokens, want)
				}
			})
		}
	}
}

func TestClientLogprobs(t *testing.T) {
	fake := newFake("tiny")
	base, _ := start(t, Options{Models: []Model{fake}})
	for _, top := range []int64{0, 3} {
		params := ask("größer now")
		params.Logprobs = openai.Bool(true)
		if top > 0 {
			params.TopLogprobs = openai.Int(top)
		}
		got, err := client(t, base).Chat.Completions.New(t.Context(), params)
		if err != nil {
			t.Fatal(err)
		}
		list := got.Choices[0].Logprobs.Content
		if len(list) != 2 || list[0].Token != "größer " || list[1].Logprob != -0.125 || len(list[0].TopLogprobs) != int(top) {
			t.Errorf("top %d: %s", top, got.RawJSON())
		}
		if len(list[0].Bytes) != len("größer ") || list[0].Bytes[2] != 0xc3 {
			t.Errorf("bytes %v", list[0].Bytes)
		}
	}
}

// Each choice has a seed of its own, and the same ones each time.
func TestClientSeeds(t *testing.T) {
	fake := newFake("tiny")
	base, _ := start(t, Options{Models: []Model{fake}})
	params := ask("x")
	params.N, params.Seed, params.Temperature = openai.Int(3), openai.Int(40), openai.Float(1)
	if _, err := client(t, base).Chat.Completions.New(t.Context(), params); err != nil {
		t.Fatal(err)
	}
	seeds := map[uint64]bool{}
	for _, r := range fake.requests {
		seeds[*r.Seed] = true
	}
	if diff := cmp.Diff(map[uint64]bool{40: true, 41: true, 42: true}, seeds); diff != "" {
		t.Error(diff)
	}
}

func TestClientModels(t *testing.T) {
	base, _ := start(t, Options{Models: []Model{newFake("tiny"), newFake("org/other")}})
	c := client(t, base)
	page, err := c.Models.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Data) != 2 || page.Data[0].ID != "tiny" || page.Data[1].ID != "org/other" || page.Data[0].Created == 0 {
		t.Errorf("models %s", page.RawJSON())
	}
	for _, id := range []string{"tiny", "org/other"} {
		m, err := c.Models.Get(t.Context(), id)
		if err != nil || m.ID != id {
			t.Errorf("get %s: %v, %v", id, m, err)
		}
	}
	params := ask("hello")
	params.Model = "org/other"
	got, err := c.Chat.Completions.New(t.Context(), params)
	if err != nil || got.Model != "org/other" {
		t.Errorf("second model: %v, %v", got, err)
	}
}

func TestClientErrors(t *testing.T) {
	fake := newFake("tiny")
	fake.before = func(_ context.Context, r engine.Request) error {
		switch fake.answer(r) {
		case "long":
			return fmt.Errorf("prepare: %w", &engine.RequestError{Param: "messages", Code: engine.CodeContextLength, Message: "the prompt has 9 tokens and the context 8", Err: engine.ErrContextTooLong})
		case "broken":
			return errors.New("secret detail")
		case "panic":
			panic("secret detail")
		}
		return nil
	}
	var log logs
	base, _ := start(t, Options{Models: []Model{fake}, Logger: log.logger()})
	c := client(t, base)
	cases := []struct {
		name   string
		params openai.ChatCompletionNewParams
		status int
		code   string
		param  string
	}{
		{"unknown model", openai.ChatCompletionNewParams{Model: "none", Messages: ask("x").Messages}, 404, "model_not_found", "model"},
		{"context", ask("long"), 400, "context_length_exceeded", "messages"},
		{"tools", func() openai.ChatCompletionNewParams {
			p := ask("x")
			p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionCustomTool(openai.ChatCompletionCustomToolCustomParam{Name: "f"})}
			return p
		}(), 400, "unknown_parameter", "tools[0].custom"},
		{"internal", ask("broken"), 500, "internal_error", ""},
		{"panic", ask("panic"), 500, "internal_error", ""},
	}
	for _, tc := range cases {
		for _, streaming := range []bool{false, true} {
			var err error
			if streaming {
				stream := c.Chat.Completions.NewStreaming(t.Context(), tc.params)
				for stream.Next() {
					t.Errorf("%s: event %s", tc.name, stream.Current().RawJSON())
				}
				err = stream.Err()
			} else {
				_, err = c.Chat.Completions.New(t.Context(), tc.params)
			}
			var api *openai.Error
			if !errors.As(err, &api) {
				t.Fatalf("%s: %v is no *openai.Error", tc.name, err)
			}
			if api.StatusCode != tc.status || api.Code != tc.code || api.Param != tc.param || api.Message == "" || api.Type == "" {
				t.Errorf("%s: got %d %s %s %s", tc.name, api.StatusCode, api.Code, api.Param, api.Message)
			}
			if tc.status == 500 {
				id := api.Message[strings.Index(api.Message, "err_"):]
				id = id[:strings.Index(id, ":")]
				if strings.Contains(api.Message, "secret") {
					t.Errorf("%s: the reply tells internals: %s", tc.name, api.Message)
				}
				waitFor(t, func() bool {
					return strings.Count(log.String(), id) >= 2 && strings.Contains(log.String(), "secret detail")
				})
			}
		}
	}
}

// Many clients at once each get their own answer, in streams too.
func TestClientsAreNotCrossed(t *testing.T) {
	base, _ := start(t, Options{Models: []Model{newFake("tiny")}, Limits: Limits{InFlight: 256}})
	c := client(t, base)
	var wait sync.WaitGroup
	for i := range 200 {
		wait.Go(func() {
			want := strings.Repeat(fmt.Sprintf("client%d ", i), 10+i%40) + "end"
			if i%2 == 0 {
				got, err := c.Chat.Completions.New(t.Context(), ask(want))
				if err != nil || got.Choices[0].Message.Content != want {
					t.Errorf("client %d: %v", i, err)
				}
				return
			}
			stream := c.Chat.Completions.NewStreaming(t.Context(), ask(want))
			var got strings.Builder
			for stream.Next() {
				for _, ch := range stream.Current().Choices {
					got.WriteString(ch.Delta.Content)
				}
			}
			if err := stream.Err(); err != nil || got.String() != want {
				t.Errorf("client %d: %v, got %q", i, err, got.String())
			}
		})
	}
	wait.Wait()
}

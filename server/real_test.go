package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/openai/openai-go/v3"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/graphs"
)

const goldens = "../testdata/goldens"

// goldenCase is what these tests need of a case in cases.json.
type goldenCase struct {
	ID       string
	Images   []string
	Messages []struct {
		Role    string
		Content []struct{ Type, Text string }
	}
	Expected struct {
		Text           string
		Finish         string
		InputIDs       []int32 `json:"input_ids"`
		NumImageTokens int     `json:"num_image_tokens"`
		GeneratedIDs   []int32 `json:"generated_ids"`
		IDsStable      *bool   `json:"ids_stable"`
	}
}

// stable says whether upstream's ids do not depend on its picture decoder.
func (c goldenCase) stable() bool { return c.Expected.IDsStable == nil || *c.Expected.IDsStable }

// messages are the case's, as an OpenAI request has them, in JSON.
func (c goldenCase) messages(t *testing.T) json.RawMessage {
	t.Helper()
	type part map[string]any
	images := c.Images
	var list []map[string]any
	for _, m := range c.Messages {
		var parts []part
		for _, p := range m.Content {
			if p.Type == "text" {
				parts = append(parts, part{"type": "text", "text": p.Text})
				continue
			}
			data, err := os.ReadFile(filepath.Join(goldens, "media", images[0]))
			if err != nil {
				t.Fatal(err)
			}
			images = images[1:]
			url := "data:" + http.DetectContentType(data) + ";base64," + base64.StdEncoding.EncodeToString(data)
			parts = append(parts, part{"type": "image_url", "image_url": part{"url": url}})
		}
		list = append(list, map[string]any{"role": m.Role, "content": parts})
	}
	raw, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// tinyEngine converts and opens llava15-tiny.
func tinyEngine(t *testing.T) *engine.Engine { return realEngine(t, "llava15-tiny", "tiny") }

// realEngine converts and opens the model of a golden set, under a name.
func realEngine(t *testing.T, set, name string) *engine.Engine {
	t.Helper()
	folder, checkpoint := filepath.Join(t.TempDir(), name), filepath.Join(goldens, set, "pieces.toml")
	if _, err := os.Stat(checkpoint); err != nil { // not in pieces
		checkpoint = filepath.Join(goldens, set, "checkpoint")
	}
	if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder, Precision: "fp32"}); err != nil {
		t.Fatal(err)
	}
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1,
		VisionCache: 64 << 20, PrefixCache: true, Speculation: engine.SpeculationAuto}) // as serve does: answers are upstream's all the same
	if err != nil {
		t.Fatal(errors.Join(err, rt.Close()))
	}
	t.Cleanup(func() {
		if err := errors.Join(e.Close(), rt.Close()); err != nil {
			t.Error(err)
		}
	})
	return e
}

// The golden cases of a real model come out of OpenAI's client as upstream has them, all at once, streamed and not.
func TestRealModel(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(goldens, "llava15-tiny", "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Cases []goldenCase }
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	base, _ := start(t, Options{Models: []Model{tinyEngine(t)}})
	c := client(t, base)

	var wait sync.WaitGroup
	for _, tc := range set.Cases {
		messages := tc.messages(t)
		wait.Go(func() { realAnswer(t, c, tc, messages) })
		wait.Go(func() { realStream(t, c, tc, messages) })
		wait.Go(func() { realTokens(t, base, tc, messages) })
	}
	wait.Wait()
	if len(set.Cases) < 10 {
		t.Errorf("%d cases", len(set.Cases))
	}
	realErrors(t, c)

	var again *openai.ChatCompletion
	for range 2 {
		if again, err = c.Chat.Completions.New(t.Context(), realParams(set.Cases[0].messages(t), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if u := again.Usage; u.PromptTokensDetails.CachedTokens < 16 || u.PromptTokensDetails.CachedTokens >= u.PromptTokens {
		t.Errorf("%d of the %d tokens of a prompt that was there before came from the cache", u.PromptTokensDetails.CachedTokens, u.PromptTokens)
	}
}

func realParams(messages json.RawMessage, tokens int) openai.ChatCompletionNewParams {
	params := openai.ChatCompletionNewParams{Model: "tiny", MaxTokens: openai.Int(int64(tokens))}
	params.SetExtraFields(map[string]any{"messages": messages})
	return params
}

func realAnswer(t *testing.T, c *openai.Client, tc goldenCase, messages json.RawMessage) {
	params := realParams(messages, len(tc.Expected.GeneratedIDs))
	params.Logprobs, params.TopLogprobs = openai.Bool(true), openai.Int(2)
	got, err := c.Chat.Completions.New(t.Context(), params)
	if err != nil {
		t.Errorf("%s: %v", tc.ID, err)
		return
	}
	ch := got.Choices[0]
	if tc.stable() && (ch.Message.Content != tc.Expected.Text || string(ch.FinishReason) != tc.Expected.Finish) {
		t.Errorf("%s: %q (%s), want %q (%s)", tc.ID, ch.Message.Content, ch.FinishReason, tc.Expected.Text, tc.Expected.Finish)
	}
	u := got.Usage
	if int(u.PromptTokens) != len(tc.Expected.InputIDs) || int(u.PromptTokensDetails.ImageTokens) != tc.Expected.NumImageTokens || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("%s: usage %s, want %d prompt tokens, %d of pictures", tc.ID, u.RawJSON(), len(tc.Expected.InputIDs), tc.Expected.NumImageTokens)
	}
	if len(ch.Logprobs.Content) != len(tc.Expected.GeneratedIDs) {
		t.Errorf("%s: %d logprobs for %d tokens", tc.ID, len(ch.Logprobs.Content), len(tc.Expected.GeneratedIDs))
	}
	for i, lp := range ch.Logprobs.Content {
		// Greedy: the chosen token is the most probable one.
		if len(lp.TopLogprobs) != 2 || lp.TopLogprobs[0].Logprob != lp.Logprob || lp.TopLogprobs[0].Token != lp.Token || lp.TopLogprobs[1].Logprob > lp.Logprob || lp.Logprob > 0 {
			t.Errorf("%s: token %d: %s", tc.ID, i, lp.RawJSON())
		}
	}
}

func realStream(t *testing.T, c *openai.Client, tc goldenCase, messages json.RawMessage) {
	stream := c.Chat.Completions.NewStreaming(t.Context(), realParams(messages, len(tc.Expected.GeneratedIDs)))
	defer stream.Close()
	var got strings.Builder
	for stream.Next() {
		for _, ch := range stream.Current().Choices {
			got.WriteString(ch.Delta.Content)
		}
	}
	if err := stream.Err(); err != nil {
		t.Errorf("%s, streamed: %v", tc.ID, err)
	}
	if tc.stable() && got.String() != tc.Expected.Text {
		t.Errorf("%s, streamed: %q, want %q", tc.ID, got.String(), tc.Expected.Text)
	}
}

func realTokens(t *testing.T, base string, tc goldenCase, messages json.RawMessage) {
	body, err := json.Marshal(map[string]any{"messages": messages})
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := http.Post(base+"/tokenize", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
		return
	}
	want, err := json.Marshal(tokenizeReply{Count: len(tc.Expected.InputIDs), ImageTokens: tc.Expected.NumImageTokens, Tokens: tc.Expected.InputIDs})
	if err != nil {
		t.Error(err)
		return
	}
	if got := bytes.TrimSpace(raw); !bytes.Equal(got, want) {
		t.Errorf("%s: /tokenize says %s, want %s", tc.ID, got, want)
	}
}

// realErrors: what the engine refuses keeps its code on the way to the client.
func realErrors(t *testing.T, c *openai.Client) {
	picture := func(data string) json.RawMessage {
		return json.RawMessage(`[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + base64.StdEncoding.EncodeToString([]byte(data)) + `"}}]}]`)
	}
	for name, tc := range map[string]struct {
		messages json.RawMessage
		code     string
	}{
		"no picture":    {picture("this is text"), engine.CodeImage},
		"huge picture":  {picture("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\xea\x60\x00\x00\xea\x60\x08\x02\x00\x00\x00\x00\x00\x00\x00"), engine.CodeImage},
		"long prompt":   {json.RawMessage(`[{"role":"user","content":"` + strings.Repeat("word ", 9000) + `"}]`), engine.CodeContextLength},
		"empty message": {json.RawMessage(`[{"role":"system","content":""}]`), ""},
	} {
		_, err := c.Chat.Completions.New(t.Context(), realParams(tc.messages, 4))
		var api *openai.Error
		if tc.code == "" {
			if err != nil && (!errors.As(err, &api) || api.StatusCode >= 500) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.As(err, &api) || api.StatusCode != 400 || api.Code != tc.code {
			t.Errorf("%s: %v, want 400 %s", name, err, tc.code)
		}
	}
}

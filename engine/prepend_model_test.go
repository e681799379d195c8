package engine_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert"
	"glimpse/engine"
)

// openGolden converts a golden set's checkpoint at fp32 and opens it.
func openGolden(t testing.TB, set string, opts engine.Options) *engine.Engine {
	t.Helper()
	return openFolder(t, convertGolden(t, set), opts)
}

// openFolder opens a model folder for a test.
func openFolder(t testing.TB, folder string, opts engine.Options) *engine.Engine {
	t.Helper()
	opts.Runtime = openRuntime(t)
	if opts.Threads == 0 {
		opts.Threads = 1
	}
	e, err := engine.Open(t.Context(), folder, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func convertGolden(t testing.TB, set string) string {
	t.Helper()
	folder, checkpoint := filepath.Join(t.TempDir(), set), filepath.Join(goldens, set, "checkpoint")
	if pieces := filepath.Join(goldens, set, "pieces.toml"); exists(pieces) {
		checkpoint = pieces
	}
	_, err := convert.Convert(t.Context(), convert.Options{Checkpoint: checkpoint, Out: folder, Precision: "fp32"})
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// about asks a raw question about pictures; an empty one asks for a caption.
func about(question string, pictures ...*engine.Picture) engine.Request {
	req := engine.Request{Raw: true, Prompt: question, MaxTokens: 30}
	for _, p := range pictures {
		req.Pictures = append(req.Pictures, *p)
	}
	return req
}

// questions are prompts of several lengths.
func questions(t testing.TB) []engine.Request {
	return []engine.Request{
		about("", media(t, "cat.png")),
		about("Question: what is on the table? Answer:", media(t, "coffee.png")),
		about("a photo of", media(t, "rocket_wide.png")),
		about("Which of the two is larger?", media(t, "cat.png"), media(t, "rocket_wide.png")),
		about(strings.Repeat("No picture, but many words. ", 6)),
		about(strings.Repeat("words ", 29), media(t, "coffee.png")), // more than the encoder's narrowest arena takes
	}
}

var answering = []string{"blip2-opt-tiny", "blip2-t5-tiny", "instructblip-tiny"}

// At steps 1, 7 and 30 the cache, the positions and the relative bias give the logits that a run without a cache gives.
func TestStepsEqualCacheFreeRun(t *testing.T) {
	for _, set := range answering {
		e := openGolden(t, set, engine.Options{Slots: 2})
		for i, req := range questions(t) {
			whole := generate(t, e, t.Context(), req)
			for _, step := range []int{1, 7, 30} {
				if step > len(whole.TokenIDs) {
					if whole.FinishReason != engine.FinishStop {
						t.Errorf("%s, question %d: %d tokens", set, i, len(whole.TokenIDs))
					}
					continue
				}
				req.MaxTokens = step
				stepped, err := e.Trace(t.Context(), req, engine.TraceOptions{})
				if err != nil {
					t.Fatal(err)
				}
				free, err := engine.CacheFree(t.Context(), e, req, whole.TokenIDs[:step-1])
				if err != nil {
					t.Fatal(err)
				}
				if d := largestDifference(stepped.Arrays[engine.ArrayLastLogits].Data, free); !(d < 1e-4) {
					t.Errorf("%s, question %d, step %d: logits differ by %g", set, i, step, d)
				}
			}
		}
	}
}

// Requests of different lengths in the same steps, more than there are slots and some cancelled, answer as if alone.
func TestPrependedBatchEqualsAlone(t *testing.T) {
	for _, set := range answering {
		e := openGolden(t, set, engine.Options{Slots: 3, PrefillChunk: 16})
		reqs := questions(t)
		var want []*engine.Result
		for _, req := range reqs {
			want = append(want, generate(t, e, t.Context(), req))
		}
		if n := want[len(want)-1].Usage.PromptTokens; n <= 64 {
			t.Errorf("%s: the long prompt has %d tokens", set, n)
		}
		var wg sync.WaitGroup
		for round := range 3 {
			for i, req := range reqs {
				wg.Go(func() {
					req := req
					req.MaxTokens = 30 - 7*round
					got := generate(t, e, t.Context(), req)
					if diff := cmp.Diff(want[i].TokenIDs[:min(req.MaxTokens, len(want[i].TokenIDs))], got.TokenIDs); diff != "" {
						t.Errorf("%s, question %d, round %d: %s", set, i, round, diff)
					}
				})
				wg.Go(func() {
					req := req
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					seen := 0
					req.Token = func(engine.Token) {
						if seen++; seen == 1+i {
							cancel()
						}
					}
					if _, err := e.Generate(ctx, req); err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
	}
}

// A request counts the prompt that the encoder reads, and reports its ids.
func TestEncoderPromptIsThePrompt(t *testing.T) {
	e := openGolden(t, "blip2-t5-tiny", engine.Options{Capacity: 40})
	req := about("Question: what is on the table? Answer:", media(t, "coffee.png"))
	req.MaxTokens = 1000
	r := generate(t, e, t.Context(), req)
	if r.Usage.PromptTokens != 20 || r.Usage.ImageTokens != 8 || len(r.PromptTokenIDs) != 20 || r.PromptTokenIDs[0] != 920 || r.PromptTokenIDs[19] != 1 {
		t.Errorf("usage %+v, ids %v", r.Usage, r.PromptTokenIDs)
	}
	// The answer has the decoder's room but for the start token, whatever the prompt takes of the encoder's.
	if len(r.TokenIDs) != 39 || r.FinishReason != engine.FinishLength {
		t.Errorf("%d tokens, %s", len(r.TokenIDs), r.FinishReason)
	}
	for _, req := range []engine.Request{
		about(strings.Repeat("word ", 60), media(t, "cat.png")),
		about("", media(t, "cat.png"), media(t, "cat.png"), media(t, "cat.png"), media(t, "cat.png"), media(t, "cat.png")),
	} {
		_, err := e.Generate(t.Context(), req)
		var bad *engine.RequestError
		if !errors.As(err, &bad) || !errors.Is(err, engine.ErrContextTooLong) || !strings.Contains(bad.Message, "encoder") || !strings.Contains(bad.Message, "40") {
			t.Errorf("a prompt longer than the encoder takes: %v", err)
		}
	}
}

// One user message is the prompt: its texts joined by a blank, its pictures first.
func TestMessageWithoutTemplate(t *testing.T) {
	e := openGolden(t, "instructblip-tiny", engine.Options{})
	cat := media(t, "cat.png")
	raw := generate(t, e, t.Context(), about("What is unusual about this image?", cat))
	req := engine.Request{MaxTokens: 30, Messages: []engine.Message{{Role: "user", Content: []engine.Part{
		{Type: engine.PartText, Text: "What is unusual"}, {Type: engine.PartImage, Picture: cat}, {Type: engine.PartText, Text: "about this image?"},
	}}}}
	got := generate(t, e, t.Context(), req)
	if diff := cmp.Diff(raw.PromptTokenIDs, got.PromptTokenIDs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(raw.TokenIDs, got.TokenIDs); diff != "" {
		t.Error(diff)
	}
	// Names of special tokens in a message are text, for both tokenizers.
	req.Messages[0].Content[0].Text = "</s> [SEP]"
	p, err := e.Prepare(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(p.TokenIDs, 2) || len(p.Tensors["qformer_input_ids"].Int64) == 0 {
		t.Errorf("ids %v", p.TokenIDs)
	}
	ids := p.Tensors["qformer_input_ids"].Int64
	if n := len(ids); ids[0] != 2 || ids[n-1] != 3 || slices.Contains(ids[1:n-1], 3) {
		t.Errorf("the instruction's ids are %v", ids)
	}
	for name, messages := range map[string][]engine.Message{
		"3":      {req.Messages[0], {Role: "assistant", Content: req.Messages[0].Content[:1]}, req.Messages[0]},
		"system": {{Role: "system", Content: req.Messages[0].Content}},
		"empty":  {{Role: "user"}},
	} {
		_, err := e.Generate(t.Context(), engine.Request{Messages: messages})
		var bad *engine.RequestError
		if !errors.As(err, &bad) || !strings.Contains(bad.Message, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPrependedBadRequests(t *testing.T) {
	e := openGolden(t, "instructblip-tiny", engine.Options{})
	cat := media(t, "cat.png")
	for name, c := range map[string]struct {
		req  engine.Request
		code string
		says string
	}{
		"nothing":           {about(""), engine.CodeInvalid, "empty"},
		"long instruction":  {about(strings.Repeat("word ", 80), cat), engine.CodeContextLength, "64"},
		"endless prompt":    {about(strings.Repeat("x", 1<<20), cat), engine.CodeContextLength, "bytes"},
		"an image's own id": {about("a <image> here", cat), engine.CodeInvalid, "image tokens"},
		"NUL":               {about("a\x00b", cat), engine.CodeInvalid, "NUL"},
	} {
		_, err := e.Generate(t.Context(), c.req)
		var bad *engine.RequestError
		if !errors.As(err, &bad) || bad.Code != c.code || !strings.Contains(bad.Message, c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := e.Score(t.Context(), engine.ScoreRequest{Pictures: []engine.Picture{*cat}, Texts: []string{"a"}})
	if !errors.Is(err, engine.ErrNoScores) || !strings.Contains(err.Error(), "instructblip-tiny") {
		t.Errorf("scores of a model without heads: %v", err)
	}
}

// What a manifest says of an encoder is held against the graphs.
func TestDamagedEncoders(t *testing.T) {
	folder := convertGolden(t, "blip2-t5-tiny")
	path := filepath.Join(folder, "model.toml")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rt := openRuntime(t)
	for name, c := range map[string]struct{ from, to, says string }{
		"more layers":        {"layers = 2", "layers = 3", "4 of the 6"},
		"other heads":        {"\nheads = 5", "\nheads = 7", "cross_key"},
		"a decoder's graph":  {`component = "encoder"`, `component = "vision"`, "inputs_embeds"},
		"no such component":  {`component = "encoder"`, `component = "coder"`, "coder"},
		"start token beyond": {"start_token = 0", "start_token = 5000", "start_token"},
		"no encoder":         {"[decoder.encoder]\ncomponent = \"encoder\"\nstart_token = 0\nmax_positions = 512\n", "", "cross_key"},
		"no image id":        {"image = 920", "image = -1", "tokens.image"},
		"unknown expansion":  {`expansion = "prepend"`, `expansion = "append"`, "append"},
	} {
		text := strings.Replace(string(good), c.from, c.to, 1)
		if text == string(good) {
			t.Fatalf("%s: the manifest has no %q", name, c.from)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1})
		if err == nil {
			t.Errorf("%s: it opens", name)
			e.Close()
		} else if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
	"glimpse/preprocess"
)

// requests are prompts of several lengths: none, one and two pictures.
func requests(t testing.TB) []engine.Request {
	cat, rocket, coffee := media(t, "cat.png"), media(t, "rocket_wide.png"), media(t, "coffee.png")
	return []engine.Request{
		ask("Describe the image in detail.", cat),
		ask("Hello! What's 123 + 45?"),
		ask("What is the difference between the two pictures?", cat, rocket),
		ask("What is on the table?\nAnswer the question using a single word or phrase.", coffee),
		ask(strings.Repeat("A long question without a picture. ", 8)),
	}
}

// A prompt in chunks of any size gives the answer of the prompt at once; logits move by rounding only.
func TestChunkedPrefillEqualsWhole(t *testing.T) {
	reqs := requests(t)
	want := make([]*engine.Trace, len(reqs))
	for _, chunk := range []int{1024, 1, 7, 16, 33, 64} {
		e := openTiny(t, engine.Options{PrefillChunk: chunk, Slots: 2})
		for i, req := range reqs {
			got, err := e.Trace(t.Context(), req, engine.TraceOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if want[i] == nil {
				want[i] = got
				continue
			}
			if diff := cmp.Diff(want[i].Result.TokenIDs, got.Result.TokenIDs); diff != "" {
				t.Errorf("chunks of %d, request %d: %s", chunk, i, diff)
			}
			for _, name := range []string{engine.ArrayEmbeds, engine.ArrayFirstLogits, engine.ArrayLastLogits} {
				if d := largestDifference(want[i].Arrays[name].Data, got.Arrays[name].Data); !(d < 1e-4) {
					t.Errorf("chunks of %d, request %d: %s moves by %g", chunk, i, name, d)
				}
			}
		}
	}
}

func largestDifference(a, b []float32) float64 {
	if len(a) != len(b) || len(a) == 0 {
		return math.NaN()
	}
	d := 0.0
	for i := range a {
		d = max(d, math.Abs(float64(a[i])-float64(b[i])))
	}
	return d
}

// Requests that share steps, more of them than there are slots, some cancelled: each answer is that of the request alone.
func TestBatchEqualsAlone(t *testing.T) {
	e := openTiny(t, engine.Options{Slots: 3, PrefillChunk: 16})
	reqs := requests(t)
	n := uint64(5)
	for i := range reqs {
		if i%2 == 1 {
			reqs[i].Sampling = engine.Sampling{Temperature: 0.7, TopP: 0.95, RepetitionPenalty: 1.1, Seed: &n}
		}
	}
	want := make([]*engine.Result, len(reqs))
	for i, req := range reqs {
		want[i] = generate(t, e, t.Context(), req)
	}
	var wg sync.WaitGroup
	for round := range 4 {
		for i, req := range reqs {
			wg.Go(func() {
				req := req
				req.MaxTokens = 24 - 5*round
				got := generate(t, e, t.Context(), req)
				if diff := cmp.Diff(want[i].TokenIDs[:req.MaxTokens], got.TokenIDs); diff != "" {
					t.Errorf("request %d in company: %s", i, diff)
				}
			})
			wg.Go(func() {
				req := req
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				seen := 0
				req.Token = func(engine.Token) {
					if seen++; seen == 2+round {
						cancel()
					}
				}
				if _, err := e.Generate(ctx, req); !errors.Is(err, context.Canceled) || seen != 2+round {
					t.Errorf("a cancelled request: %v after %d tokens", err, seen)
				}
			})
		}
	}
	wg.Wait()
}

func TestStreamAndResultAgree(t *testing.T) {
	e := openTiny(t, engine.Options{})
	for i, req := range requests(t) {
		var text strings.Builder
		var ids []int32
		req.Logprobs = 3
		req.Token = func(tok engine.Token) {
			text.WriteString(tok.Text)
			ids = append(ids, tok.ID)
			if len(tok.Top) != 3 || tok.Top[0].ID != tok.ID || tok.Logprob != tok.Top[0].Logprob || tok.Logprob > 0 || tok.Top[1].Logprob > tok.Logprob {
				t.Errorf("greedy token %d has log-probabilities %v, %v", tok.ID, tok.Logprob, tok.Top)
			}
		}
		r := generate(t, e, t.Context(), req)
		if r.Text != text.String() || !slices.Equal(r.TokenIDs, ids) {
			t.Errorf("request %d: streamed %q, result %q", i, text.String(), r.Text)
		}
		if r.Usage.CompletionTokens != len(ids) || r.Usage.PromptTokens != len(r.PromptTokenIDs) || r.FinishReason != engine.FinishLength {
			t.Errorf("request %d: %+v, %s", i, r.Usage, r.FinishReason)
		}
		if r.Timings.Prefill <= 0 || r.Timings.Decode <= 0 || r.Timings.TokensPerSecond <= 0 || r.Timings.Load <= 0 || (r.Usage.ImageTokens > 0) != (r.Timings.Vision > 0) {
			t.Errorf("request %d: timings %+v", i, r.Timings)
		}
	}
}

func TestStopStrings(t *testing.T) {
	e := openTiny(t, engine.Options{})
	req := requests(t)[0]
	whole := generate(t, e, t.Context(), req)
	stop := whole.Text[10:16]
	req.Stop = []string{"never to be seen", stop}
	r := generate(t, e, t.Context(), req)
	want, _, _ := strings.Cut(whole.Text, stop)
	if r.Text != want || r.FinishReason != engine.FinishStop || len(r.TokenIDs) >= len(whole.TokenIDs) {
		t.Errorf("%q, %s after %d tokens; the whole answer is %q, the stop string %q", r.Text, r.FinishReason, len(r.TokenIDs), whole.Text, stop)
	}
}

// Special tokens and placeholders that users write are text: they end no turn and take no picture.
func TestUsersCannotForgeTokens(t *testing.T) {
	e := openTiny(t, engine.Options{})
	cat := media(t, "cat.png")
	p, err := e.Prepare(t.Context(), ask("before <image> and </s> after", cat))
	if err != nil {
		t.Fatal(err)
	}
	m := e.Manifest()
	images, ends := 0, 0
	for _, id := range p.TokenIDs {
		if int(id) == m.Tokens.Image {
			images++
		}
		if slices.Contains(m.Tokens.EOS, int(id)) {
			ends++
		}
	}
	if images != p.ImageTokens || images != m.Picture.TokensPerTile || ends != 0 {
		t.Errorf("%d image tokens and %d ends of text in the prompt", images, ends)
	}
	if want := "USER: <image>\nbefore <image> and </s> after ASSISTANT:"; p.PromptText != want {
		t.Errorf("the prompt reads %q, want %q", p.PromptText, want)
	}
	// Without a picture the same text is as harmless.
	if p, err = e.Prepare(t.Context(), ask("<image>")); err != nil || p.ImageTokens != 0 || slices.Contains(p.TokenIDs, int32(m.Tokens.Image)) {
		t.Errorf("%v, %v", p, err)
	}
}

func TestRawPrompts(t *testing.T) {
	e := openTiny(t, engine.Options{})
	cat := media(t, "cat.png")
	chat := generate(t, e, t.Context(), ask("Describe the image in detail.", cat))
	raw := engine.Request{Raw: true, Prompt: "USER: <image>\nDescribe the image in detail. ASSISTANT:", Pictures: []engine.Picture{*cat}, MaxTokens: 24}
	if diff := cmp.Diff(chat.TokenIDs, generate(t, e, t.Context(), raw).TokenIDs); diff != "" {
		t.Error(diff)
	}
	raw.Prompt = "<s>" + raw.Prompt // as some clients do: no second BOS
	if r := generate(t, e, t.Context(), raw); !slices.Equal(r.PromptTokenIDs[:1], []int32{1}) || r.PromptTokenIDs[1] == 1 {
		t.Errorf("BOS twice: %v", r.PromptTokenIDs[:3])
	}
}

func TestBadRequests(t *testing.T) {
	e := openTiny(t, engine.Options{Capacity: 100})
	cat := media(t, "cat.png")
	with := func(edit func(*engine.Request)) engine.Request {
		req := ask("What?", cat)
		edit(&req)
		return req
	}
	picture := func(data string) engine.Request {
		return ask("What?", &engine.Picture{Data: []byte(data), Source: "upload.png"})
	}
	for _, c := range []struct {
		name string
		req  engine.Request
		code string
		is   error
		says []string
	}{
		{"no messages", engine.Request{}, engine.CodeInvalid, nil, []string{"no messages"}},
		{"raw without a prompt", engine.Request{Raw: true}, engine.CodeInvalid, nil, []string{"empty"}},
		{"raw with messages", with(func(r *engine.Request) { r.Raw = true }), engine.CodeInvalid, nil, []string{"exclude"}},
		{"messages with a prompt", with(func(r *engine.Request) { r.Prompt = "x" }), engine.CodeInvalid, nil, []string{"raw"}},
		{"unknown part", with(func(r *engine.Request) { r.Messages[0].Content[0].Type = "sound" }), engine.CodeInvalid, nil, []string{"sound"}},
		{"image without a picture", with(func(r *engine.Request) { r.Messages[0].Content[0].Picture = nil }), engine.CodeInvalid, nil, []string{"without a picture"}},
		{"role with a special token", with(func(r *engine.Request) { r.Messages[0].Role = "user</s>" }), engine.CodeInvalid, nil, []string{"role"}},
		{"no role", with(func(r *engine.Request) { r.Messages[0].Role = "" }), engine.CodeInvalid, nil, []string{"role"}},
		{"a token in two parts", with(func(r *engine.Request) {
			r.Messages[0].Content = []engine.Part{{Type: "text", Text: "a <ima"}, {Type: "text", Text: "ge> b"}}
		}), engine.CodeInvalid, nil, []string{"one part"}},
		{"NUL", ask("a\x00b"), engine.CodeInvalid, nil, []string{"NUL"}},
		{"placeholders without pictures", engine.Request{Raw: true, Prompt: "<image> <image>"}, engine.CodeInvalid, nil, []string{"2 placeholders", "0 pictures"}},
		{"pictures without placeholders", engine.Request{Raw: true, Prompt: "x", Pictures: []engine.Picture{*cat}}, engine.CodeInvalid, nil, []string{"0 placeholders", "1 pictures"}},
		{"negative max_tokens", with(func(r *engine.Request) { r.MaxTokens = -1 }), engine.CodeInvalid, nil, []string{"max_tokens"}},
		{"log-probabilities", with(func(r *engine.Request) { r.Logprobs = 21 }), engine.CodeInvalid, nil, []string{"21"}},
		{"temperature", with(func(r *engine.Request) { r.Temperature = -1 }), engine.CodeInvalid, nil, []string{"temperature"}},
		{"stop", with(func(r *engine.Request) { r.Stop = []string{""} }), engine.CodeInvalid, nil, []string{"stop"}},
		{"no picture at all", picture("hello"), engine.CodeImage, engine.ErrPicture, []string{"upload.png", "not a picture"}},
		{"truncated picture", picture(string(cat.Data[:5000])), engine.CodeImage, preprocess.ErrTruncated, []string{"upload.png"}},
		{"empty picture", picture(""), engine.CodeImage, engine.ErrPicture, []string{"upload.png"}},
		{"long text", ask(strings.Repeat("word ", 200)), engine.CodeContextLength, engine.ErrContextTooLong, []string{"holds 100"}},
		{"many pictures", ask("What?", cat, cat, cat, cat, cat, cat, cat), engine.CodeContextLength, engine.ErrContextTooLong, []string{"112", "holds 100"}},
		{"picture and text", ask(strings.Repeat("word ", 90), cat), engine.CodeContextLength, engine.ErrContextTooLong, []string{"16 of them pictures", "holds 100"}},
	} {
		for _, run := range []func() error{
			func() error { _, err := e.Generate(t.Context(), c.req); return err },
			func() error { _, err := e.Prepare(t.Context(), c.req); return err },
		} {
			err := run()
			var bad *engine.RequestError
			if !errors.As(err, &bad) || bad.Code != c.code || bad.Param == "" {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%s: %v is not %v", c.name, err, c.is)
			}
			for _, s := range c.says {
				if !strings.Contains(bad.Message, s) || strings.Contains(bad.Message, "\n") {
					t.Errorf("%s: the message is %q, want %q on one line", c.name, bad.Message, s)
				}
			}
		}
	}
}

// An over-long prompt is refused by the headers alone: this picture's pixels would fail.
func TestLongPromptsAreRefusedBeforeDecoding(t *testing.T) {
	e := openTiny(t, engine.Options{Capacity: 50})
	broken := &engine.Picture{Data: media(t, "cat.png").Data[:5000]}
	if _, err := e.Prepare(t.Context(), ask("What?", broken, broken, broken, broken)); !errors.Is(err, engine.ErrContextTooLong) {
		t.Errorf("%v", err)
	}
}

func TestAnswersAreClippedToTheContext(t *testing.T) {
	e := openTiny(t, engine.Options{Capacity: 60})
	req := ask("Describe the image in detail.", media(t, "cat.png"))
	req.MaxTokens = 1000
	r := generate(t, e, t.Context(), req)
	if len(r.PromptTokenIDs)+len(r.TokenIDs) != 60 || r.FinishReason != engine.FinishLength {
		t.Errorf("%d + %d tokens, %s", len(r.PromptTokenIDs), len(r.TokenIDs), r.FinishReason)
	}
	if e.Context() != 60 {
		t.Errorf("context %d", e.Context())
	}
}

// More pictures than one batch of the picture graphs.
func TestPictureBatches(t *testing.T) {
	cat, coffee, rocket := media(t, "cat.png"), media(t, "coffee.png"), media(t, "rocket_wide.png")
	req := ask("Compare.", cat, coffee, rocket, cat, coffee)
	var want *engine.Trace
	for _, batch := range []int{16, 1, 2, 3} {
		e := openTiny(t, engine.Options{PictureBatch: batch, Slots: 1})
		got, err := e.Trace(t.Context(), req, engine.TraceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = got
		}
		if diff := cmp.Diff(want.Result.TokenIDs, got.Result.TokenIDs); diff != "" {
			t.Errorf("batches of %d: %s", batch, diff)
		}
		if diff := cmp.Diff([]int64{5, 16, 96}, got.Arrays["projected"].Shape); diff != "" {
			t.Errorf("batches of %d: %s", batch, diff)
		}
	}
}

func TestTraceNeedsAPlaceForItsTensors(t *testing.T) {
	e := openTiny(t, engine.Options{})
	cat := media(t, "cat.png")
	pixels := func(n int64) map[string]engine.Array {
		return map[string]engine.Array{"pixel_values": {Shape: []int64{n, 3, 56, 56}, Data: make([]float32, n*3*56*56)}}
	}
	for name, c := range map[string]struct {
		req     engine.Request
		tensors map[string]engine.Array
	}{
		"no picture":         {ask("Hello"), pixels(1)},
		"too many":           {ask("What?", cat), pixels(2)},
		"another size":       {ask("What?", cat), map[string]engine.Array{"pixel_values": {Shape: []int64{1, 3, 2, 2}, Data: make([]float32, 12)}}},
		"shape and data":     {ask("What?", cat), map[string]engine.Array{"pixel_values": {Shape: []int64{1, 3, 56, 56}, Data: make([]float32, 12)}}},
		"nothing":            {ask("What?", cat), map[string]engine.Array{}},
		"without dimensions": {ask("What?", cat), map[string]engine.Array{"pixel_values": {Data: make([]float32, 1)}}},
	} {
		if _, err := e.Trace(t.Context(), c.req, engine.TraceOptions{Tensors: c.tensors}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCloseInterruptsRequests(t *testing.T) {
	rt := openRuntime(t)
	e, err := engine.Open(t.Context(), tinyModel(t), engine.Options{Runtime: rt, Threads: 1, Slots: 2})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{}, 100)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			req := ask("Hello", media(t, "cat.png"))
			req.MaxTokens = 2000
			req.Token = func(engine.Token) {
				select {
				case started <- struct{}{}:
				default:
				}
				time.Sleep(time.Millisecond)
			}
			if _, err := e.Generate(t.Context(), req); !errors.Is(err, engine.ErrClosed) {
				t.Errorf("a request of a closing engine: %v", err)
			}
		})
	}
	<-started
	for range 2 {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if _, err := e.Generate(t.Context(), ask("Hello")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := e.Prepare(t.Context(), ask("Hello")); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A damaged folder is refused by name, and what was opened before is closed again (goleak and the runtime see to that).
func TestDamagedFolders(t *testing.T) {
	rt := openRuntime(t)
	edit := func(old, new string) func(t *testing.T, folder string) {
		return func(t *testing.T, folder string) {
			path := filepath.Join(folder, "model.toml")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(raw), old, new, 1)
			if changed == string(raw) {
				t.Fatalf("the manifest has no %q", old)
			}
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(t *testing.T, folder string) {
		return func(t *testing.T, folder string) {
			if err := os.Remove(filepath.Join(folder, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, folder string)
		says   string
	}{
		{"no manifest", remove("model.toml"), "model.toml"},
		{"no tokenizer", remove("tokenizer.json"), "tokenizer.json"},
		{"no embeddings", remove("embeddings.bin"), "embeddings.bin"},
		{"no decoder", remove("decoder.onnx"), "decoder.onnx"},
		{"no vision", remove("vision.onnx"), "vision.onnx"},
		{"embeddings cut short", func(t *testing.T, folder string) {
			if err := os.Truncate(filepath.Join(folder, "embeddings.bin"), 1000); err != nil {
				t.Fatal(err)
			}
		}, "1000 bytes"},
		{"unknown recipe", edit(`recipe = "clip"`, `recipe = "clop"`), "clop"},
		{"unknown expansion", edit(`expansion = "repeat"`, `expansion = "sing"`), "sing"},
		{"another port", edit(`name = "vision_features"`, `name = "vision_feetures"`), "vision_feetures"},
		{"features from nowhere", edit(`features = "projected"`, `features = "elsewhere"`), "elsewhere"},
		{"another number of layers", edit("layers = 2", "layers = 3"), "past_key.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "model")
			if err := os.CopyFS(folder, os.DirFS(tinyModel(t))); err != nil {
				t.Fatal(err)
			}
			c.damage(t, folder)
			e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1})
			if err == nil {
				e.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %q", err, c.says)
			}
		})
	}
	for _, opts := range []engine.Options{{}, {Runtime: rt, Slots: -1}, {Runtime: rt, Capacity: -1}, {Runtime: rt, Device: "abacus"}} {
		if e, err := engine.Open(t.Context(), tinyModel(t), opts); err == nil {
			e.Close()
			t.Errorf("options %+v were accepted", opts)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, rows := range []int{1, 4} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			e := openTiny(b, engine.Options{Slots: rows})
			b.ReportAllocs()
			tokens := 0
			for b.Loop() {
				var wg sync.WaitGroup
				for range rows {
					wg.Go(func() {
						req := ask("Hello")
						req.MaxTokens = 1500
						generate(b, e, b.Context(), req)
					})
				}
				wg.Wait()
				tokens += 1500 * rows
			}
			b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

func TestDecodeStepsAllocateNothing(t *testing.T) {
	if n := engine.StepAllocs(openTiny(t, engine.Options{Slots: 3})); n != 0 {
		t.Errorf("%v allocations a step", n)
	}
}

// Prompt chunks, decode rows and idle slots share steps without touching each other.
func TestMixedStepsEqualAlone(t *testing.T) {
	e := openTiny(t, engine.Options{Slots: 3})
	var prompts [3][]int32
	for i, text := range []string{"Hello!", "What's 123 + 45?", strings.Repeat("A longer text. ", 5)} {
		p, err := e.Prepare(t.Context(), ask(text))
		if err != nil {
			t.Fatal(err)
		}
		prompts[i] = p.TokenIDs
	}
	alone, mixed := engine.MixedSteps(e, prompts)
	for i := range prompts {
		if d := largestDifference(alone[i], mixed[i]); !(d < 1e-4) {
			t.Errorf("prompt %d: logits move by %g", i, d)
		}
	}
}

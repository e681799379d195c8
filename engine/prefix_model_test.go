package engine_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
)

// followUp is the next turn of a conversation.
func followUp(req engine.Request, answer, question string) engine.Request {
	text := func(s string) []engine.Part { return []engine.Part{{Type: engine.PartText, Text: s}} }
	req.Messages = append(slices.Clone(req.Messages), engine.Message{Role: "assistant", Content: text(answer)}, engine.Message{Role: "user", Content: text(question)})
	return req
}

// Answers of real decoders do not depend on what is reused: learned, rotary and three-axis positions, deepstack rows, pictures
// attended both ways, tables that depend on the length, sliding windows, videos. An engine of one slot goes on where it is;
// one of three copies between slots, and has idle ones beside those that work.
func TestPrefixesGiveTheSameAnswers(t *testing.T) {
	for set, least := range map[string]float64{ // share of the later prompts' tokens that has to be reused, with three slots for six requests
		"llava15-tiny": 0.25, "llavanext-tiny": 0.4, "qwen25vl-tiny": 0.4, "qwen3vl-tiny": 0.25, "internvl3-tiny": 0.25, "gemma3-tiny": 0.25,
		"smolvlm-tiny": 0.25, "llavaonevision-tiny": 0.25, "videollama-tiny": 0.4, "qwenvl-tiny": 0.1, "blip2-opt-tiny": 0.15,
	} {
		t.Run(set, func(t *testing.T) {
			folder := convertGolden(t, set)
			cold := openFolder(t, folder, engine.Options{})
			var reqs []engine.Request
			if set == "blip2-opt-tiny" {
				reqs = []engine.Request{about("a photo of", media(t, "cat.png")), about("Question: what is it? Answer:", media(t, "cat.png")), about("a photo of", media(t, "coffee.png"))}
			} else {
				reqs = conversations(t, set)
			}
			var want []*engine.Result
			for i := 0; i < len(reqs); i++ {
				want = append(want, generate(t, cold, t.Context(), reqs[i]))
				if set != "blip2-opt-tiny" && len(reqs) < 8 && i < 2 {
					reqs = append(reqs, followUp(reqs[i], want[i].Text, "Are you sure? Say it again, please."))
				}
			}
			for _, opts := range []engine.Options{{Slots: 1}, {Slots: 3, PrefillChunk: 23}} {
				opts.PrefixCache, opts.VisionCache = true, 64<<20
				e := openFolder(t, folder, opts)
				for round, prompt, cached := 0, 0, 0; round < 2; round++ {
					for i, req := range reqs {
						got := generate(t, e, t.Context(), req)
						if diff := cmp.Diff(want[i].TokenIDs, got.TokenIDs); diff != "" {
							t.Errorf("%d slots, round %d, request %d, %d of %d tokens reused: %s", opts.Slots, round, i, got.Usage.CachedTokens, got.Usage.PromptTokens, diff)
						}
						prompt, cached = prompt+got.Usage.PromptTokens, cached+got.Usage.CachedTokens
					}
					if share := float64(cached) / float64(prompt); round == 1 && opts.Slots == 3 && share < least {
						t.Errorf("only %d of %d tokens were reused (%.2f)", cached, prompt, share)
					}
				}
				var wg sync.WaitGroup
				for i, req := range reqs {
					wg.Go(func() {
						if got := generate(t, e, t.Context(), req); !slices.Equal(got.TokenIDs, want[i].TokenIDs) {
							t.Errorf("%d slots, request %d in company: %v, want %v", opts.Slots, i, got.TokenIDs, want[i].TokenIDs)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}

// Two pictures with the same ids in their place are two prompts.
func TestPrefixKnowsThePicture(t *testing.T) {
	e := openTiny(t, engine.Options{PrefixCache: true, Slots: 1})
	a, b := ask("What is this?", media(t, "cat.png")), ask("What is this?", media(t, "coffee.png"))
	first := generate(t, e, t.Context(), a)
	second := generate(t, e, t.Context(), b)
	if !slices.Equal(first.PromptTokenIDs, second.PromptTokenIDs) {
		t.Fatal("the prompts have other ids: the test tests nothing")
	}
	if second.Usage.CachedTokens != 0 {
		t.Errorf("%d tokens of another picture were reused", second.Usage.CachedTokens)
	}
}

// Encoder-decoder models reuse nothing, and say so.
func TestNoPrefixBehindAnEncoder(t *testing.T) {
	e := openGolden(t, "blip2-t5-tiny", engine.Options{PrefixCache: true})
	for range 2 {
		if r := generate(t, e, t.Context(), about("Question: what is it? Answer:", media(t, "cat.png"))); r.Usage.CachedTokens != 0 {
			t.Errorf("%d tokens reused", r.Usage.CachedTokens)
		}
	}
}

// A second question about the same picture has no vision time and reads its own text alone.
func TestSecondQuestionReadsItsTextAlone(t *testing.T) {
	e := openTiny(t, engine.Options{PrefixCache: true, VisionCache: 64 << 20})
	first := generate(t, e, t.Context(), ask("What is this?", media(t, "cat.png")))
	second := generate(t, e, t.Context(), ask("Where is it?", media(t, "cat.png")))
	picture := first.Usage.ImageTokens
	if first.Usage.CachedTokens != 0 || second.Usage.CachedTokens < picture || second.Timings.Vision != 0 || second.Timings.Connector != 0 {
		t.Errorf("cached %d and %d tokens of a picture of %d; vision took %v", first.Usage.CachedTokens, second.Usage.CachedTokens, picture, second.Timings.Vision)
	}
	if n := engine.StageRuns(e); n != 1 {
		t.Errorf("%d runs of the picture graphs", n)
	}
	third := followUp(ask("What is this?", media(t, "cat.png")), first.Text, "And "+strings.Repeat("then ", 5)+"?")
	if r := generate(t, e, t.Context(), third); r.Usage.CachedTokens < first.Usage.PromptTokens-1 {
		t.Errorf("%d of the %d tokens of the turn before were reused", r.Usage.CachedTokens, first.Usage.PromptTokens)
	}
}

// Real decoders give the same answers whatever is guessed, alone and in company.
func TestSpeculationGivesTheSameAnswers(t *testing.T) {
	var right uint64
	for _, set := range []string{"llava15-tiny", "qwen25vl-tiny", "gemma3-tiny", "qwenvl-tiny", "blip2-opt-tiny", "blip2-t5-tiny"} {
		t.Run(set, func(t *testing.T) {
			folder := convertGolden(t, set)
			cold := openFolder(t, folder, engine.Options{})
			var reqs []engine.Request
			if strings.HasPrefix(set, "blip2") {
				reqs = questions(t)
			} else {
				reqs = conversations(t, set)[:2]
			}
			for i := range reqs {
				reqs[i].MaxTokens = 60
				if i%2 == 1 {
					n := uint64(i)
					reqs[i].Sampling = engine.Sampling{Temperature: 0.8, TopP: 0.95, FrequencyPenalty: 0.1, Seed: &n}
				}
			}
			var want []*engine.Result
			for _, req := range reqs {
				want = append(want, generate(t, cold, t.Context(), req))
			}
			for _, n := range []int{engine.SpeculationAuto, 4} {
				e := openFolder(t, folder, engine.Options{Speculation: n, Slots: 3})
				for _, together := range []bool{false, true} {
					var wg sync.WaitGroup
					for i, req := range reqs {
						answer := func() {
							if got := generate(t, e, t.Context(), req); !slices.Equal(got.TokenIDs, want[i].TokenIDs) {
								t.Errorf("speculation %d, request %d, %d of %d guesses right: %v, want %v", n, i, got.Timings.Accepted, got.Timings.Drafted, got.TokenIDs, want[i].TokenIDs)
							}
						}
						if wg.Go(answer); !together {
							wg.Wait()
						}
					}
					wg.Wait()
				}
				s := e.Stats().Lookup
				if encoder := set == "blip2-t5-tiny"; encoder && s.Drafted != 0 || n == 4 && !encoder && s.Drafted == 0 || s.Accepted > s.Drafted {
					t.Errorf("%+v", s)
				}
				right += s.Accepted
			}
		})
	}
	if right == 0 {
		t.Error("no guess was right")
	}
}

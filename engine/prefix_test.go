package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"glimpse/preprocess"
)

func prefixScheduler(f *fakeStepper, chunk int, more ...func(*schedulerConfig)) *scheduler {
	cfg := schedulerConfig{slotCount: f.slots, chunk: chunk, hidden: f.hidden, vocab: f.vocab, embed: embedID, prefixCache: true}
	for _, change := range more {
		change(&cfg)
	}
	return newScheduler(f, cfg)
}

// talk is a chat under construction: ids with image tokens, whose features follow from the pictures' keys.
type talk struct {
	ids      []int32
	features []float32
	media    []mediaMark
}

const talkImage = 39 // the image token of the tests

func (c *talk) text(r *rand.Rand, n int) {
	for range n {
		c.ids = append(c.ids, int32(r.IntN(talkImage)))
	}
}

func (c *talk) picture(number, tokens, hidden int) {
	c.media = append(c.media, mediaMark{len(c.ids), tokens, key(number)})
	for i := range tokens {
		c.ids = append(c.ids, talkImage)
		for h := range hidden {
			c.features = append(c.features, float32(1000*number+10*i+h))
		}
	}
}

// Requests with shared beginnings in any order, at once, cancelled, of several scopes: each gets exactly what an engine without
// a cache gives it.
func TestPrefixesDoNotMatter(t *testing.T) {
	total := uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		const vocab, hidden, longest = 40, 3, 160
		slots := rapid.IntRange(1, 4).Draw(t, "slots")
		chunk := rapid.IntRange(1, 24).Draw(t, "chunk")
		limit := rapid.SampledFrom([]int{0, 0, 40, 90}).Draw(t, "rope limit")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		f := newFakeStepper(slots, 2*longest+chunk, hidden, vocab)
		d := prefixScheduler(f, chunk, func(c *schedulerConfig) { c.ropeLimit = limit })
		defer d.close()
		system := &talk{}
		system.text(r, 20)
		var chats []talk // to be continued
		var wg sync.WaitGroup
		for i := range rapid.IntRange(1, 14).Draw(t, "requests") {
			c := talk{}
			switch {
			case len(chats) > 0 && r.IntN(2) == 0:
				c = chats[r.IntN(len(chats))]
				c = talk{c.ids[:len(c.ids):len(c.ids)], c.features[:len(c.features):len(c.features)], c.media[:len(c.media):len(c.media)]}
			case r.IntN(2) == 0:
				c.ids = append(c.ids, system.ids...)
			}
			if len(c.ids) < longest-40 && r.IntN(2) == 0 {
				c.picture(r.IntN(3), 6, hidden)
			}
			c.text(r, 1+r.IntN(20))
			if len(c.ids) > longest-30 {
				continue
			}
			maxNew := 1 + r.IntN(12)
			settings := []Sampling{{}, {Temperature: 1.5, Seed: seed(uint64(i))}, {RepetitionPenalty: 1.3}}[r.IntN(3)]
			ctx, cancel := context.WithCancel(context.Background())
			cancelAt := 1 << 20
			if r.IntN(5) == 0 {
				cancelAt = r.IntN(maxNew)
			}
			q := newTestSequence(ctx, vocab, c.ids, maxNew, settings)
			q.features, q.imageToken, q.media, q.scope = c.features, talkImage, c.media, fmt.Sprint(r.IntN(8)/7)
			n := 0
			q.token = func(Token) {
				if n++; n > cancelAt {
					cancel()
				}
			}
			answer := func() {
				defer cancel()
				err := d.run(q)
				want := alone(nil, f, c.ids, c.features, talkImage, maxNew, settings)
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("request %d: %v", i, err)
					return
				}
				if err != nil {
					want = want[:min(len(want), n)]
				}
				if diff := cmp.Diff(want, q.generated()); diff != "" {
					t.Errorf("request %d, %d tokens reused: %s", i, q.reused, diff)
				}
				if q.reused > len(c.ids)-1 || limit > 0 && len(c.ids) > limit && q.reused > 0 {
					t.Errorf("request %d: %d of %d tokens reused, rope limit %d", i, q.reused, len(c.ids), limit)
				}
			}
			if r.IntN(2) == 0 {
				wg.Go(answer)
				chats = append(chats, c)
				continue
			}
			answer()
			c.ids = append(c.ids[:len(c.ids):len(c.ids)], q.generated()...) // the next turn has this answer in it
			for k, id := range c.ids {
				if id == talkImage && (len(c.media) == 0 || k >= len(q.ids)-len(q.generated())) {
					c.ids[k] = 0 // an answer's token that would stand for a picture in a prompt
				}
			}
			chats = append(chats, c)
		}
		wg.Wait()
		d.close()
		if f.broken != nil {
			t.Error(f.broken)
		}
		total += d.prefix.snapshot().CachedTokens
	})
	if total == 0 {
		t.Error("nothing was reused in all of this")
	}
}

// answered runs a request and returns how many tokens it found in the cache.
func answered(t *testing.T, d *scheduler, c talk, maxNew int, change ...func(*sequence)) int {
	t.Helper()
	q := newTestSequence(context.Background(), 40, c.ids, maxNew, Sampling{})
	q.features, q.imageToken, q.media = c.features, talkImage, c.media
	for _, f := range change {
		f(q)
	}
	if err := d.run(q); err != nil {
		t.Fatal(err)
	}
	return q.reused
}

// What may be reused, token by token.
func TestWhatIsReused(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	begin := talk{}
	begin.text(r, 20)
	begin.picture(1, 10, 2)
	begin.text(r, 10)
	again := func(change func(*talk)) talk {
		c := talk{append([]int32(nil), begin.ids...), begin.features, append([]mediaMark(nil), begin.media...)}
		change(&c)
		return c
	}
	for _, tc := range []struct {
		name   string
		second talk
		config func(*schedulerConfig)
		change func(*sequence)
		want   int
	}{
		{name: "the same prompt, but for its last token", second: begin, want: 39},
		{name: "a longer prompt", second: again(func(c *talk) { c.text(r, 5) }), want: 40},
		{name: "another word", second: again(func(c *talk) { c.ids[35] = (c.ids[35] + 1) % talkImage }), want: 35},
		{name: "another word early on", second: again(func(c *talk) { c.ids[10] = (c.ids[10] + 1) % talkImage }), want: 0},
		{name: "another picture", second: again(func(c *talk) { c.media[0].key = key(2) }), want: 20},
		{name: "another scope", second: begin, change: func(q *sequence) { q.scope = "other" }, want: 0},
		{name: "a trace", second: begin, change: func(q *sequence) { q.trace = &traceSink{} }, want: 0},
		{name: "a prompt beyond the common tables", second: begin, config: func(c *schedulerConfig) { c.ropeLimit = 30 }, want: 0},
		{name: "an answer beyond the common tables", second: again(func(c *talk) { c.text(r, 1) }), config: func(c *schedulerConfig) { c.ropeLimit = 41 }, want: 40},
		{name: "pictures seen whole, another one", second: again(func(c *talk) { c.media[0].key = key(2) }), config: func(c *schedulerConfig) { c.spans = true }, want: 20},
		{name: "pictures seen whole, one more tile", second: again(func(c *talk) {
			c.ids = append(c.ids[:30:30], append([]int32{talkImage}, c.ids[30:]...)...)
			c.media = []mediaMark{{20, 10, key(1)}, {30, 1, key(3)}}
			c.features = append(c.features[:len(c.features):len(c.features)], 1, 1)
		}), config: func(c *schedulerConfig) { c.spans = true }, want: 20},
		{name: "another place in time", second: begin, change: func(q *sequence) {
			q.positions = make([]preprocess.Position, 40)
			for i := range q.positions {
				q.positions[i] = preprocess.Position{Time: int32(i), Row: int32(i), Column: int32(i)}
			}
			q.positions[25].Time++
		}, want: 25},
	} {
		f := newFakeStepper(2, 200, 2, 40)
		d := prefixScheduler(f, 64, func(c *schedulerConfig) {
			if tc.config != nil {
				tc.config(c)
			}
		})
		if n := answered(t, d, begin, 4); n != 0 {
			t.Errorf("%s: %d tokens of the first prompt were in a cache", tc.name, n)
		}
		if tc.change == nil {
			tc.change = func(*sequence) {}
		}
		if n := answered(t, d, tc.second, 4, tc.change); n != tc.want {
			t.Errorf("%s: %d tokens were reused, want %d", tc.name, n, tc.want)
		}
		d.close()
		if f.broken != nil {
			t.Error(f.broken)
		}
	}
}

// A long conversation survives a short request with the same beginning, which copies that; and the oldest leaves first.
func TestWhichSlotGoes(t *testing.T) {
	f := newFakeStepper(2, 400, 2, 40)
	d := prefixScheduler(f, 64)
	defer d.close()
	r := rand.New(rand.NewPCG(3, 4))
	system := talk{}
	system.text(r, 20)
	long := talk{ids: append([]int32(nil), system.ids...)}
	long.text(r, 100)
	short := talk{ids: append([]int32(nil), system.ids...)}
	short.text(r, 5)
	if n := answered(t, d, long, 1); n != 0 {
		t.Error(n)
	}
	if n := answered(t, d, short, 1); n != 20 { // copied to the empty slot
		t.Errorf("%d tokens of the system prompt", n)
	}
	if n := answered(t, d, long, 1); n != 119 {
		t.Errorf("%d tokens of the long conversation are left", n)
	}
	other := talk{}
	other.text(r, 50)
	answered(t, d, other, 1) // the short one's slot was not used for longest
	if n := answered(t, d, long, 1); n != 119 {
		t.Errorf("%d tokens of the long conversation are left", n)
	}
	if s := d.prefix.snapshot(); s.CopiedTokens != 20 || s.CachedTokens != 20+119+119 || s.Hits != 3 || s.Misses != 2 || s.PromptTokens != 3*120+25+50 {
		t.Errorf("counted %+v", s)
	}
}

// Requests with one prompt at once: one reads it, the others copy.
func TestSamePromptAtOnce(t *testing.T) {
	f := newFakeStepper(4, 400, 2, 40)
	d := prefixScheduler(f, 16)
	defer d.close()
	open := gated(f)
	c := talk{}
	c.text(rand.New(rand.NewPCG(5, 6)), 160)
	var wg sync.WaitGroup
	for range 4 {
		q := newTestSequence(context.Background(), 40, c.ids, 3, Sampling{})
		wg.Go(func() {
			if err := d.run(q); err != nil {
				t.Error(err)
			}
		})
	}
	open()
	wg.Wait()
	if s := d.prefix.snapshot(); s.CachedTokens < 3*(160-32) {
		t.Errorf("%+v", s)
	}
	if f.broken != nil {
		t.Error(f.broken)
	}
}

// What a request that failed left is not used; what a cancelled one left is.
func TestFailuresAreNotKept(t *testing.T) {
	f := newFakeStepper(1, 200, 2, 40)
	d := prefixScheduler(f, 64)
	defer d.close()
	c := talk{}
	c.text(rand.New(rand.NewPCG(7, 8)), 40)
	ctx, cancel := context.WithCancel(context.Background())
	q := newTestSequence(ctx, 40, c.ids, 50, Sampling{})
	q.token = func(Token) { cancel() }
	if err := d.run(q); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if n := answered(t, d, c, 1); n != 39 {
		t.Errorf("%d tokens of a cancelled request", n)
	}
	boom := errors.New("boom")
	f.fail = func(*step) error { return boom }
	if err := d.run(newTestSequence(context.Background(), 40, c.ids, 5, Sampling{})); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	f.fail = nil
	if n := answered(t, d, c, 1); n != 0 {
		t.Errorf("%d tokens of a request that failed", n)
	}
}

func TestMarkMedia(t *testing.T) {
	isImage := func(id int32) bool { return id >= 90 }
	got := markMedia([]int32{1, 90, 90, 2, 91, 3, 90, 4}, isImage, []mediaUnit{{key: key(1), tokens: 2}, {key: key(9)}, {key: key(2), tokens: 2}})
	want := []mediaMark{{1, 2, key(1)}, {4, 0, key(9)}, {4, 2, key(2)}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mediaMark{})); diff != "" {
		t.Error(diff)
	}
}

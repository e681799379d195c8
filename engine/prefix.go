// Prompts that begin like one before: a shared system prompt, picture, or the earlier turns of a chat. Slots keep their keys and
// values when their request has ended, and a new request computes only what no slot has.
//
// Two tokens at the same place are the same when their ids are, those of all tokens before them, and so on to the first; when
// the pictures among them have the same content, and when their positions are the same. Then keys and values are what the
// request would compute itself, up to the last bits: sums of floating-point numbers depend on which tokens share a step, as
// they do on where a prompt is cut into chunks. The last token of a prompt is always computed, since its logits are wanted.
//
// Not reused are: decoders behind an encoder, whose own tokens are few; tokens rotated by the tables of a length (dynamic
// NTK beyond the original context); pictures whose tokens see each other in part.

package engine

import (
	"math"
	"slices"
	"sync/atomic"

	"glimpse/preprocess"
)

// leastPrefix is the shortest prefix that is worth keeping rounding, slots and reports in mind; shorter ones take a few
// milliseconds to compute.
const leastPrefix = 16

// mediaMark is where a prompt's picture, video or sound begins, and which it is. It may have other tokens between its own.
type mediaMark struct {
	at, tokens int
	key        mediaKey
}

// history is what a slot's cache holds.
type history struct {
	ids       []int32 // of the tokens in the cache
	prompt    int     // from this place on tokens are an answer's, and none stands for a picture
	media     []mediaMark
	positions []preprocess.Position // as a sequence's
	delta     int32
	scope     string
	common    int    // the first so many tokens were rotated by the common tables
	used      uint64 // when its request ended, in ends
}

// PrefixStats count what prompts had in common with those before, since the model was opened.
type PrefixStats struct {
	PromptTokens uint64 // of all prompts that were answered
	CachedTokens uint64 // of PromptTokens, those that were not computed again
	CopiedTokens uint64 // of CachedTokens, those that were copied from another slot
	Hits         uint64 // prompts that some tokens of were in a cache
	Misses       uint64 // prompts that were computed from their first token
}

// prefixCounters are PrefixStats that the scheduler writes while others read.
type prefixCounters struct{ prompt, cached, copied, hits, misses atomic.Uint64 }

func (c *prefixCounters) snapshot() PrefixStats {
	return PrefixStats{c.prompt.Load(), c.cached.Load(), c.copied.Load(), c.hits.Load(), c.misses.Load()}
}

// note counts a prompt.
func (c *prefixCounters) note(prompt, reused int) {
	c.prompt.Add(uint64(prompt))
	c.cached.Add(uint64(reused))
	if reused > 0 {
		c.hits.Add(1)
	} else {
		c.misses.Add(1)
	}
}

// markMedia returns the places of a prompt's media.
func markMedia(ids []int32, isImage func(int32) bool, media []mediaUnit) []mediaMark {
	var marks []mediaMark
	left := 0 // tokens of the last mark that are still to come
	for at, id := range ids {
		if !isImage(id) {
			continue
		}
		for left == 0 && len(media) > 0 {
			left = media[0].tokens
			marks = append(marks, mediaMark{at, left, media[0].key})
			media = media[1:]
		}
		left--
	}
	return marks
}

// chooseSlot returns a free slot for a request: the one whose cache is most of what the request begins with and little else;
// or else one that is empty, or the one whose cache was not used for longest.
func (d *scheduler) chooseSlot(q *sequence) int {
	if d.kept == nil {
		return slices.Index(d.slots, nil)
	}
	like, most, oldest := -1, 0, -1
	for i := range d.slots {
		if d.slots[i] != nil {
			continue
		}
		h := &d.kept[i]
		if n := d.commonPrefix(h, q); n > most {
			like, most = i, n
		}
		if oldest < 0 || h.used < d.kept[oldest].used {
			oldest = i
		}
	}
	if like >= 0 && (like == oldest || 2*most >= len(d.kept[like].ids)) {
		d.advanceTo(q, most)
		return like
	}
	return oldest
}

// reuse copies what another slot has of a prompt and its own does not. It is asked before every step of the prompt: another
// request with the same prompt may be ahead.
func (d *scheduler) reuse(q *sequence) {
	if d.kept == nil {
		return
	}
	from, most := -1, q.cached+leastPrefix-1
	for i, other := range d.slots {
		if i == q.slot {
			continue
		}
		h := &d.kept[i]
		if other != nil {
			h = &d.running
			*h = history{ids: other.ids[:other.cached], prompt: other.prompt, media: other.media, positions: other.positions,
				delta: other.delta, scope: other.scope, common: d.commonRows(other)}
		}
		if n := d.commonPrefix(h, q); n > most {
			from, most = i, n
		}
	}
	if from < 0 {
		return
	}
	if err := d.stepper.copyCache(from, q.slot, q.cached, most-q.cached); err != nil {
		d.logger.Warn("a prompt is computed that was in a cache", "error", err)
		return
	}
	d.prefix.copied.Add(uint64(most - q.cached))
	d.advanceTo(q, most)
}

// reuseAll looks for other slots' tokens for all prompts that are being read.
func (d *scheduler) reuseAll() {
	if d.kept == nil || d.active < 2 {
		return // what free slots have was looked at on admission
	}
	for _, q := range d.slots {
		if q != nil && q.prefilling() {
			d.reuse(q)
		}
	}
}

// advanceTo notes that the slot has the first n tokens of the prompt.
func (d *scheduler) advanceTo(q *sequence, n int) {
	for ; q.cached < n; q.cached++ {
		if q.isImage(q.ids[q.cached]) {
			q.nextFeature++
		}
		q.reused++
	}
}

// commonPrefix returns how many tokens of the prompt are the first of a cache; 0 where they are too few to be of use.
func (d *scheduler) commonPrefix(h *history, q *sequence) int {
	if h.scope != q.scope || q.trace != nil || d.ropeLimit > 0 && q.prompt > d.ropeLimit {
		return 0
	}
	n, most := 0, min(len(h.ids), h.common, q.prompt-1)
	for n < most && h.ids[n] == q.ids[n] && (q.positions == nil || h.position(n) == q.position(n)) {
		n++
	}
	for i, m := range q.media {
		if m.at >= n {
			break
		}
		if i >= len(h.media) || h.media[i] != m {
			n = m.at
			break
		}
	}
	for d.spans && n > 0 {
		own, others := spanIn(q.ids[:q.prompt], q.imageToken, n-1), spanIn(h.ids[:min(len(h.ids), h.prompt)], q.imageToken, n-1)
		if own.last < n && others.last < n {
			break
		}
		n = min(own.first, others.first)
	}
	if n < leastPrefix {
		return 0
	}
	return n
}

// position is where a token of the cache stands, as sequence.position.
func (h *history) position(at int) preprocess.Position {
	if at < len(h.positions) {
		return h.positions[at]
	}
	n := int32(at) + h.delta
	return preprocess.Position{Time: n, Row: n, Column: n}
}

// commonRows returns how many of a sequence's tokens were rotated by the common tables.
func (d *scheduler) commonRows(q *sequence) int {
	switch {
	case d.ropeLimit == 0:
		return math.MaxInt
	case q.prompt > d.ropeLimit:
		return 0
	case d.ropeOfPrompt:
		return math.MaxInt
	}
	return d.ropeLimit
}

// held returns how many tokens a free slot holds. A step that it is idle in must know: graphs may write padding behind them.
func (d *scheduler) held(slot int) int {
	if d.kept == nil {
		return 0
	}
	return len(d.kept[slot].ids)
}

// keep remembers what a slot's cache holds when its request ends.
func (d *scheduler) keep(q *sequence, failed bool) {
	if d.kept == nil {
		return
	}
	h := &d.kept[q.slot]
	if failed { // by the decoder, or by what it made: that is nothing to go on with
		*h = history{ids: h.ids[:0], media: h.media[:0], positions: h.positions[:0]}
		return
	}
	if q.cached >= q.prompt {
		d.prefix.note(q.prompt, q.reused)
	}
	d.ends++
	*h = history{
		ids: append(h.ids[:0], q.ids[:q.cached]...), prompt: q.prompt, media: append(h.media[:0], q.media...),
		positions: append(h.positions[:0], q.positions...), delta: q.delta, scope: q.scope, common: d.commonRows(q), used: d.ends,
	}
}

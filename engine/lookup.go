// Speculation without a second model: what the answer's last tokens were followed by before, in the prompt or the answer, is
// guessed to follow again (prompt lookup decoding). The guesses run in one step with the token that is due, and the sampler
// draws from each row of logits in turn, as it would have step by step; the first token that it draws otherwise ends that. So the
// text is the same with and without, sampled or constrained, but for the last bits of sums over more rows. The cache's rows of
// wrong guesses are written over by the next step.
//
// A step of several tokens costs more than one of one, how much depends on graph and machine: steps are timed, guesses are
// scored whether they are used or not, and a sequence speculates where the tokens a second that are to be expected from that are more.

package engine

import (
	"sync/atomic"
	"time"
)

const (
	// MaxSpeculation bounds the guesses of one step, all sequences together.
	MaxSpeculation = 8
	mostDrafts     = MaxSpeculation
	// longestMatch and leastMatch bound how many of the last tokens have to be found again. One alone is found anywhere.
	longestMatch, leastMatch = 4, 2

	// SpeculationAuto has each sequence speculate where that is faster; other values are so many guesses a step, 0 for none.
	SpeculationAuto = -1

	leastGain    = 1.03 // what has to be expected; less is noise
	costMemory   = 8    // readings that a cost is a mean of, and guesses that a hit rate is
	costLifetime = 512  // steps after which a cost that was not read again is forgotten: the machine may have been busy
)

// draftSizes are the numbers of guesses that are considered; few, so that each is timed often.
var draftSizes = [...]int{1, 2, 4, 8}

// LookupStats count guessed tokens since the model was opened.
type LookupStats struct {
	Drafted  uint64 // guesses that were run
	Accepted uint64 // of Drafted, those that were right
}

// lookup decides how much to guess. It belongs to the scheduler's goroutine, but for the counters.
type lookup struct {
	mode              int     // as Options.Speculation
	hitRate           float64 // of guesses, over all sequences; what a new one starts with
	steps             int64
	cost              [64]stepCost // by tokens of the step
	drafted, accepted atomic.Uint64
}

// stepCost is how long steps of some number of tokens take.
type stepCost struct {
	seconds float64
	read    int   // how often it was measured, the first time left out: memory is allocated then
	at      int64 // the step it was last measured in
}

// guesses are a sequence's.
type guesses struct {
	draft    []int32 // to be run in the next step, behind the ids
	hitRate  float64
	scored   bool  // hitRate is there
	shadow   int32 // what would have been guessed; -1: nothing
	drafted  int
	accepted int
}

func (l *lookup) snapshot() LookupStats {
	return LookupStats{Drafted: l.drafted.Load(), Accepted: l.accepted.Load()}
}

// takeDrafts adds guesses to a step that has a token of each decoding sequence and nothing else; rows is how many. It returns
// how many guesses there are.
func (d *scheduler) takeDrafts(rows int) (drafts int) {
	l := &d.lookup
	if l.mode == 0 || rows == 0 || d.encoder != nil || d.spans && rows > 1 { // whose attention takes one slot with several tokens
		return 0
	}
	room := min(mostDrafts, d.chunk-1)
	if d.wideRows > rows { // with more the step would run on another graph, whose sums are others
		room = min(room, d.wideRows-1-rows)
	}
	expected := float64(rows) // tokens of the step
	for i, q := range d.slots {
		if q == nil || d.take[i] != 1 || q.trace != nil {
			continue
		}
		n := q.guess(min(mostDrafts, q.maxNew-len(q.generated())-1))
		if q.shadow = -1; n == 0 {
			continue
		}
		if !q.scored {
			q.hitRate, q.scored = l.hitRate, true
		}
		n = min(n, room-drafts)
		for n > 0 && d.ropeLength(q, 1+n) > 0 {
			n--
		}
		n, expected = l.choose(n, rows+drafts, expected, q.hitRate)
		if n == 0 {
			q.shadow = q.draft[0]
		}
		q.draft = q.draft[:n]
		d.take[i] += n
		drafts += n
	}
	l.drafted.Add(uint64(drafts))
	return drafts
}

// choose returns how many of up to most guesses that are right with a probability are worth their time in a step that has
// tokens without them and lets so many be expected; and how many are to be expected then.
func (l *lookup) choose(most, tokens int, expected, hitRate float64) (n int, after float64) {
	if l.mode > 0 {
		return min(most, l.mode), expected
	}
	without, known := l.seconds(tokens)
	if !known {
		return 0, expected
	}
	best, after := leastGain*expected/without, expected
	for _, k := range draftSizes {
		if k > most {
			break
		}
		gain, p := 0.0, 1.0
		for range k {
			p *= hitRate
			gain += p
		}
		with, _ := l.seconds(tokens + k)
		if speed := (expected + gain) / max(with, without); speed > best {
			best, n, after = speed, k, expected+gain
		}
	}
	return n, after
}

// seconds returns how long a step of so many tokens takes: as measured, or else, to have it measured, as long as the next
// smaller one that was.
func (l *lookup) seconds(tokens int) (seconds float64, known bool) {
	for n := min(tokens, len(l.cost)-1); n > 0; n-- {
		if c := l.cost[n]; c.read > 0 && l.steps-c.at < costLifetime {
			return c.seconds, n == tokens
		}
	}
	return 0, false
}

// note takes in how long a step without prompts took.
func (l *lookup) note(tokens int, took time.Duration) {
	l.steps++
	if tokens >= len(l.cost) || took <= 0 {
		return
	}
	c := &l.cost[tokens]
	if c.at == 0 { // a step of this size was never run
		c.at = l.steps
		return
	}
	now := took.Seconds()
	if c.read == 0 || l.steps-c.at >= costLifetime {
		c.seconds, c.read = now, 0
	}
	c.read++
	c.at = l.steps
	c.seconds += (min(now, 3*c.seconds) - c.seconds) / float64(min(c.read, costMemory))
}

// score notes whether a guess was right.
func (l *lookup) score(q *sequence, right bool) {
	x := 0.0
	if right {
		x = 1
	}
	q.hitRate += (x - q.hitRate) / costMemory
	l.hitRate += (x - l.hitRate) / (8 * costMemory)
}

// guess fills q.draft with up to most tokens that followed the last ones before, and returns how many there are.
func (q *sequence) guess(most int) int {
	q.draft = q.draft[:0]
	ids := q.ids
	end := len(ids) - 1
	from, longest := -1, leastMatch-1
	for at := end - 1; at >= leastMatch-1 && longest < longestMatch; at-- {
		if ids[at] != ids[end] {
			continue
		}
		n := 1
		for n < longestMatch && at-n >= 0 && ids[at-n] == ids[end-n] {
			n++
		}
		if n > longest {
			from, longest = at+1, n
		}
	}
	if from < 0 {
		return 0
	}
	for len(q.draft) < most {
		id := int32(0)
		if at := from + len(q.draft); at < len(ids) {
			id = ids[at]
		} else { // what repeats itself goes on doing so
			id = q.draft[at-len(ids)]
		}
		if q.isImage(id) {
			break
		}
		q.draft = append(q.draft, id)
	}
	return len(q.draft)
}

// verify draws the tokens that follow the last one and each right guess, from logits row on. It reports how many rows there
// were, and whether the answer is finished.
func (d *scheduler) verify(q *sequence, row int) (rows int, ended bool) {
	draft := q.draft
	q.draft = q.draft[:0]
	q.cached -= len(draft) // they are in the cache, and one by one become part of the answer
	for i := range len(draft) + 1 {
		if i > 0 {
			q.cached++
		}
		ended = q.accept(d.stepper.logits(row+i), d.scratch)
		if q.err != nil {
			break
		}
		id := q.ids[len(q.ids)-1]
		if len(draft) == 0 && q.scored && q.shadow >= 0 {
			d.lookup.score(q, q.shadow == id)
		}
		if i == len(draft) {
			break
		}
		right := draft[i] == id
		if d.lookup.score(q, right); right {
			q.accepted++
			d.lookup.accepted.Add(1)
		}
		if !right || ended {
			break
		}
	}
	q.drafted, q.shadow = q.drafted+len(draft), -1
	return len(draft) + 1, ended
}

// idAt is the id at a place of the sequence, guesses included.
func (q *sequence) idAt(at int) int32 {
	if at < len(q.ids) {
		return q.ids[at]
	}
	return q.draft[at-len(q.ids)]
}

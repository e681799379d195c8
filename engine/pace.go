// How much of a prompt shares a step with running answers.

package engine

import "time"

// A step with a chunk of a prompt in it should take no longer than stretch times a step without, so that a stream does not
// stutter while somebody else's picture is read. Chunks below leastChunk waste what a wide step costs in any case.
const (
	stretch    = 1.9
	leastChunk = 16
	firstChunk = 32 // before anything was measured
)

// pace sizes the chunks from how long steps took. A chunk that has the decoder to itself is as large as steps can be.
type pace struct {
	most  int
	chunk float64       // of the next shared step
	alone time.Duration // what a step of running answers takes by itself, lately
}

func newPace(most int) pace { return pace{most: most, chunk: float64(min(most, firstChunk))} }

// budget returns how many tokens of prompts go into a step with rows running answers.
func (p *pace) budget(rows int) int {
	if rows == 0 {
		return p.most
	}
	return int(p.chunk)
}

// note takes in how long a step took.
func (p *pace) note(rows, prompts int, took time.Duration) {
	switch {
	case rows == 0 || took <= 0:
	case prompts == 0 && p.alone == 0:
		p.alone = took
	case prompts == 0:
		p.alone += (took - p.alone) / 4
	case p.alone > 0:
		// What the chunk added, per token; at least a little, so that a lucky reading does not blow the next one up.
		added := max(took-p.alone, p.alone/8)
		fits := float64(prompts) * (stretch - 1) * float64(p.alone) / float64(added)
		p.chunk = min(max((p.chunk+fits)/2, min(leastChunk, float64(p.most))), float64(p.most))
	}
}

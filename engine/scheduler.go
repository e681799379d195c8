// Continuous batching: one goroutine owns the decoder and its slots, and runs step after step.
//
// Each turn of the loop lets go of requests that were cancelled, admits waiting ones to free slots (prefix.go says to
// which), and runs one step: a token of every sequence that decodes, and in the same step as many tokens
// of unfinished prompts, the oldest first, as keep the running answers flowing (pace.go). The decoder works on packed
// tokens, so what shares a step costs what it is worth.
//
// What must stay true: a row's tokens depend on nothing but its own ids, features and settings, whatever the company, but
// for the last bits of its sums. All steps are made by build, which turns "slot → number of new tokens" into a step.
//
// The steady state allocates nothing: buffers are made once, for the widest step.

package engine

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// schedulerConfig is what the loop must know of the decoder.
type schedulerConfig struct {
	slotCount, chunk int
	hidden, vocab    int
	// embed writes the embedding of id to dst, hidden_size values.
	embed func(dst []float32, id int32) error
	// encoder reads the sources of an encoder-decoder model; nil for others.
	encoder sourceEncoder
	// ropeLimit is the length above which rotary tables depend on the length of the sequence; 0: they never do.
	ropeLimit int
	// ropeOfPrompt says that it is the length of the prompt alone.
	ropeOfPrompt bool
	// speculation is Options.Speculation; wideRows the number of tokens from which on steps run on another graph, 0: never.
	speculation int
	wideRows    int
	// prefixCache says that prompts use what slots hold of prompts before. Not for decoders behind an encoder.
	prefixCache bool
	// spans says that steps need the spans of their tokens, and that pictures are not split between steps.
	spans  bool
	logger *slog.Logger // nil: nothing is logged
}

type scheduler struct {
	schedulerConfig
	stepper stepper

	incoming chan *sequence
	ctx      context.Context // ends when the engine closes
	stop     context.CancelFunc
	finished chan struct{}

	// The rest belongs to the loop's goroutine.
	waiting  []*sequence
	slots    []*sequence // nil where free
	active   int         // slots in use
	admitted uint64
	step     *step
	take     []int     // per slot: new tokens in the step under construction
	kept     []history // per slot: what it holds while it is free; nil without a prefix cache
	running  history   // of a slot in use, while it is looked at
	ends     uint64    // requests that have ended
	prefix   prefixCounters
	gauges   slotGauges
	lookup   lookup
	pace     pace
	scratch  *samplerScratch
}

// newScheduler starts the loop.
func newScheduler(s stepper, cfg schedulerConfig) *scheduler {
	if cfg.logger == nil {
		cfg.logger = slog.New(slog.DiscardHandler)
	}
	d := &scheduler{
		schedulerConfig: cfg,
		stepper:         s,
		incoming:        make(chan *sequence),
		finished:        make(chan struct{}),
		slots:           make([]*sequence, cfg.slotCount),
		step:            newStep(cfg.slotCount),
		take:            make([]int, cfg.slotCount),
		scratch:         newSamplerScratch(cfg.vocab),
		pace:            newPace(cfg.chunk),
	}
	d.lookup.mode, d.lookup.hitRate = cfg.speculation, 0.5
	if cfg.prefixCache {
		d.kept = make([]history, cfg.slotCount)
	}
	d.ctx, d.stop = context.WithCancel(context.Background())
	go d.loop()
	return d
}

// close ends every request with ErrClosed and waits for the loop.
func (d *scheduler) close() {
	d.stop()
	<-d.finished
}

// run has the sequence answered and waits for it. When it returns the loop no longer knows the sequence.
func (d *scheduler) run(q *sequence) error {
	q.done = make(chan struct{})
	q.submittedAt = time.Now()
	select {
	case d.incoming <- q:
	case <-q.ctx.Done():
		return context.Cause(q.ctx)
	case <-d.finished:
		return ErrClosed
	}
	<-q.done
	return q.err
}

func (d *scheduler) loop() {
	defer close(d.finished)
	for d.receive() {
		d.turn()
		d.gauges.note(d)
	}
	d.endAll(ErrClosed)
}

// receive takes in new requests; it waits for one when there is nothing else to do. It returns false when the engine closes.
func (d *scheduler) receive() bool {
	if d.active == 0 && len(d.waiting) == 0 {
		select {
		case q := <-d.incoming:
			d.waiting = append(d.waiting, q)
		case <-d.ctx.Done():
			return false
		}
	}
	for {
		select {
		case q := <-d.incoming:
			d.waiting = append(d.waiting, q)
		case <-d.ctx.Done():
			return false
		default:
			return true
		}
	}
}

// turn is one round: leave, admit, and step.
func (d *scheduler) turn() {
	d.dropCancelled()
	d.admit()
	d.reuseAll()
	clear(d.take)
	rows := d.takeRows()
	prompts := d.takePrompts(d.pace.budget(rows))
	drafts := 0
	if prompts == 0 {
		drafts = d.takeDrafts(rows)
	}
	if rows+prompts > 0 {
		start := time.Now()
		d.advanceTaken()
		took := time.Since(start)
		if drafts == 0 {
			d.pace.note(rows, prompts, took)
		}
		if prompts == 0 {
			d.lookup.note(rows+drafts, took)
		}
	}
	d.stepApart()
}

// takeRows gives the next step a token of every decoding sequence that can share one, and returns how many there are.
func (d *scheduler) takeRows() (rows int) {
	for i, q := range d.slots {
		if q != nil && !q.prefilling() && d.ropeLength(q, 1) == 0 {
			d.take[i] = 1
			rows++
		}
	}
	return rows
}

// takePrompts gives the next step up to budget tokens of prompts that can share one, those of the oldest first, so that a
// second prompt does not delay the first token of the first. It returns how many they are.
func (d *scheduler) takePrompts(budget int) (tokens int) {
	if d.spans {
		return 0
	}
	for q := d.nextPrefill(0); q != nil && tokens < budget; q = d.nextPrefill(q.admitted) {
		take := min(budget-tokens, q.waiting())
		if d.ropeLength(q, take) > 0 || !d.ready(q) {
			continue
		}
		d.take[q.slot] = take
		tokens += take
	}
	return tokens
}

// advanceTaken runs the step that take describes. It begins at slot 0 unless it is one slot's alone: the argument lists of
// steps are kept, and each pair of ends is another one.
func (d *scheduler) advanceTaken() {
	first, last := -1, 0
	for i, n := range d.take {
		if n > 0 {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first < last {
		first = 0
	}
	d.advance(first, last-first+1)
}

// stepApart runs the steps that sequences have to themselves: a chunk of the oldest prompt where pictures are not split
// between steps, and sequences whose rotary tables are their own.
func (d *scheduler) stepApart() {
	if d.spans {
		if q := d.nextPrefill(0); q != nil && d.ready(q) {
			if take, err := q.wholePictures(min(d.chunk, q.waiting())); err != nil {
				d.end(q, err)
			} else {
				d.only(q.slot, take)
			}
		}
	}
	if d.ropeLimit == 0 {
		return
	}
	if q := d.nextPrefill(0); q != nil && d.ropeLength(q, 1) > 0 && d.ready(q) {
		d.only(q.slot, min(d.chunk, q.waiting()))
	}
	for i, q := range d.slots {
		if q != nil && !q.prefilling() && d.ropeLength(q, 1) > 0 {
			d.only(i, 1)
		}
	}
}

// ready runs the encoder on the source of a sequence that has one; a sequence for which that failed has ended.
func (d *scheduler) ready(q *sequence) bool {
	if err := d.encode(q); err != nil {
		d.end(q, fmt.Errorf("run the encoder: %w", err))
		return false
	}
	return true
}

// encode runs the encoder on the sequence's source, once.
func (d *scheduler) encode(q *sequence) error {
	if q.source == nil || q.encoded {
		return nil
	}
	rows := d.encoder.embeds(len(q.source))
	for i, id := range q.source {
		row := rows[i*d.hidden : (i+1)*d.hidden]
		if err := d.promptRow(row, q, id); err != nil {
			return err
		}
	}
	if err := d.encoder.run(d.ctx, q.slot, q.trace); err != nil {
		if d.ctx.Err() == nil {
			d.logger.Error("encoder failed", "tokens", len(q.source), "error", err)
		}
		return err
	}
	q.encoded, q.features = true, nil
	return nil
}

func (d *scheduler) dropCancelled() {
	for _, q := range d.slots {
		if q != nil && q.ctx.Err() != nil {
			d.end(q, context.Cause(q.ctx))
		}
	}
	kept := d.waiting[:0]
	for _, q := range d.waiting {
		if q.ctx.Err() != nil {
			d.end(q, context.Cause(q.ctx))
		} else {
			kept = append(kept, q)
		}
	}
	clear(d.waiting[len(kept):])
	d.waiting = kept
}

// admit gives free slots to the requests that have waited longest.
func (d *scheduler) admit() {
	for d.active < len(d.slots) && len(d.waiting) > 0 {
		q := d.waiting[0]
		n := copy(d.waiting, d.waiting[1:])
		d.waiting[n] = nil
		d.waiting = d.waiting[:n]
		d.admitted++
		q.slot, q.admitted, q.admittedAt = d.chooseSlot(q), d.admitted, time.Now()
		for _, id := range q.ids {
			q.sampler.observe(id)
		}
		d.slots[q.slot] = q
		d.active++
		d.reuse(q)
	}
}

// prefilling reports whether prompt tokens are left beyond what a decode step takes.
func (q *sequence) prefilling() bool { return q.cached < q.prompt }

// nextPrefill returns the oldest sequence with an unfinished prompt among those admitted after the given one.
func (d *scheduler) nextPrefill(after uint64) *sequence {
	var oldest *sequence
	for _, q := range d.slots {
		if q != nil && q.prefilling() && q.admitted > after && (oldest == nil || q.admitted < oldest.admitted) {
			oldest = q
		}
	}
	return oldest
}

// only steps one slot by n tokens.
func (d *scheduler) only(slot, n int) {
	clear(d.take)
	d.take[slot] = n
	d.advance(slot, 1)
}

// ropeLength returns which rotary tables the next n tokens of a sequence want; 0 for the common ones.
//
// With dynamic NTK scaling upstream computes the tables anew whenever the sequence outgrows the original context, from
// its length at that forward pass; keys in the cache keep the rotation they were made with. A prompt is one forward pass
// there, however many chunks it is here, so all its chunks use the tables of the whole prompt. (Upstream's rotary module also
// remembers the longest sequence it has ever seen; a request here is as if it were the first.)
func (d *scheduler) ropeLength(q *sequence, n int) int {
	length := max(q.cached+n, q.prompt)
	if d.ropeOfPrompt {
		length = q.prompt
	}
	if d.ropeLimit == 0 || length <= d.ropeLimit {
		return 0
	}
	return length
}

// advance builds the step of n slots from first on, as take says, runs it, and gives each sequence its logits. An error
// of the decoder ends the sequences of the step and no other.
func (d *scheduler) advance(first, n int) {
	err := d.build(first, n)
	if err == nil {
		err = d.stepper.run(d.ctx, d.step)
	}
	if err != nil && d.ctx.Err() == nil {
		d.logger.Error("decoder step failed", "tokens", d.step.tokens, "slots", n, "error", err)
	}
	row := 0
	for i := first; i < first+n; i++ {
		q, take := d.slots[i], d.take[i]
		if take == 0 {
			continue
		}
		if err != nil {
			d.end(q, fmt.Errorf("run the decoder: %w", err))
			continue
		}
		q.cached += take
		if q.waiting() > 0 {
			continue // a chunk in the middle of the prompt
		}
		q.features, q.deepstack = nil, nil // the prompt is read
		rows, ended := d.verify(q, row)
		if row += rows; ended {
			d.end(q, q.err)
		}
	}
}

// build lays out the step and copies its embeddings and feature rows.
func (d *scheduler) build(first, n int) error {
	s := d.step
	s.reset(first)
	for i := first; i < first+n; i++ {
		q, take := d.slots[i], d.take[i]
		past := d.held(i)
		if q != nil {
			past = q.cached
		}
		wanted := 0
		if take > 0 && take == q.waiting()+len(q.draft) {
			wanted = 1 + len(q.draft)
		}
		s.add(past, take, wanted)
		if take > 0 {
			s.ropeLength = d.ropeLength(q, take)
		}
	}
	rows := d.stepper.embeds(s.tokens)
	token := 0
	for i := first; i < first+n; i++ {
		if take := d.take[i]; take > 0 {
			if err := d.fill(rows[:take*d.hidden], d.slots[i], token); err != nil {
				return err
			}
			rows = rows[take*d.hidden:]
			token += take
		}
	}
	return nil
}

// fill writes the input rows of the sequence's next tokens, the first of which is packed token number token.
func (d *scheduler) fill(rows []float32, q *sequence, token int) error {
	for at := q.cached; len(rows) > 0; at++ {
		row := rows[:d.hidden]
		rows = rows[d.hidden:]
		id := q.idAt(at)
		var err error
		if at < q.prompt && q.source == nil { // a start token is no part of the prompt, whatever its id
			feature := q.nextFeature
			err = d.promptRow(row, q, id)
			if q.nextFeature > feature && len(q.deepstack) > 0 {
				d.step.deep = append(d.step.deep, deepRow{token, q.deepstack, feature})
			}
		} else {
			err = d.embed(row, id)
		}
		if err != nil {
			return err
		}
		if d.spans {
			d.step.spans = append(d.step.spans, q.spanAt(at))
		}
		if q.positions != nil {
			d.step.positions = append(d.step.positions, q.position(at))
		}
		token++
	}
	return nil
}

// promptRow writes the input row of the next token of the prompt: its embedding or, for an image token, the next row of
// the pictures' features. Image tokens may lie behind the embedding table.
func (d *scheduler) promptRow(row []float32, q *sequence, id int32) error {
	if q.isImage(id) {
		from := q.nextFeature * d.hidden
		if from+d.hidden > len(q.features) {
			return fmt.Errorf("image token %d of the prompt has no feature row", q.nextFeature)
		}
		copy(row, q.features[from:from+d.hidden])
		q.nextFeature++
	} else if err := d.embed(row, id); err != nil {
		return err
	}
	q.trace.embedding(row)
	return nil
}

// end lets go of a sequence and hands it back to its request.
func (d *scheduler) end(q *sequence, err error) {
	if q.slot < len(d.slots) && d.slots[q.slot] == q {
		d.slots[q.slot] = nil
		d.active--
		d.keep(q, err != nil && q.ctx.Err() == nil)
		if d.encoder != nil {
			d.encoder.release(q.slot)
		}
	}
	if err != nil && d.ctx.Err() != nil {
		err = ErrClosed // whatever the decoder called the interruption
	}
	q.err, q.endAt = err, time.Now()
	close(q.done)
}

func (d *scheduler) endAll(err error) {
	for _, q := range d.slots {
		if q != nil {
			d.end(q, err)
		}
	}
	for _, q := range d.waiting {
		d.end(q, err)
	}
	d.waiting = nil
}

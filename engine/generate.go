// A request from its messages to its answer.

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"glimpse/preprocess"
	"glimpse/tokenizer"
)

// Prepared is a request's prompt, ready for the graphs.
type Prepared struct {
	PromptText  string  // after the template, before pictures' placeholders are expanded
	TokenIDs    []int32 // after the expansion
	ImageTokens int     // of TokenIDs, those that pictures take
	AudioTokens int     // of TokenIDs, those that sounds take
	MaxTokens   int     // what the answer may have: the request's wish, clipped to the context
	// Tensors are what the picture recipe made, all pictures along the leading dimension: "pixel_values" is
	// [tiles, 3, height, width]. Nil without pictures.
	Tensors map[string]Array

	// Pictures are the request's pictures and the frames of its videos, in the order of the prompt.
	Pictures []PictureLayout

	placed      []placed
	order       []placed              // pictures and sounds; nil without sounds
	sounds      []*Sound              // in the order of the prompt
	heard       []map[string]Array    // the tensors of each sound
	ids         []int32               // as TokenIDs, each token of a picture with the id that stands for one
	alone       []map[string]Array    // the tensors of each picture, where pictures go through the graphs one by one
	positions   []preprocess.Position // of TokenIDs, where they are not places in the sequence
	delta       int32                 // what places behind the prompt are moved by
	instruction []int32               // the user's text for the picture stages
	constraint  *tokenizer.Constraint // of the answer; nil: none
	media       []mediaUnit           // pictures, videos and sounds by content, in the order of the prompt
}

// PictureLayout is what became of one picture.
type PictureLayout struct {
	Width, Height int // upright
	Tiles         int // that the vision tower sees
	Tokens        int // of the prompt
	Columns, Rows int // of the tiles that it was cut into; 0 where it was not
	Frame         int // of its video, from 1; 0 for a picture
}

// Prepare makes the prompt and the pictures' tensors without running a graph.
func (e *Engine) Prepare(ctx context.Context, req Request) (*Prepared, error) {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return e.prepare(ctx, req, nil)
}

// prepare is Prepare; given tensors take the place of the recipe's.
func (e *Engine) prepare(ctx context.Context, req Request, given map[string]Array) (*Prepared, error) {
	p, err := e.encode(req)
	if err != nil {
		return nil, err
	}
	given, sound := takeFbank(given)
	if err := e.prepareSounds(ctx, p, sound); err != nil {
		return nil, err
	}
	if err := e.preparePictures(ctx, p, given); err != nil {
		return nil, err
	}
	return p, nil
}

// preparePictures makes the pictures' tensors; given ones take the place of the recipe's.
func (e *Engine) preparePictures(ctx context.Context, p *Prepared, given map[string]Array) (err error) {
	if len(p.placed) == 0 {
		if len(given) > 0 {
			return errors.New("picture tensors were given for a request without pictures")
		}
		return nil
	}
	if e.pictures.alone() {
		return e.prepareAlone(ctx, p, given)
	}
	if p.Tensors = maps.Clone(given); given == nil {
		if p.Tensors, err = e.pictures.prepare(ctx, p.placed); err != nil {
			return err
		}
	}
	return e.instruct(p)
}

// instruct adds the instruction to the tensors, a row a tile, where the picture stages read it.
func (e *Engine) instruct(p *Prepared) error {
	if e.instruction == nil {
		return nil
	}
	tiles, err := commonTiles(p.Tensors)
	if err != nil {
		return err
	}
	maps.Copy(p.Tensors, e.instruction.tensors(slices.Repeat([][]int32{p.instruction}, tiles)))
	return nil
}

// encode checks the request and makes its prompt from texts and the headers of pictures; no pixel is decoded before the
// prompt is known to fit.
func (e *Engine) encode(req Request) (*Prepared, error) {
	if err := e.check(req); err != nil {
		return nil, err
	}
	plan, err := e.prompter.plan(req)
	if err != nil {
		return nil, err
	}
	p := &Prepared{PromptText: plan.shown}
	if len(plan.media) > 0 {
		if e.pictures == nil {
			return nil, badRequest("messages", CodeUnsupported, ErrNoPictures, "model %s takes no pictures", e.name)
		}
		if e.instruction != nil {
			if p.instruction, err = e.instruction.encode("prompt", plan.user, plan.raw); err != nil {
				return nil, err
			}
		}
		if p.order, err = e.pictures.place(plan.media, req.PictureOptions); err != nil {
			return nil, err
		}
	}
	all := p.order
	if p.split(); len(p.placed) > 0 {
		for _, pic := range p.placed {
			l := pic.layout
			p.Pictures = append(p.Pictures, PictureLayout{pic.width, pic.height, l.Tiles, l.Tokens, l.Grid.Columns, l.Grid.Rows, pic.frame})
		}
	}
	// Before the expansion: a hostile number of picture tokens is refused without being written out.
	if most, n := e.promptLimit(), p.ImageTokens+p.AudioTokens; most > 0 && n > most {
		return nil, e.tooLong("at least ", n, n)
	}
	if p.ids, err = e.prompter.encode(plan, all); err != nil {
		return nil, err
	}
	if p.TokenIDs = p.ids; e.manifest.Prompt.Named {
		counts := make([]int, len(p.placed))
		for i, pic := range p.placed {
			counts[i] = pic.layout.Tokens
		}
		p.TokenIDs = e.prompter.named(p.ids, plan.names, counts)
	}
	if err := e.locate(p); err != nil {
		return nil, err
	}
	if err := e.fit(p, req.MaxTokens); err != nil {
		return nil, err
	}
	return p, nil
}

// check looks at what needs no prompt.
func (e *Engine) check(req Request) error {
	if req.MaxTokens < 0 {
		return badRequest("max_tokens", CodeInvalid, nil, "max_tokens is %d; it must be 1 or more, or 0 for the model's default", req.MaxTokens)
	}
	if req.Logprobs < 0 || req.Logprobs > maxLogprobs {
		return badRequest("logprobs", CodeInvalid, nil, "%d log-probabilities a token were asked for; 0 to %d can be given", req.Logprobs, maxLogprobs)
	}
	vocab := 0
	if e.manifest.Decoder != nil {
		vocab = e.manifest.Decoder.VocabSize
	}
	return errors.Join(req.Sampling.check(), req.Sampling.checkPenalties(vocab), checkStops(req.Stop), checkTools(req.Tools), checkCalls(req.Messages))
}

// fit refuses a prompt that leaves no room for an answer and clips the answer to the room there is.
func (e *Engine) fit(p *Prepared, maxTokens int) error {
	if e.manifest.Decoder == nil {
		return nil
	}
	if len(p.TokenIDs) == 0 {
		return badRequest("messages", CodeInvalid, nil, "the prompt is empty")
	}
	if len(p.TokenIDs) > e.promptLimit() {
		return e.tooLong("", len(p.TokenIDs), p.ImageTokens)
	}
	for _, id := range p.TokenIDs {
		if int(id) >= e.embeddings.rows && !e.prompter.isImageToken(id) {
			return fmt.Errorf("the tokenizer gives token %d and the embedding table has %d rows: tokenizer and checkpoint do not belong together", id, e.embeddings.rows)
		}
	}
	if maxTokens == 0 {
		maxTokens = e.manifest.Generation.MaxNewTokens
	}
	if maxTokens <= 0 {
		maxTokens = defaultNewTokens
	}
	p.MaxTokens = min(maxTokens, e.limit-len(e.decoderPrompt(p)))
	return nil
}

// promptLimit returns how many tokens a prompt may have: what the encoder takes, or what leaves the decoder room for one
// token of an answer. 0 for a model that generates no text.
func (e *Engine) promptLimit() int {
	if e.sourceLimit > 0 {
		return e.sourceLimit
	}
	return max(0, e.limit-1)
}

// decoderPrompt returns the ids that the decoder begins with: the prompt, or the start token where an encoder reads that.
func (e *Engine) decoderPrompt(p *Prepared) []int32 {
	if enc := e.manifest.Decoder.Encoder; enc != nil {
		return []int32{int32(enc.StartToken)}
	}
	return p.ids
}

func (e *Engine) tooLong(bound string, tokens, pictures int) error {
	if e.sourceLimit > 0 {
		return badRequest("messages", CodeContextLength, ErrContextTooLong,
			"the prompt has %s%d tokens, %d of them pictures, and the encoder of model %s takes %d: shorten it or send fewer or smaller pictures",
			bound, tokens, pictures, e.name, e.sourceLimit)
	}
	return badRequest("messages", CodeContextLength, ErrContextTooLong,
		"the prompt has %s%d tokens, %d of them pictures, and the context of model %s holds %d, answer included: shorten it or send fewer or smaller pictures",
		bound, tokens, pictures, e.name, e.limit)
}

// Generate answers a request. It is safe for many goroutines; requests share the decoder's steps. When ctx ends the
// request leaves at the next step with the context's cause.
func (e *Engine) Generate(ctx context.Context, req Request) (*Result, error) {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if e.scheduler == nil {
		return nil, badRequest("model", CodeUnsupported, ErrNoDecoder, "model %s has no decoder and generates no text", e.name)
	}
	start := time.Now()
	limit, err := e.constrain(req) // before any picture is decoded
	if err != nil {
		return nil, err
	}
	if limit != nil {
		defer limit.Close()
	}
	p, err := e.encode(req)
	if err != nil {
		return nil, err
	}
	p.constraint = limit
	preprocess := time.Since(start)
	made, more, err := e.perceive(ctx, req, p)
	if err != nil {
		return nil, err
	}
	submitted := time.Since(start)
	r, err := e.answer(ctx, req, p, made, preprocess+more, nil)
	if err != nil {
		return nil, err
	}
	r.Timings.Submitted = submitted
	return r, nil
}

// features runs the picture and audio stages; without pictures and sounds it returns an empty result.
func (e *Engine) features(ctx context.Context, p *Prepared, keep keeping) (*stageResult, error) {
	seen, err := e.see(ctx, p, keep)
	if err != nil || len(p.heard) == 0 {
		return seen, err
	}
	return seen, e.listen(ctx, p, seen, keep)
}

// see runs the picture stages.
func (e *Engine) see(ctx context.Context, p *Prepared, keep keeping) (*stageResult, error) {
	if len(p.placed) == 0 {
		return &stageResult{}, nil
	}
	var r *stageResult
	var err error
	if p.alone != nil {
		r, err = e.stages.runAlone(ctx, p.alone, p.Tensors, keep)
	} else {
		r, err = e.stages.run(ctx, p.Tensors, keep)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("run the picture graphs: %w", err)
	}
	if e.manifest.Decoder == nil {
		return r, nil
	}
	if err := r.arrange(p.placed, e.manifest.Picture.TokensPerTile); err != nil {
		return nil, err
	}
	hidden := e.manifest.Decoder.HiddenSize
	if r.width != hidden || len(r.features) != p.ImageTokens*hidden {
		return nil, fmt.Errorf("the picture graphs made %d values in rows of %d and the prompt has %d image tokens of %d: recipe and graphs do not belong together",
			len(r.features), r.width, p.ImageTokens, hidden)
	}
	return r, nil
}

// answer has the prompt continued.
func (e *Engine) answer(ctx context.Context, req Request, p *Prepared, made *stageResult, preprocess time.Duration, trace *traceSink) (*Result, error) {
	m := e.manifest
	first := e.decoderPrompt(p)
	ids := make([]int32, len(first), len(first)+p.MaxTokens)
	copy(ids, first)
	q := &sequence{
		ctx: ctx, ids: ids, prompt: len(ids), maxNew: p.MaxTokens,
		features: made.features, imageToken: int32(m.Tokens.Image), videoToken: int32(m.Tokens.Video),
		sampler: newSampler(req.Sampling, m.Decoder.VocabSize, cap(ids)),
		text:    tokenizer.NewStream(e.prompter.tokenizer, true),
		stopper: stopper{stops: slices.Concat(req.Stop, m.Generation.Stop)},
		answer:  make([]byte, 0, 4*p.MaxTokens),
		token:   req.Token, logprobs: req.Logprobs, piece: e.prompter.piece, trace: trace,
	}
	if p.constraint != nil { // a nil pointer in the interface would not be nil
		q.constraint = p.constraint
	}
	if m.Decoder.Encoder != nil {
		q.source = p.ids
	}
	q.scope, q.media = req.CacheScope, markMedia(p.ids, e.prompter.isImageToken, p.media)
	q.positions, q.delta, q.deepstack = p.positions, p.delta, made.deepstack
	made.features, made.deepstack = nil, nil // the scheduler's now, until the prompt is read
	for _, id := range m.Tokens.EOS {
		q.eos = append(q.eos, int32(id))
	}
	if err := e.scheduler.run(q); err != nil {
		return nil, err
	}
	r := &Result{
		Text: string(q.answer), TokenIDs: q.generated(), PromptTokenIDs: p.TokenIDs, FinishReason: q.finish,
		Usage: Usage{PromptTokens: len(p.TokenIDs), CompletionTokens: len(q.generated()), ImageTokens: p.ImageTokens, AudioTokens: p.AudioTokens, CachedTokens: q.reused},
		Timings: Timings{
			Load: e.loadTime, Preprocess: preprocess, Vision: made.first, Connector: made.rest,
			Queue: q.admittedAt.Sub(q.submittedAt), Prefill: q.firstAt.Sub(q.admittedAt), Decode: q.endAt.Sub(q.firstAt),
			Drafted: q.drafted, Accepted: q.accepted,
		},
	}
	r.Boxes = e.findBoxes(p, r.Text)
	if n := len(r.TokenIDs) - 1; n > 0 && r.Timings.Decode > 0 {
		r.Timings.TokensPerSecond = float64(n) / r.Timings.Decode.Seconds()
	}
	return r, nil
}

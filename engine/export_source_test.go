package engine

import (
	"context"

	"glimpse/tokenizer"
)

// CacheFree returns the logits that follow a request's prompt and the given ids of its answer, computed from nothing: all
// of them go through the decoder in one step, as if there were no cache.
func CacheFree(ctx context.Context, e *Engine, req Request, answer []int32) ([]float32, error) {
	p, err := e.prepare(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	made, err := e.features(ctx, p, nil)
	if err != nil {
		return nil, err
	}
	ids := append(append([]int32(nil), e.decoderPrompt(p)...), answer...)
	trace := &traceSink{}
	q := &sequence{
		ctx: ctx, ids: ids, prompt: len(ids), maxNew: 1, features: made.features, imageToken: int32(e.manifest.Tokens.Image),
		sampler: newSampler(Sampling{}, e.manifest.Decoder.VocabSize, len(ids)+1), text: tokenizer.NewStream(e.prompter.tokenizer, true),
		trace: trace,
	}
	if e.manifest.Decoder.Encoder != nil {
		q.source = p.TokenIDs
	}
	if len(ids) > e.scheduler.chunk {
		panic("the whole must fit a chunk")
	}
	return trace.firstOf(e.scheduler.run(q))
}

func (t *traceSink) firstOf(err error) ([]float32, error) { return t.first, err }

// --precision auto with samples: the fastest precision whose answers stay close enough to fp32's.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"glimpse/convert"
	"glimpse/engine/replay"
	"glimpse/graphs"
	"glimpse/manifest"
)

// maxDivergence is how far from fp32 auto may go: nats a token, over the samples.
const maxDivergence = 0.05

// measuredTokens bounds how many of the samples' tokens precisions are compared on.
const measuredTokens = 2048

// fastestFirst are the precisions of a decoder in the order of how fast they generate; fp16 is stored in half the bytes and
// computed like fp32.
var fastestFirst = []string{"int4", "int8", "fp16"}

// choosePrecision converts to one precision after the other, fastest first, until the decoder of one is close enough to that
// in the reference folder, and returns its name. measured says what was found.
func choosePrecision(ctx context.Context, a *app, opts convert.Options, reference string, steps []*replay.Step) (precision, measured string, err error) {
	temp := filepath.Dir(reference)
	var found []string
	for _, precision = range fastestFirst {
		opts.Precision, opts.Out, opts.Force = precision, filepath.Join(temp, precision), false
		if precision != "int4" { // the only one with layers to choose
			opts.Budget = 0
		}
		if _, err := convert.Convert(ctx, opts); err != nil {
			return "", "", err
		}
		c, err := a.divergence(ctx, reference, opts.Out, steps)
		if err != nil {
			return "", "", fmt.Errorf("compare %s with fp32: %w", precision, err)
		}
		if err := os.RemoveAll(opts.Out); err != nil {
			return "", "", err
		}
		found = append(found, fmt.Sprintf("%s KL %.4f, top-1 %.1f %%", precision, c.KL, 100*c.Agreement))
		if c.KL < maxDivergence {
			break
		}
	}
	return precision, fmt.Sprintf("%s (over %d tokens)", strings.Join(found, "; "), min(measuredTokens, tokensOf(steps))), nil
}

func tokensOf(steps []*replay.Step) (n int) {
	for _, s := range steps {
		n += s.Tokens
	}
	return n
}

// divergence compares the decoders of two model folders over the steps.
func (a *app) divergence(ctx context.Context, reference, folder string, steps []*replay.Step) (c replay.Comparison, err error) {
	rt, err := graphs.Open(a.graphsOptions())
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	var players []*replay.Player
	defer func() {
		for _, p := range players {
			err = errors.Join(err, p.Close())
		}
	}()
	for _, f := range []string{reference, folder} {
		m, err := manifest.Read(f)
		if err != nil {
			return c, err
		}
		p, err := replay.Open(ctx, rt, filepath.Join(f, m.Components[m.Decoder.Component].File), a.global.Threads)
		if err != nil {
			return c, err
		}
		players = append(players, p)
	}
	for _, s := range steps {
		want, vocab, err := players[0].Run(ctx, s)
		if err != nil {
			return c, err
		}
		got, _, err := players[1].Run(ctx, s)
		if err != nil {
			return c, err
		}
		if err := c.Add(want, got, vocab, nil); err != nil {
			return c, err
		}
		if c.Tokens >= measuredTokens {
			break
		}
	}
	return c, nil
}

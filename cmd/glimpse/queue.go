package main

import (
	"context"

	"glimpse/batch"
	"glimpse/manifest"

	"github.com/spf13/pflag"
)

// QueueOptions are the flags of the queue.
type QueueOptions struct{ Queue, Join string }

// AddFlags adds the flags.
func (o *QueueOptions) AddFlags(f *pflag.FlagSet) {}

func runJoin(ctx context.Context, a *app, o CaptionOptions, args []string) error { return nil }

func (o *CaptionOptions) publish(ctx context.Context, a *app, model string, m *manifest.Manifest, b batch.Options) (*batch.Summary, error) {
	return nil, nil
}

func (a *app) openStore(ctx context.Context, b *batch.Options, inputs []string) error { return nil }

package engine

import (
	"context"

	"glimpse/graphs"
)

// For the tests outside the package.
var (
	StartPreload = startPreload
	PreloadNames = preloadNames
)

func (p *preload) Take(ctx context.Context, name string) (*graphs.Session, bool, error) {
	return p.take(ctx, name)
}

func (p *preload) Close() error { return p.close() }

func (p *preload) Left() int { return len(p.graphs) }

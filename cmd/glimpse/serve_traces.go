// Where the spans of serve go: as the environment says, see internal/traces.

package main

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"

	"glimpse/cmd/glimpse/internal/traces"
)

// tracesGrace is what the last spans get on their way when serve ends.
const tracesGrace = 5 * time.Second

// openTraces returns where spans go, nil for nowhere, and what sends the last of them.
func openTraces(ctx context.Context, a *app) (_ trace.TracerProvider, closeTraces func(), err error) {
	p, err := traces.Open(ctx, buildVersion().Version)
	if err != nil {
		return nil, nil, badInput(err)
	}
	if p == nil {
		return nil, func() {}, nil
	}
	// The exporter tells of failures through this global; without it they would go past the log.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { a.log.Warn("traces", "error", err) }))
	a.log.Info("tracing requests")
	return p, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesGrace)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			a.log.Warn("the last traces were not delivered", "error", err)
		}
	}, nil
}

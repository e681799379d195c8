// Package worker runs a model in a process of its own. ONNX Runtime gives memory back when its process ends and not
// before, and it can take a process down with it; so the front process answers HTTP, and every model is a child that is
// started, watched, replaced and ended from here.
//
//	pool, err := worker.NewPool(worker.Options{Command: …})
//	model, err := pool.Add(folder)      // nothing runs yet
//	result, err := model.Generate(ctx, request)
//	err = pool.Close()
//
// The child calls Serve with a way to open the model. Between the two is a Unix socket with a protocol of our own,
// written down in docs/worker.md. A Model has the methods of *engine.Engine that a server needs, and is safe for many
// goroutines. When its process dies, the requests in flight fail with Unavailable and another process is started.
package worker

import (
	"context"
	"time"

	"glimpse/engine"
)

// Engine is what a worker serves; *engine.Engine is one. Its methods are safe for concurrent use.
type Engine interface {
	Generate(ctx context.Context, r engine.Request) (*engine.Result, error)
	Prepare(ctx context.Context, r engine.Request) (*engine.Prepared, error)
	Score(ctx context.Context, r engine.ScoreRequest) (*engine.ScoreResult, error)
	Embed(ctx context.Context, r engine.EmbedRequest) (*engine.EmbedResult, error)
	Rerank(ctx context.Context, r engine.RerankRequest) (*engine.RerankResult, error)
	Context() int
	LoadTime() time.Duration
	Stats() engine.Stats
	Close() error
}

var _ Engine = (*engine.Engine)(nil)

// protocolVersion changes with the meaning of frames; how values travel has a hash of its own.
const protocolVersion = 1

// hello opens each direction: both ends must be the same build.
type hello struct {
	Protocol string // helloText
	Version  int
	Schema   []byte // hash of how the values below travel
}

const helloText = "glimpse worker"

func newHello() hello {
	schema := schemaOf(engine.Request{}, engine.Token{}, engine.Result{}, engine.Prepared{}, engine.ScoreRequest{}, engine.ScoreResult{},
		engine.EmbedRequest{}, engine.EmbedResult{}, engine.RerankRequest{}, engine.RerankResult{}, Info{}, failure{})
	return hello{Protocol: helloText, Version: protocolVersion, Schema: schema[:]}
}

// Info is what a worker says about itself.
type Info struct {
	PID      int
	Context  int           // tokens of prompt and answer together; 0: the model generates no text
	Load     time.Duration // opening the model took
	InFlight int           // requests that it works on
	Stats    engine.Stats  // counters since the model was opened: a new process begins at zero
}

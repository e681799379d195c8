// Package replay keeps the steps that a decoder was given and gives them to other graphs with the same ports: teacher
// forcing, whatever the family. What a graph is asked for does not depend on what it answers, so two precisions of one
// model can be compared token by token.
package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"glimpse/graphs"
)

// Ports of every decoder that replaying depends on; docs/architecture.md has them all.
const (
	portEmbeds = "inputs_embeds" // [tokens, hidden_size]
	portRows   = "logits_rows"   // [rows] i64
	portLogits = "logits"        // [rows, vocab_size]
	pastPrefix = "past_"
)

// Step is what one run was given.
type Step struct {
	Tokens int // packed tokens
	inputs []input
	caches []input // shapes of the tensors that the run updates; no data
}

type input struct {
	name  string
	dtype graphs.DType
	shape []int64
	data  []byte
}

// Recorder keeps the steps of one graph. Its Observe goes into graphs.Options. The engine must have one slot, so that every
// step extends the same cache.
type Recorder struct {
	Graph string // file name of the graph, "decoder.onnx"

	mu    sync.Mutex
	steps []*Step
	err   error
}

// Observe keeps a run of the graph. It is safe for many goroutines.
func (r *Recorder) Observe(o *graphs.Observation) {
	if filepath.Base(o.Path) != r.Graph {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Step{}
	for _, in := range o.Inputs {
		kept := input{name: in.Name, dtype: in.Tensor.DType(), shape: in.Tensor.Shape()}
		if o.Updated(in.Tensor) {
			if kept.shape[0] != 1 {
				r.err = fmt.Errorf("record a step of %s: %s has %d slots; steps are recorded with one", r.Graph, in.Name, kept.shape[0])
			}
			s.caches = append(s.caches, kept)
			continue
		}
		kept.data = r.keep(in.Name, in.Tensor.Bytes())
		s.inputs = append(s.inputs, kept)
		if in.Name == portEmbeds {
			s.Tokens = int(kept.shape[0])
		}
	}
	r.steps = append(r.steps, s)
}

// keep copies an input's bytes, or takes those of the last step where they are the same (rotary tables).
func (r *Recorder) keep(name string, data []byte) []byte {
	if len(r.steps) > 0 {
		for _, last := range r.steps[len(r.steps)-1].inputs {
			if last.name == name && bytes.Equal(last.data, data) {
				return last.data
			}
		}
	}
	return bytes.Clone(data)
}

// Take returns the steps since the last call.
func (r *Recorder) Take() ([]*Step, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	steps, err := r.steps, r.err
	r.steps, r.err = nil, nil
	return steps, err
}

// Player gives recorded steps to a graph, with a cache of its own. It belongs to one goroutine.
type Player struct {
	runtime *graphs.Runtime
	session *graphs.Session
	caches  map[string]*graphs.Tensor
}

// Open loads the graph at path.
func Open(ctx context.Context, rt *graphs.Runtime, path string, threads int) (*Player, error) {
	session, err := rt.Load(ctx, path, graphs.SessionOptions{Threads: threads})
	if err != nil {
		return nil, err
	}
	return &Player{runtime: rt, session: session, caches: map[string]*graphs.Tensor{}}, nil
}

// Run gives the graph a step and returns the logits of all its tokens, [tokens, vocab_size]. Steps of one sequence must be
// run in their order.
func (p *Player) Run(ctx context.Context, s *Step) (logits []float32, vocab int, err error) {
	in, out := map[string]*graphs.Tensor{}, map[string]*graphs.Tensor{}
	var own []*graphs.Tensor
	defer func() {
		for _, t := range own {
			err = errors.Join(err, t.Close())
		}
	}()
	make := func(dtype graphs.DType, shape ...int64) (*graphs.Tensor, error) {
		t, err := p.runtime.NewTensor(dtype, shape...)
		if err == nil {
			own = append(own, t)
		}
		return t, err
	}
	for _, kept := range s.inputs {
		if kept.name == portRows {
			continue
		}
		t, err := make(kept.dtype, kept.shape...)
		if err != nil {
			return nil, 0, err
		}
		copy(t.Bytes(), kept.data)
		in[kept.name] = t
	}
	rows, err := make(graphs.Int64, int64(s.Tokens))
	if err != nil {
		return nil, 0, err
	}
	for i := range rows.Int64() {
		rows.Int64()[i] = int64(i)
	}
	in[portRows] = rows
	if err := p.bindCaches(s, in, out); err != nil {
		return nil, 0, err
	}
	for _, port := range p.session.Outputs() {
		if port.Name == portLogits {
			vocab = int(port.Shape[1])
		}
	}
	to, err := make(graphs.Float32, int64(s.Tokens), int64(vocab))
	if err != nil {
		return nil, 0, err
	}
	out[portLogits] = to
	if err := p.session.Run(ctx, in, out); err != nil {
		return nil, 0, err
	}
	return append([]float32(nil), to.Float32()...), vocab, nil
}

// bindCaches gives past and present of each layer the player's own memory.
func (p *Player) bindCaches(s *Step, in, out map[string]*graphs.Tensor) error {
	for _, c := range s.caches {
		t := p.caches[c.name]
		if t == nil {
			var err error
			if t, err = p.runtime.NewTensor(c.dtype, c.shape...); err != nil {
				return err
			}
			p.caches[c.name] = t
		}
		in[c.name] = t
		out["present_"+strings.TrimPrefix(c.name, pastPrefix)] = t
	}
	return nil
}

// Close frees the graph and the cache. It is idempotent.
func (p *Player) Close() error {
	if p == nil {
		return nil
	}
	var err error
	for _, t := range p.caches {
		err = errors.Join(err, t.Close())
	}
	return errors.Join(err, p.session.Close())
}

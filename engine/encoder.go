// The encoder of an encoder-decoder model: it reads a request's prompt once and leaves the cross attention's keys and
// values in the slot's part of a second arena, from which every step of the decoder takes them.

package engine

import (
	"context"
	"errors"
	"fmt"

	"glimpse/graphs"
	"glimpse/manifest"
)

// sourceEncoder reads the prompt of a sequence before the decoder's first step. Like stepper it belongs to the
// scheduler's goroutine; tests have one that computes nothing.
type sourceEncoder interface {
	// embeds returns the [tokens, hidden_size] input of the next run for the caller to fill.
	embeds(tokens int) []float32
	// run encodes the rows written to embeds for a slot. A trace gets what else the graph makes.
	run(ctx context.Context, slot int, trace *traceSink) error
}

// encoder is a sourceEncoder over ONNX Runtime. Buffers are made once, for the longest prompt.
type encoder struct {
	session  *graphs.Session
	arena    *graphs.Arena // cross_key.N, cross_value.N of every slot: [slots, heads, capacity, head_dim]
	step     *graphs.Step
	capacity int
	hidden   int
	layers   int
	tokens   int // of the next run
	lengths  []int32
	input    *graphs.Tensor   // [tokens, hidden_size]
	outputs  []*graphs.Tensor // in the order of the graph's
	ports    []graphs.Port
	cross    map[string]crossPlace // by output
}

// crossPlace says which of the arena's tensors an output is.
type crossPlace struct {
	layer int
	value bool
}

// encoderCapacity returns the tokens of the longest prompt.
func encoderCapacity(spec manifest.Encoder, opts Options) int {
	want := opts.Capacity
	if want == 0 {
		want = defaultCapacity
	}
	return min(want, spec.MaxPositions)
}

// crossBytes is the memory of the cross attention's keys and values, all slots full.
func crossBytes(spec manifest.Decoder, opts Options) int64 {
	if spec.Encoder == nil {
		return 0
	}
	return 2 * 4 * int64(spec.Layers) * int64(opts.Slots) * int64(spec.Heads) * int64(encoderCapacity(*spec.Encoder, opts)) * int64(spec.HeadDim)
}

// newEncoder allocates the arena and the buffers. It takes over the session, which is closed when this fails.
func newEncoder(rt *graphs.Runtime, session *graphs.Session, spec manifest.Decoder, opts Options) (e *encoder, err error) {
	capacity := encoderCapacity(*spec.Encoder, opts)
	e = &encoder{
		session: session, capacity: capacity, hidden: spec.HiddenSize, layers: spec.Layers, lengths: make([]int32, opts.Slots),
		ports: session.Outputs(), cross: map[string]crossPlace{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
			e = nil
		}
	}()
	for layer := range spec.Layers {
		e.cross[fmt.Sprintf("cross_key.%d", layer)] = crossPlace{layer, false}
		e.cross[fmt.Sprintf("cross_value.%d", layer)] = crossPlace{layer, true}
	}
	if err := e.checkPorts(spec); err != nil {
		return e, err
	}
	e.arena, err = rt.NewArena(graphs.ArenaSpec{
		Layers: spec.Layers, Slots: opts.Slots, KVHeads: spec.Heads, Capacity: capacity, HeadDim: spec.HeadDim, DType: graphs.Float32,
	})
	if err != nil {
		return e, fmt.Errorf("for the encoder's keys and values: %w", err)
	}
	return e, e.allocate(rt)
}

// checkPorts makes sure that the graph takes inputs_embeds alone and makes keys and values for each layer of the decoder.
// Its other outputs are float32 rows, one a token.
func (e *encoder) checkPorts(spec manifest.Decoder) error {
	var problems []error
	in := e.session.Inputs()
	if len(in) != 1 || in[0].Name != "inputs_embeds" || len(in[0].Shape) != 2 || in[0].Shape[1] != int64(spec.HiddenSize) || in[0].DType != graphs.Float32 {
		problems = append(problems, fmt.Errorf("the encoder's inputs are %v; it must have inputs_embeds [tokens, %d] and no other", in, spec.HiddenSize))
	}
	found := 0
	for _, p := range e.ports {
		ok := len(p.Shape) > 0 && p.Shape[0] < 0
		if _, isCross := e.cross[p.Name]; isCross {
			found++
			ok = len(p.Shape) == 4 && p.Shape[0] == 1 && p.Shape[1] == int64(spec.Heads) && p.Shape[2] < 0 && p.Shape[3] == int64(spec.HeadDim)
		}
		for d, n := range p.Shape {
			ok = ok && (n > 0 || p.Symbols[d] == in[0].Symbols[0])
		}
		if !ok || p.DType != graphs.Float32 {
			problems = append(problems, fmt.Errorf("the encoder's output is %v, which this version cannot use", p))
		}
	}
	if found != len(e.cross) {
		problems = append(problems, fmt.Errorf("the encoder makes %d of the %d cross_key and cross_value outputs of the decoder's %d layers", found, len(e.cross), spec.Layers))
	}
	return errors.Join(problems...)
}

func (e *encoder) allocate(rt *graphs.Runtime) error {
	in, out := map[string]*graphs.Tensor{}, map[string]*graphs.Tensor{}
	var err error
	if e.input, err = rt.NewTensor(graphs.Float32, int64(e.capacity), int64(e.hidden)); err != nil {
		return fmt.Errorf("allocate the encoder's buffers: %w", err)
	}
	in["inputs_embeds"] = e.input
	for _, p := range e.ports {
		t, err := rt.NewTensor(p.DType, withTokens(p.Shape, e.capacity)...)
		if err != nil {
			return fmt.Errorf("allocate the encoder's buffers: %w", err)
		}
		e.outputs, out[p.Name] = append(e.outputs, t), t
	}
	e.step, err = e.session.Bind(in, out)
	return err
}

// withTokens fills in a shape's free dimensions.
func withTokens(shape []int64, tokens int) []int64 {
	out := make([]int64, len(shape))
	for d, n := range shape {
		if out[d] = n; n < 0 {
			out[d] = int64(tokens)
		}
	}
	return out
}

func (e *encoder) embeds(tokens int) []float32 {
	if err := e.input.Reshape(int64(tokens), int64(e.hidden)); err != nil {
		panic(err) // a prompt longer than allocated for: the engine's mistake, never a request's
	}
	e.tokens = tokens
	return e.input.Float32()
}

func (e *encoder) run(ctx context.Context, slot int, trace *traceSink) error {
	for i, p := range e.ports {
		if err := e.outputs[i].Reshape(withTokens(p.Shape, e.tokens)...); err != nil {
			return err
		}
	}
	if err := e.step.Run(ctx); err != nil {
		return err
	}
	view, err := e.arena.View(slot, 1)
	if err != nil {
		return err
	}
	for i, p := range e.ports {
		place, isCross := e.cross[p.Name]
		switch {
		case isCross && place.value:
			e.store(view.Values[place.layer].Float32(), e.outputs[i].Float32(), p)
		case isCross:
			e.store(view.Keys[place.layer].Float32(), e.outputs[i].Float32(), p)
		case trace != nil:
			trace.array(p.Name, Array{Shape: append([]int64{1}, e.outputs[i].Shape()...), Data: append([]float32(nil), e.outputs[i].Float32()...)})
		}
	}
	e.lengths[slot] = int32(e.tokens)
	return nil
}

// store copies [heads, tokens, head_dim] to the front of [heads, capacity, head_dim]. What lies behind is hidden from the
// decoder by encoder_seqlens.
func (e *encoder) store(dst, src []float32, p graphs.Port) {
	heads, headDim := int(p.Shape[1]), int(p.Shape[3])
	for h := range heads {
		copy(dst[h*e.capacity*headDim:], src[h*e.tokens*headDim:(h+1)*e.tokens*headDim])
	}
}

// bind adds the decoder's inputs for a view of the slots.
func (e *encoder) bind(in map[string]*graphs.Tensor, first, slots int) error {
	view, err := e.arena.View(first, slots)
	if err != nil {
		return err
	}
	for name, place := range e.cross {
		if in[name] = view.Keys[place.layer]; place.value {
			in[name] = view.Values[place.layer]
		}
	}
	return nil
}

// decoderInputs lists, with their ranks, what the decoder takes from here.
func (e *encoder) decoderInputs(inputs map[string]int) {
	inputs[encoderSeqlens] = 1
	for name := range e.cross {
		inputs[name] = 4
	}
}

// encoderSeqlens is the decoder's input that says how long each slot's prompt is, [batch] i32.
const encoderSeqlens = "encoder_seqlens"

// Close frees the graph, the arena and the buffers. It is idempotent.
func (e *encoder) Close() error {
	if e == nil {
		return nil
	}
	problems := []error{e.step.Close(), e.input.Close()}
	for _, t := range e.outputs {
		problems = append(problems, t.Close())
	}
	problems = append(problems, e.arena.Close(), e.session.Close())
	return errors.Join(problems...)
}

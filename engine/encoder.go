// The encoder of an encoder-decoder model: it reads a request's prompt once and leaves the cross attention's keys and
// values in the slot's part of a second arena, from which every step of the decoder takes them.
//
// Cross attention reads all places of a slot, those behind its prompt too, and most prompts are far shorter than the
// longest that is allowed. So there is an arena for each of a few widths, and what the running requests need is moved to
// the narrowest that holds the longest of them.

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	// release says that nobody needs what was made for a slot any more.
	release(slot int)
}

// encoder is a sourceEncoder over ONNX Runtime. Buffers are made once, for the longest prompt.
type encoder struct {
	runtime  *graphs.Runtime
	memory   graphs.DeviceMemory // of the keys and values; nil: ordinary
	session  *graphs.Session
	spec     manifest.Decoder
	arenas   map[int]*graphs.Arena // by width: cross_key.N, cross_value.N of every slot, [slots, heads, width, head_dim]
	width    int                   // of the arena in use, 0 before the first prompt
	step     *graphs.Step
	capacity int
	hidden   int
	tokens   int              // of the next run
	lengths  []int32          // of each slot's prompt, 0 for a free slot
	input    *graphs.Tensor   // [tokens, hidden_size]
	outputs  []*graphs.Tensor // in the order of the graph's
	ports    []graphs.Port
	dtype    graphs.DType          // of the keys and values
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

// narrowest is the width of the smallest arena.
const narrowest = 64

// widthFor returns the width of the arena for prompts of so many tokens: a power of two, or the capacity.
func (e *encoder) widthFor(tokens int) int {
	width := narrowest
	for width < tokens {
		width *= 2
	}
	return min(width, e.capacity)
}

// crossBytes bounds the memory of the cross attention's keys and values, all slots full. All arenas together are less than
// twice the widest.
func crossBytes(spec manifest.Decoder, opts Options) int64 {
	if spec.Encoder == nil {
		return 0
	}
	return 2 * 2 * 4 * int64(spec.Layers) * int64(opts.Slots) * int64(spec.Heads) * int64(encoderCapacity(*spec.Encoder, opts)) * int64(spec.HeadDim)
}

// newEncoder allocates the arena and the buffers. It takes over the session, which is closed when this fails.
func newEncoder(rt *graphs.Runtime, memory graphs.DeviceMemory, session *graphs.Session, spec manifest.Decoder, opts Options) (e *encoder, err error) {
	capacity := encoderCapacity(*spec.Encoder, opts)
	e = &encoder{
		runtime: rt, memory: memory, session: session, spec: spec, capacity: capacity, hidden: spec.HiddenSize, lengths: make([]int32, opts.Slots),
		ports: session.Outputs(), cross: map[string]crossPlace{}, arenas: map[int]*graphs.Arena{},
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
	// The widest is tried now: a machine that cannot hold it should say so when the model is opened.
	for _, tokens := range []int{capacity, 1} {
		if err := e.use(e.widthFor(tokens)); err != nil {
			return e, err
		}
	}
	return e, e.allocate(rt)
}

// use makes an arena the one in use and moves there what the slots hold.
func (e *encoder) use(width int) error {
	if width == e.width {
		return nil
	}
	if e.arenas[width] == nil {
		arena, err := e.runtime.NewArenaIn(e.memory, graphs.ArenaSpec{
			Layers: e.spec.Layers, Slots: len(e.lengths), KVHeads: e.spec.Heads, Capacity: width, HeadDim: e.spec.HeadDim, DType: e.dtype,
		})
		if err != nil {
			return fmt.Errorf("for the encoder's keys and values: %w", err)
		}
		e.arenas[width] = arena
	}
	for slot, tokens := range e.lengths {
		if tokens == 0 {
			continue
		}
		if err := e.arenas[width].Import(e.arenas[e.width], slot, int(tokens)); err != nil {
			return err
		}
	}
	e.width = width
	return nil
}

func (e *encoder) release(slot int) { e.lengths[slot] = 0 }

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
		_, isCross := e.cross[p.Name]
		if isCross {
			found++
			if found == 1 {
				e.dtype = p.DType
			}
			ok = p.DType == e.dtype && (p.DType == graphs.Float32 || p.DType == graphs.Float16)
			ok = ok && len(p.Shape) == 4 && p.Shape[0] == 1 && p.Shape[1] == int64(spec.Heads) && p.Shape[2] < 0 && p.Shape[3] == int64(spec.HeadDim)
		}
		for d, n := range p.Shape {
			ok = ok && (n > 0 || p.Symbols[d] == in[0].Symbols[0])
		}
		if !ok || !isCross && p.DType != graphs.Float32 {
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
		memory := graphs.DeviceMemory(nil) // read here
		if _, isCross := e.cross[p.Name]; isCross && e.memory != nil {
			if memory, err = e.session.Memory(); err != nil { // not e.memory: device auto may have put the two graphs on two devices
				return err
			}
		}
		t, err := rt.NewTensorIn(memory, p.DType, withTokens(p.Shape, e.capacity)...)
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
	e.release(slot)
	if err := e.use(e.widthFor(max(e.tokens, int(slices.Max(e.lengths))))); err != nil {
		return err
	}
	arena := e.arenas[e.width]
	for i, p := range e.ports {
		place, isCross := e.cross[p.Name]
		var err error
		switch {
		case isCross && place.value:
			err = arena.StoreValues(place.layer, slot, e.outputs[i], e.tokens)
		case isCross:
			err = arena.StoreKeys(place.layer, slot, e.outputs[i], e.tokens)
		case trace != nil:
			trace.array(p.Name, Array{Shape: append([]int64{1}, e.outputs[i].Shape()...), Data: append([]float32(nil), e.outputs[i].Float32()...)})
		}
		if err != nil {
			return err
		}
	}
	e.lengths[slot] = int32(e.tokens)
	return nil
}

// bind adds the decoder's inputs for a view of the slots, in the arena in use.
func (e *encoder) bind(in map[string]*graphs.Tensor, first, slots int) error {
	view, err := e.arenas[e.width].View(first, slots)
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
	for _, arena := range e.arenas {
		problems = append(problems, arena.Close())
	}
	return errors.Join(append(problems, e.session.Close())...)
}

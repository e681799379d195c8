// The decoder on ONNX Runtime: steps over the KV arena. The ports are described in docs/architecture.md.

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"glimpse/graphs"
	"glimpse/manifest"
	"glimpse/preprocess"
)

// decoder is a stepper. All its buffers are made once, for the widest step; a step of known width makes no garbage.
// It belongs to one goroutine, but for Close, which comes after it.
type decoder struct {
	session *graphs.Session
	// wide computes the same with the same ports, faster for wideRows tokens and more; nil: session runs all steps.
	wide     *graphs.Session
	wideRows int
	memory   graphs.DeviceMemory // of the arena and of what steps only read; nil: ordinary
	arena    *graphs.Arena
	encoder  *encoder // nil: prompts go to the decoder itself
	spec     manifest.Decoder
	vocab    int

	input, logitsOut              *graphs.Tensor // [tokens, hidden_size], [rows, vocab_size]
	rowMap, tokenMap, logitsRows  *graphs.Tensor
	seqlensK, querySeqlens, total *graphs.Tensor
	positions                     *graphs.Tensor    // [tokens]; nil where the graph does not ask for them
	sourceSeqlens                 *graphs.Tensor    // [batch]; nil without an encoder
	axes                          *preprocess.MRoPE // nil where positions are places in the sequence
	deepstack                     []*graphs.Tensor  // [tokens, hidden_size] each
	spanFirst, spanLast           *graphs.Tensor    // [tokens]; nil where the graph does not ask for them
	cosLocal, sinLocal            *graphs.Tensor    // nil without decoder.rope_local
	cos, sin                      *graphs.Tensor    // the common tables; with axes, a row for each packed token
	ownCos, ownSin                *graphs.Tensor    // tables of one sequence, made when first needed
	ownLength                     int               // the length that ownCos and ownSin are for
	steps                         map[stepKey]*graphs.Step
	runtime                       *graphs.Runtime
	out                           []float32 // logits of the last step
}

// stepKey is what the argument list of a step depends on.
type stepKey struct {
	wide         bool
	first, slots int
	crossWidth   int // of the encoder's arena
}

// decoderGraphs are the sessions of a decoder.
type decoderGraphs struct {
	session *graphs.Session
	wide    *graphs.Session // nil: there is none, or it is not wanted
	source  *encoder        // nil: prompts go to the decoder itself
	memory  graphs.DeviceMemory
}

// Close closes what is there.
func (g decoderGraphs) Close() error {
	return errors.Join(g.session.Close(), g.wide.Close(), g.source.Close())
}

// newDecoder allocates the arena and the buffers for steps of up to maxTokens packed tokens. It takes over the graphs, which are
// closed when this fails.
func newDecoder(rt *graphs.Runtime, g decoderGraphs, spec manifest.Decoder, slots, capacity, maxTokens int) (d *decoder, err error) {
	d = &decoder{session: g.session, wide: g.wide, encoder: g.source, memory: g.memory, spec: spec, vocab: spec.VocabSize, runtime: rt, steps: map[stepKey]*graphs.Step{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
			d = nil
		}
	}()
	if err := d.checkPorts(); err != nil {
		return d, err
	}
	if spec.Positions == manifest.PositionsMRoPE {
		if d.axes, err = preprocess.NewMRoPE(*spec.Rope); err != nil {
			return d, err
		}
	}
	dtype, err := graphs.ParseDType(spec.CacheDType)
	if err != nil {
		return d, fmt.Errorf("decoder.cache_dtype: %w", err)
	}
	d.arena, err = rt.NewArenaIn(d.memory, graphs.ArenaSpec{
		Layers: spec.Layers, Slots: slots, KVHeads: spec.KVHeads, Capacity: capacity, HeadDim: spec.HeadDim, DType: dtype,
	})
	if err != nil {
		return d, err
	}
	return d, d.allocate(int64(slots), int64(capacity), int64(maxTokens))
}

// checkPorts makes sure that the graphs have what steps feed and fetch, and nothing else.
func (d *decoder) checkPorts() error {
	err := d.checkPortsOf(d.session)
	if d.wide != nil {
		if wide := d.checkPortsOf(d.wide); wide != nil {
			err = errors.Join(err, fmt.Errorf("the prefill graph: %w", wide))
		}
	}
	return err
}

func (d *decoder) checkPortsOf(session *graphs.Session) error {
	inputs := map[string]int{ // rank by name
		"inputs_embeds": 2, "row_map": 2, "token_map": 1, "logits_rows": 1, "seqlens_k": 1, "query_seqlens": 1, "total_sequence_length": 0,
	}
	if d.spec.Rope != nil {
		inputs["rope_cos"], inputs["rope_sin"] = 2, 2
	}
	if d.spec.RopeLocal != nil {
		inputs[ropeCosLocal], inputs[ropeSinLocal] = 2, 2
	}
	if d.hasInput(spanFirst) {
		inputs[spanFirst], inputs[spanLast] = 1, 1
	}
	if d.hasInput(positionIDs) {
		inputs[positionIDs] = 1
	}
	for i := 0; d.hasInput(deepstackName(i)); i++ {
		inputs[deepstackName(i)] = 2
	}
	if d.encoder != nil {
		d.encoder.decoderInputs(inputs)
	}
	outputs := map[string]int{"logits": 2}
	for layer := range d.spec.Layers {
		for _, kind := range []string{"key", "value"} {
			inputs[fmt.Sprintf("past_%s.%d", kind, layer)] = 4
			outputs[fmt.Sprintf("present_%s.%d", kind, layer)] = 4
		}
	}
	check := func(kind string, want map[string]int, have []graphs.Port) error {
		var problems []error
		for _, p := range have {
			rank, ok := want[p.Name]
			delete(want, p.Name)
			switch {
			case !ok:
				problems = append(problems, fmt.Errorf("the decoder has the %s %v, which this version does not know", kind, p))
			case rank != len(p.Shape):
				problems = append(problems, fmt.Errorf("the decoder's %s is %v; it needs %d dimensions", kind, p, rank))
			}
		}
		for name := range want {
			problems = append(problems, fmt.Errorf("the decoder has no %s %s", kind, name))
		}
		return errors.Join(problems...)
	}
	return errors.Join(check("input", inputs, session.Inputs()), check("output", outputs, session.Outputs()))
}

// positionIDs is the input of decoders with learned positions: [tokens] i64, each packed token's place in its sequence.
const positionIDs = "position_ids"

func (d *decoder) hasInput(name string) bool { return hasInput(d.session, name) }

func hasInput(s *graphs.Session, name string) bool {
	return slices.ContainsFunc(s.Inputs(), func(p graphs.Port) bool { return p.Name == name })
}

// allocate makes the buffers and the common rotary tables.
func (d *decoder) allocate(slots, capacity, tokens int64) error {
	type buffer struct {
		to    **graphs.Tensor
		dtype graphs.DType
		shape []int64
	}
	buffers := []buffer{
		{&d.input, graphs.Float32, []int64{tokens, int64(d.spec.HiddenSize)}},
		{&d.logitsOut, graphs.Float32, []int64{slots + mostDrafts, int64(d.vocab)}},
		{&d.rowMap, graphs.Int64, []int64{slots * tokens}},
		{&d.tokenMap, graphs.Int64, []int64{tokens}},
		{&d.logitsRows, graphs.Int64, []int64{slots + mostDrafts}},
		{&d.seqlensK, graphs.Int32, []int64{slots}},
		{&d.querySeqlens, graphs.Int32, []int64{slots}},
		{&d.total, graphs.Int32, nil},
	}
	if d.hasInput(positionIDs) {
		buffers = append(buffers, buffer{&d.positions, graphs.Int64, []int64{tokens}})
	}
	if d.encoder != nil {
		buffers = append(buffers, buffer{&d.sourceSeqlens, graphs.Int32, []int64{slots}})
	}
	for _, t := range buffers {
		var err error
		if *t.to, err = d.runtime.NewTensor(t.dtype, t.shape...); err != nil {
			return fmt.Errorf("allocate the decoder's buffers: %w", err)
		}
	}
	d.total.Int32()[0] = int32(capacity)
	if err := d.allocateSpans(tokens); err != nil {
		return err
	}
	if err := d.allocatePacked(tokens); err != nil || d.axes != nil {
		return err
	}
	if d.spec.Rope == nil {
		return nil
	}
	var err error
	if d.cos, d.sin, err = d.ropeTables(d.spec, int(capacity), 0); err != nil || d.spec.RopeLocal == nil {
		return err
	}
	local := d.spec
	local.Rope = local.RopeLocal
	d.cosLocal, d.sinLocal, err = d.ropeTables(local, int(capacity), 0)
	return err
}

func (d *decoder) embeds(tokens int) []float32 {
	if err := d.input.Reshape(int64(tokens), int64(d.spec.HiddenSize)); err != nil {
		panic(err) // a step wider than allocated for: the scheduler's mistake, never a request's
	}
	return d.input.Float32()
}

func (d *decoder) run(ctx context.Context, s *step) error {
	st, err := d.stepFor(d.wide != nil && s.tokens >= d.wideRows, s.first, s.slots)
	if err != nil {
		return err
	}
	if err := d.layOut(s); err != nil {
		return err
	}
	if err := errors.Join(d.layOutPacked(s), d.layOutSpans(s)); err != nil {
		return err
	}
	if err := d.setRope(st, s.ropeLength); err != nil {
		return err
	}
	if err := st.Run(ctx); err != nil {
		return err
	}
	d.out = d.logitsOut.Float32()
	return nil
}

func (d *decoder) logits(i int) []float32 { return d.out[i*d.vocab : (i+1)*d.vocab] }

func (d *decoder) copyCache(from, to, first, n int) error { return d.arena.Copy(from, to, first, n) }

// layOut writes the integer inputs of the step.
func (d *decoder) layOut(s *step) error {
	batch, sequence, rows := int64(s.slots), int64(s.sequence), int64(max(1, len(s.wanted)))
	err := errors.Join(
		d.rowMap.Reshape(batch, sequence), d.tokenMap.Reshape(int64(s.tokens)), d.logitsRows.Reshape(rows),
		d.seqlensK.Reshape(batch), d.querySeqlens.Reshape(batch), d.logitsOut.Reshape(rows, int64(d.vocab)))
	var positions []int64
	if d.positions != nil {
		err = errors.Join(err, d.positions.Reshape(int64(s.tokens)))
		positions = d.positions.Int64()
	}
	if d.encoder != nil {
		err = errors.Join(err, d.sourceSeqlens.Reshape(batch))
	}
	if err != nil {
		return fmt.Errorf("lay out a step: %w", err)
	}
	if d.encoder != nil {
		for b, n := range d.encoder.lengths[s.first : s.first+s.slots] {
			d.sourceSeqlens.Int32()[b] = max(1, n) // a slot that never had a prompt attends to zeros that nobody reads
		}
	}
	rowMap, tokenMap := d.rowMap.Int64(), d.tokenMap.Int64()
	seqlens, query := d.seqlensK.Int32(), d.querySeqlens.Int32()
	row := int64(0)
	for b, fresh := range s.fresh {
		seqlens[b] = max(0, s.past[b]+fresh-1)
		query[b] = fresh
		for i := range s.sequence {
			place := b*s.sequence + i
			if i >= int(fresh) {
				rowMap[place] = 0 // padding: any row will do
				continue
			}
			rowMap[place], tokenMap[row] = row, int64(place)
			if positions != nil {
				positions[row] = int64(int(s.past[b]) + i)
			}
			row++
		}
	}
	// Operators need not be defined on nothing, so a chunk in the middle of a prompt fetches one row that nobody reads.
	wanted := d.logitsRows.Int64()
	wanted[0] = 0
	copy(wanted, s.wanted)
	return nil
}

// stepFor returns the argument list for a view of the arena; each is made once.
func (d *decoder) stepFor(wide bool, first, slots int) (*graphs.Step, error) {
	key := stepKey{wide: wide, first: first, slots: slots}
	if d.encoder != nil {
		key.crossWidth = d.encoder.width
	}
	if st := d.steps[key]; st != nil {
		return st, nil
	}
	view, err := d.arena.View(first, slots)
	if err != nil {
		return nil, err
	}
	in := map[string]*graphs.Tensor{
		"inputs_embeds": d.input, "row_map": d.rowMap, "token_map": d.tokenMap, "logits_rows": d.logitsRows,
		"seqlens_k": d.seqlensK, "query_seqlens": d.querySeqlens, "total_sequence_length": d.total,
	}
	if d.spec.Rope != nil {
		in["rope_cos"], in["rope_sin"] = d.cos, d.sin
	}
	if d.spec.RopeLocal != nil {
		in[ropeCosLocal], in[ropeSinLocal] = d.cosLocal, d.sinLocal
	}
	if d.spanFirst != nil {
		in[spanFirst], in[spanLast] = d.spanFirst, d.spanLast
	}
	if d.positions != nil {
		in[positionIDs] = d.positions
	}
	for i, t := range d.deepstack {
		in[deepstackName(i)] = t
	}
	if d.encoder != nil {
		in[encoderSeqlens] = d.sourceSeqlens
		if err := d.encoder.bind(in, first, slots); err != nil {
			return nil, err
		}
	}
	out := map[string]*graphs.Tensor{"logits": d.logitsOut}
	for layer := range d.spec.Layers {
		key, value := view.Keys[layer], view.Values[layer]
		in[fmt.Sprintf("past_key.%d", layer)], out[fmt.Sprintf("present_key.%d", layer)] = key, key
		in[fmt.Sprintf("past_value.%d", layer)], out[fmt.Sprintf("present_value.%d", layer)] = value, value
	}
	session := d.session
	if wide {
		session = d.wide
	}
	st, err := session.Bind(in, out)
	if err != nil {
		return nil, err
	}
	d.steps[key] = st
	return st, nil
}

// setRope gives the step the common tables, or those of a sequence of the given length.
func (d *decoder) setRope(st *graphs.Step, length int) error {
	if d.spec.Rope == nil || d.axes != nil {
		return nil
	}
	cos, sin := d.cos, d.sin
	if length > 0 {
		if err := d.makeOwnRope(length); err != nil {
			return err
		}
		cos, sin = d.ownCos, d.ownSin
	}
	return errors.Join(st.SetInput(st.Input("rope_cos"), cos), st.SetInput(st.Input("rope_sin"), sin))
}

func (d *decoder) makeOwnRope(length int) error {
	if d.ownLength == length {
		return nil
	}
	cos, sin, err := d.ropeTables(d.spec, int(d.cos.Dim(0)), length)
	if err != nil {
		return err
	}
	err = errors.Join(d.ownCos.Close(), d.ownSin.Close())
	d.ownCos, d.ownSin, d.ownLength = cos, sin, length
	return err
}

// Close frees the graph, the arena and the buffers. It is idempotent.
func (d *decoder) Close() error {
	if d == nil {
		return nil
	}
	var problems []error
	for key, st := range d.steps {
		problems = append(problems, st.Close())
		delete(d.steps, key)
	}
	for _, t := range []*graphs.Tensor{d.input, d.logitsOut, d.rowMap, d.tokenMap, d.logitsRows, d.seqlensK, d.querySeqlens,
		d.total, d.positions, d.sourceSeqlens, d.cos, d.sin, d.ownCos, d.ownSin, d.cosLocal, d.sinLocal, d.spanFirst, d.spanLast} {
		problems = append(problems, t.Close())
	}
	for _, t := range d.deepstack {
		problems = append(problems, t.Close())
	}
	problems = append(problems, d.arena.Close(), d.encoder.Close(), d.wide.Close(), d.session.Close())
	return errors.Join(problems...)
}

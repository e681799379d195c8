// Attention: over a whole sequence for towers, and over the KV arena for decoders.

package blocks

import (
	"fmt"

	"glimpse/convert/onnx"
)

// Columns cuts x along its last dimension into parts of the given widths.
func (b *Builder) Columns(x *onnx.Value, widths ...int64) []*onnx.Value {
	return b.Node("", "Split", len(widths), []*onnx.Value{x, b.Ints1(widths...)}, onnx.Int("axis", -1))
}

// Heads gives the sizes of an attention without a cache. Lengths are fixed when the graph is built, or 0 when they vary
// and the rows are [batch, sequence, …] already.
type Heads struct {
	Count       int64
	Dim         int64
	QueryLength int64
	KeyLength   int64
	Scale       float32     // 0 for 1/√head_dim
	Bias        *onnx.Value // added to the scores: [batch or 1, heads or 1, query, key]; nil for none
}

// FullAttention is softmax(q·kᵀ·scale + bias)·v without a causal mask, where q is [batch·query, heads·head_dim] rows and
// k, v are [batch·key, heads·head_dim]. It returns rows of the same shape as q. Without bias, MultiHeadAttention takes its
// flash path.
func (b *Builder) FullAttention(q, k, v *onnx.Value, h Heads) *onnx.Value {
	width := h.Count * h.Dim
	in := []*onnx.Value{
		b.batched(q, h.QueryLength, width), b.batched(k, h.KeyLength, width), b.batched(v, h.KeyLength, width),
		onnx.None, onnx.None, onnx.None,
	}
	if h.Bias != nil {
		in[5] = h.Bias
	}
	attrs := []onnx.Attr{onnx.Int("num_heads", h.Count)}
	if h.Scale != 0 {
		attrs = append(attrs, onnx.Float32("scale", h.Scale))
	}
	y := b.Contrib("MultiHeadAttention", in, attrs...)
	if h.QueryLength == 0 {
		return y
	}
	return b.Op("Reshape", []*onnx.Value{y, b.Ints1(-1, width)})
}

// batched turns rows into [batch, length, width].
func (b *Builder) batched(x *onnx.Value, length, width int64) *onnx.Value {
	if length == 0 {
		return x
	}
	return b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, length, width)})
}

// Step holds the inputs that every decoder graph shares; docs/model-folder.md lists their shapes and meaning.
type Step struct {
	InputsEmbeds *onnx.Value
	PositionIDs  *onnx.Value   // [tokens], for decoders with learned positions; nil otherwise
	Bias         *onnx.Value   // added to the scores of self attention, [batch, heads, sequence, total]; nil for none
	Deepstack    []*onnx.Value // [tokens, hidden_size] each, added to the hidden states behind the layer of that number
	rowMap       *onnx.Value
	tokenMap     *onnx.Value
	logitsRows   *onnx.Value
	seqlensK     *onnx.Value
	total        *onnx.Value
	querySeqlens *onnx.Value
	ropeCos      *onnx.Value
	ropeSin      *onnx.Value
	cache        []layerCache
	logScale     *onnx.Value // LogScale's, which layers share
	spanFirst    *onnx.Value
	spanLast     *onnx.Value
	open         bool // Bias alone says what is seen; see Open
}

type layerCache struct {
	pastKey, pastValue       *onnx.Value
	presentKey, presentValue *onnx.Value
}

// Cache gives the shape of a decoder's KV arena and of its rotary tables.
type Cache struct {
	Layers  int
	Heads   int64
	KVHeads int64
	HeadDim int64
	RopeDim int64 // rotated dimensions of a head, 0 for a decoder without rotary embedding
	Learned bool  // positions come from a table in the graph, or the graph computes with them
	Scale   float32
	// PackedRope says that the rotary tables have a row for each packed token and are applied before the cache is
	// touched, by RotateHeads: positions that are not places in the sequence cannot be left to the attention operator.
	PackedRope bool
	Deepstack  int // first layers behind which rows of picture features are added
}

// StepInputs adds the decoder's inputs to the graph.
func (b *Builder) StepInputs(hiddenSize int64, c Cache) *Step {
	tokens, batch, sequence := onnx.Free("tokens"), onnx.Free("batch"), onnx.Free("sequence")
	s := &Step{
		InputsEmbeds: b.Input("inputs_embeds", onnx.Float, tokens, onnx.Fixed(hiddenSize)),
		rowMap:       b.Input("row_map", onnx.Int64, batch, sequence),
		tokenMap:     b.Input("token_map", onnx.Int64, tokens),
		logitsRows:   b.Input("logits_rows", onnx.Int64, onnx.Free("rows")),
		seqlensK:     b.Input("seqlens_k", onnx.Int32, batch),
		querySeqlens: b.Input("query_seqlens", onnx.Int32, batch),
		total:        b.Input("total_sequence_length", onnx.Int32),
		ropeCos:      onnx.None,
		ropeSin:      onnx.None,
	}
	if c.RopeDim > 0 {
		rows := onnx.Free("positions")
		if c.PackedRope {
			rows = tokens
		}
		s.ropeCos = b.Input("rope_cos", onnx.Float, rows, onnx.Fixed(c.RopeDim/2))
		s.ropeSin = b.Input("rope_sin", onnx.Float, rows, onnx.Fixed(c.RopeDim/2))
	}
	for i := range c.Deepstack {
		s.Deepstack = append(s.Deepstack, b.Input(fmt.Sprintf("deepstack_%d", i), onnx.Float, tokens, onnx.Fixed(hiddenSize)))
	}
	if c.Learned {
		s.PositionIDs = b.Input("position_ids", onnx.Int64, tokens)
	}
	for i := range c.Layers {
		past := func(name string) *onnx.Value {
			return b.Input(fmt.Sprintf("past_%s.%d", name, i), onnx.Float, batch, onnx.Fixed(c.KVHeads), onnx.Free("capacity"), onnx.Fixed(c.HeadDim))
		}
		s.cache = append(s.cache, layerCache{pastKey: past("key"), pastValue: past("value")})
	}
	return s
}

// StepOutputs declares the logits and the updated caches as outputs.
func (b *Builder) StepOutputs(s *Step, logits *onnx.Value, vocabSize int64, c Cache) {
	b.Output("logits", logits, onnx.Float, onnx.Free("rows"), onnx.Fixed(vocabSize))
	for i, l := range s.cache {
		dims := []onnx.Dim{onnx.Free("batch"), onnx.Fixed(c.KVHeads), onnx.Free("capacity"), onnx.Fixed(c.HeadDim)}
		b.Output(fmt.Sprintf("present_key.%d", i), l.presentKey, onnx.Float, dims...)
		b.Output(fmt.Sprintf("present_value.%d", i), l.presentValue, onnx.Float, dims...)
	}
}

// CachedAttention is causal grouped-query attention of the step's new tokens over the slots' caches, which it extends in
// place. qkv is [tokens, (heads + 2·kv_heads)·head_dim], packed q, k, v; it returns [tokens, heads·head_dim].
//
// Only here are the packed tokens laid out as [batch, sequence]: everything else works on packed rows, so a step's
// padding costs nothing in the linears. window is the sliding window of tokens attended to, 0 for all.
func (b *Builder) CachedAttention(s *Step, layer int, qkv *onnx.Value, c Cache, window int64) *onnx.Value {
	unpacked := b.Op("Gather", []*onnx.Value{qkv, s.rowMap})
	attrs := []onnx.Attr{onnx.Int("num_heads", c.Heads), onnx.Int("kv_num_heads", c.KVHeads)}
	cos, sin := onnx.None, onnx.None
	if c.RopeDim > 0 && !c.PackedRope {
		attrs = append(attrs, onnx.Int("do_rotary", 1))
		cos, sin = s.ropeCos, s.ropeSin
	}
	if c.Scale != 0 {
		attrs = append(attrs, onnx.Float32("scale", c.Scale))
	}
	switch {
	case s.open: // the operator's own mask would hide what Bias shows
		attrs = append(attrs, onnx.Int("causal", int64(0)))
	case window > 0:
		attrs = append(attrs, onnx.Int("local_window_size", window))
	}
	bias := onnx.None
	if s.Bias != nil {
		bias = s.Bias
	}
	l := &s.cache[layer]
	fresh := s.querySeqlens
	if s.open {
		fresh = onnx.None
	}
	out := b.Node(onnx.Microsoft, "GroupQueryAttention", 3, []*onnx.Value{
		unpacked, onnx.None, onnx.None, l.pastKey, l.pastValue, s.seqlensK, s.total, cos, sin,
		onnx.None, bias, onnx.None, onnx.None, onnx.None, onnx.None, onnx.None, fresh,
	}, attrs...)
	l.presentKey, l.presentValue = out[1], out[2]
	flat := b.Op("Reshape", []*onnx.Value{out[0], b.Ints1(-1, c.Heads*c.HeadDim)})
	return b.Op("Gather", []*onnx.Value{flat, s.tokenMap})
}

// WantedRows picks the packed rows whose logits are asked for: the output head is the widest layer of the model, and a
// prompt needs it once.
func (b *Builder) WantedRows(s *Step, x *onnx.Value) *onnx.Value {
	return b.Op("Gather", []*onnx.Value{x, s.logitsRows})
}

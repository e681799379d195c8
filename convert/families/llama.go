// The LLaMA-style decoder: RMSNorm, rotary grouped-query attention, SwiGLU (transformers' LlamaForCausalLM,
// MistralForCausalLM, Qwen2ForCausalLM; Touvron et al. 2023).

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

// llamaConfig is LlamaConfig, MistralConfig and Qwen2Config: they differ in defaults, biases and windows.
type llamaConfig struct {
	ModelType        string       `json:"model_type"`
	VocabSize        int64        `json:"vocab_size"`
	HiddenSize       int64        `json:"hidden_size"`
	IntermediateSize int64        `json:"intermediate_size"`
	Layers           int64        `json:"num_hidden_layers"`
	Heads            int64        `json:"num_attention_heads"`
	KVHeads          *int64       `json:"num_key_value_heads"`
	HeadDim          *int64       `json:"head_dim"`
	HiddenAct        string       `json:"hidden_act"`
	MaxPositions     int64        `json:"max_position_embeddings"`
	RMSNormEps       float64      `json:"rms_norm_eps"`
	TieEmbeddings    *bool        `json:"tie_word_embeddings"`
	RopeTheta        float64      `json:"rope_theta"`
	RopeScaling      *ropeScaling `json:"rope_scaling"`
	RopeParameters   *ropeScaling `json:"rope_parameters"` // what transformers 5 writes instead of the two above
	PartialRotary    float64      `json:"partial_rotary_factor"`
	AttentionBias    bool         `json:"attention_bias"`
	Bias             bool         `json:"bias"` // InternLM2's name of attention_bias
	MLPBias          bool         `json:"mlp_bias"`
	SlidingWindow    *int64       `json:"sliding_window"`
	UseSliding       *bool        `json:"use_sliding_window"` // Qwen2
	MaxWindowLayers  int64        `json:"max_window_layers"`  // Qwen2
	LayerTypes       []string     `json:"layer_types"`
	EOS              oneOrMany    `json:"eos_token_id"`
	BOS              *int         `json:"bos_token_id"`
	Pad              *int         `json:"pad_token_id"`
	// SmolVLM's saves repeat what its class would do otherwise; only these values are what the graph computes.
	QKLayerNorms    bool            `json:"qk_layer_norms"`
	RopeInterleaved bool            `json:"rope_interleaved"`
	UseResampler    bool            `json:"use_resampler"`
	ShuffleFactor   json.RawMessage `json:"pixel_shuffle_factor"`
	Llama           json.RawMessage `json:"is_llama_config"`
	Flash           json.RawMessage `json:"_flash_attn_2_enabled"`
	Neftune         json.RawMessage `json:"neftune_noise_alpha"`
	TransformersJS  json.RawMessage `json:"transformers.js_config"`
	MoE             json.RawMessage `json:"moe_config"`

	// What a decoder of pictures of any size adds: a norm of each head of q and k, tables a token, rows behind layers.
	qkNorm     bool
	packedRope bool
	deepstack  int
	openSpans  bool  // the tokens of a picture see each other in both directions
	crossEvery int64 // rows of features are added behind the attention of every so-many layers, not behind the first ones
	logN       int64 // queries behind this place are scaled by its logarithm to this base; 0: none are
}

// ropeScaling is rope_scaling and rope_parameters.
type ropeScaling struct {
	Type                 string   `json:"rope_type"`
	OldType              string   `json:"type"`
	Theta                *float64 `json:"rope_theta"`
	Factor               float64  `json:"factor"`
	LowFreqFactor        float64  `json:"low_freq_factor"`
	HighFreqFactor       float64  `json:"high_freq_factor"`
	OriginalMaxPositions int64    `json:"original_max_position_embeddings"`
	BetaFast             float64  `json:"beta_fast"`
	BetaSlow             float64  `json:"beta_slow"`
	MScale               float64  `json:"mscale"`
	MScaleAllDim         float64  `json:"mscale_all_dim"`
	AttentionFactor      float64  `json:"attention_factor"`
	Truncate             *bool    `json:"truncate"`
	PartialRotary        *float64 `json:"partial_rotary_factor"`
	Sections             []int    `json:"mrope_section"`
	Interleaved          bool     `json:"mrope_interleaved"`
}

// decodeLlama reads a text configuration with the defaults of its class.
func decodeLlama(raw json.RawMessage, where string, t *blocks.Tensors) (llamaConfig, bool) {
	var head Head
	if raw != nil {
		if err := json.Unmarshal(raw, &head); err != nil {
			t.Problem(where, fmt.Sprintf("cannot be decoded: %v", err))
			return llamaConfig{}, false
		}
	}
	c := llamaConfig{ModelType: "llama", VocabSize: 32000, HiddenSize: 4096, IntermediateSize: 11008, Layers: 32, Heads: 32,
		HiddenAct: "silu", MaxPositions: 2048, RMSNormEps: 1e-6, RopeTheta: 10000, PartialRotary: 1}
	switch head.ModelType {
	case "", "llama", "llava", "llava_llama":
	case "mistral":
		kv, window := int64(8), int64(4096)
		c.IntermediateSize, c.KVHeads, c.MaxPositions, c.SlidingWindow = 14336, &kv, 131072, &window
	case "qwen3":
		headDim := int64(128)
		c.HeadDim, c.qkNorm = &headDim, true
	case "qwen2":
		off, window := false, int64(4096)
		c.VocabSize, c.IntermediateSize, c.MaxPositions, c.UseSliding, c.SlidingWindow, c.MaxWindowLayers = 151936, 22016, 32768, &off, &window, 28
	case "internlm2":
		c.VocabSize = 103168
	default:
		t.Problem(where+" model_type", fmt.Sprintf("is %q; llama, mistral, qwen2, qwen3 and internlm2 decoders are supported here", head.ModelType))
		return c, false
	}
	if raw != nil {
		// An explicit null says "no window"; the decoder would leave the class default.
		decode(raw, &c, where, t)
		if isNull(raw, "sliding_window") {
			c.SlidingWindow = nil
		}
	}
	c.AttentionBias = c.AttentionBias || c.Bias
	return c, c.valid(t, where)
}

func isNull(raw json.RawMessage, key string) bool {
	var keys map[string]json.RawMessage
	_ = json.Unmarshal(raw, &keys) // decode has already judged it
	return string(keys[key]) == "null"
}

func (c llamaConfig) valid(t *blocks.Tensors, where string) bool {
	ok := within(t, where+" vocab_size", c.VocabSize, 1, 1<<24)
	ok = within(t, where+" hidden_size", c.HiddenSize, 1, 1<<16) && ok
	ok = within(t, where+" intermediate_size", c.IntermediateSize, 1, 1<<20) && ok
	ok = within(t, where+" num_hidden_layers", c.Layers, 1, 1<<10) && ok
	ok = within(t, where+" num_attention_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" max_position_embeddings", c.MaxPositions, 1, 1<<24) && ok
	if !ok {
		return false
	}
	ok = within(t, where+" num_key_value_heads", c.kvHeads(), 1, c.Heads)
	ok = within(t, where+" head_dim", c.headDim(), 1, 1<<12) && ok
	if ok && c.Heads%c.kvHeads() != 0 {
		t.Problem(where+" num_key_value_heads", fmt.Sprintf("(%d) does not divide num_attention_heads (%d)", c.kvHeads(), c.Heads))
		ok = false
	}
	if ok && c.headDim()%16 != 0 {
		t.Problem(where+" head_dim", fmt.Sprintf("is %d; rotary attention on the CPU needs a multiple of 16", c.headDim()))
		ok = false
	}
	if c.HiddenAct != "silu" && c.HiddenAct != "swish" {
		t.Problem(where+" hidden_act", fmt.Sprintf("is %q where silu is due", c.HiddenAct))
		ok = false
	}
	for _, bad := range []struct {
		is  bool
		key string
	}{{c.QKLayerNorms, "qk_layer_norms"}, {c.RopeInterleaved, "rope_interleaved"}, {c.UseResampler, "use_resampler"}, {c.MoE != nil && string(c.MoE) != "null", "moe_config"}} {
		if bad.is {
			t.Problem(where+" "+bad.key, "is set, which is not supported")
			ok = false
		}
	}
	for _, kind := range c.LayerTypes {
		if kind != "full_attention" && kind != "sliding_attention" {
			t.Problem(where+" layer_types", fmt.Sprintf("holds %q", kind))
			ok = false
		}
	}
	return ok
}

func (c llamaConfig) kvHeads() int64 {
	if c.KVHeads != nil {
		return *c.KVHeads
	}
	return c.Heads
}

func (c llamaConfig) headDim() int64 {
	if c.HeadDim != nil {
		return *c.HeadDim
	}
	return c.HiddenSize / max(c.Heads, 1)
}

// qkvBias: Qwen2 has biases on q, k and v whatever its configuration says.
func (c llamaConfig) qkvBias() bool { return c.AttentionBias || c.ModelType == "qwen2" }

// window is the sliding window of a layer, 0 for full attention.
func (c llamaConfig) window(layer int64) int64 {
	if c.SlidingWindow == nil || (c.UseSliding != nil && !*c.UseSliding) {
		return 0
	}
	if int(layer) < len(c.LayerTypes) {
		if c.LayerTypes[layer] == "sliding_attention" {
			return *c.SlidingWindow
		}
		return 0
	}
	if c.ModelType == "qwen2" && layer < c.MaxWindowLayers {
		return 0
	}
	if c.ModelType == "llama" {
		return 0
	}
	return *c.SlidingWindow
}

func (c llamaConfig) cache() blocks.Cache {
	rope := int64(float64(c.headDim()) * c.partialRotary())
	return blocks.Cache{Layers: int(c.Layers), Heads: c.Heads, KVHeads: c.kvHeads(), HeadDim: c.headDim(), RopeDim: rope,
		PackedRope: c.packedRope, Deepstack: c.deepstack, Learned: c.logN > 0}
}

func (c llamaConfig) partialRotary() float64 {
	if p := c.RopeParameters; p != nil && p.PartialRotary != nil {
		return *p.PartialRotary
	}
	return c.PartialRotary
}

// rope turns rope_theta with rope_scaling, or rope_parameters, into the manifest's form, and returns the context length
// that the scaling makes of max_position_embeddings.
func (c llamaConfig) rope(t *blocks.Tensors, where string) (*manifest.Rope, int64) {
	s := c.RopeScaling
	if s == nil {
		s = c.RopeParameters
	}
	r := &manifest.Rope{Type: "default", Theta: c.RopeTheta, Dim: int(c.cache().RopeDim)}
	if c.RopeParameters != nil && c.RopeParameters.Theta != nil {
		r.Theta = *c.RopeParameters.Theta
	}
	if s == nil {
		return r, c.MaxPositions
	}
	if len(s.Sections) > 0 && !c.packedRope {
		t.Problem(where+" rope_scaling mrope_section", "is set where positions have one axis")
	}
	r.Sections, r.Interleaved = s.Sections, s.Interleaved
	kind := s.Type
	if kind == "" {
		kind = s.OldType
	}
	original := s.OriginalMaxPositions
	positions := c.MaxPositions
	switch kind {
	case "", "default", "mrope":
		return r, positions
	case "linear":
		positions = scaled(c.MaxPositions, s.Factor)
	case "dynamic":
		if original == 0 {
			original = c.MaxPositions
		}
		positions = max(positions, scaled(original, s.Factor))
	case "yarn":
		if original == 0 {
			original = c.MaxPositions
		}
		positions = max(positions, scaled(original, s.Factor))
		r.BetaFast, r.BetaSlow, r.MScale, r.MScaleAllDim, r.AttentionFactor = s.BetaFast, s.BetaSlow, s.MScale, s.MScaleAllDim, s.AttentionFactor
		r.NoTruncate = s.Truncate != nil && !*s.Truncate
	case "llama3":
		r.LowFreqFactor, r.HighFreqFactor = s.LowFreqFactor, s.HighFreqFactor
		if s.LowFreqFactor <= 0 || s.HighFreqFactor <= s.LowFreqFactor || original <= 0 {
			t.Problem(where+" rope_scaling", "of type llama3 needs low_freq_factor, a larger high_freq_factor and original_max_position_embeddings")
		}
	default:
		t.Problem(where+" rope_scaling", fmt.Sprintf("has type %q; default, linear, dynamic, yarn and llama3 are supported", kind))
		return r, positions
	}
	if s.Factor < 1 {
		t.Problem(where+" rope_scaling factor", fmt.Sprintf("is %v; it must be at least 1", s.Factor))
		return r, positions
	}
	r.Type, r.Factor, r.OriginalMaxPositions = kind, s.Factor, int(original)
	return r, positions
}

func scaled(n int64, factor float64) int64 { return min(int64(float64(n)*factor), 1<<24) }

// llamaLayout names a decoder's tensors. Releases that share LLaMA's forward pass differ here alone.
type llamaLayout struct {
	norm   string // the final norm's weight
	head   string // the output head, without ".weight"; when it is not stored, the head is the token table
	table  string
	layer  func(i int64) llamaLayerNames
	ignore []string
}

// llamaLayerNames names one layer's tensors: norms with their suffix, matrices without.
type llamaLayerNames struct {
	inputNorm, postNorm    string
	output, gate, up, down string
	queryNorm, keyNorm     string                                                            // of models that norm each head
	qkv                    func(t *blocks.Tensors, suffix string, in ...int64) blocks.Weight // q, k, v by rows; in is what follows the rows in the shape
}

// layout is the hub's: prefix leads to layers and norm ("language_model.model."), head to the output head.
func (c llamaConfig) layout(prefix, head string) llamaLayout {
	q, kv := c.Heads*c.headDim(), c.kvHeads()*c.headDim()
	return llamaLayout{
		norm: prefix + "norm.weight", head: head, table: prefix + "embed_tokens.weight",
		layer: func(i int64) llamaLayerNames {
			at := fmt.Sprintf("%slayers.%d.", prefix, i)
			return llamaLayerNames{inputNorm: at + "input_layernorm.weight", postNorm: at + "post_attention_layernorm.weight",
				output: at + "self_attn.o_proj", gate: at + "mlp.gate_proj", up: at + "mlp.up_proj", down: at + "mlp.down_proj",
				queryNorm: at + "self_attn.q_norm.weight", keyNorm: at + "self_attn.k_norm.weight",
				qkv: func(t *blocks.Tensors, suffix string, in ...int64) blocks.Weight {
					part := func(name string, rows int64) blocks.Weight {
						return t.Weight(at+"self_attn."+name+suffix, append([]int64{rows}, in...)...)
					}
					return blocks.ConcatRows(part("q_proj", q), part("k_proj", kv), part("v_proj", kv))
				}}
		},
		ignore: []string{prefix + "layers.*.self_attn.rotary_emb.inv_freq", prefix + "rotary_emb.inv_freq"},
	}
}

// build adds the decoder under the hub's names.
func (c llamaConfig) build(b *blocks.Builder, prefix, head string) {
	c.buildFrom(b, c.layout(prefix, head))
}

// buildFrom adds the whole decoder: the layers, the final norm on the rows whose logits are wanted, and the head.
func (c llamaConfig) buildFrom(b *blocks.Builder, names llamaLayout) {
	t, h, cache := b.Tensors, c.HiddenSize, c.cache()
	step := b.StepInputs(h, cache)
	attended := step
	if c.openSpans {
		attended = b.Open(b.Opened(step), 0)
	}
	x, pending := step.InputsEmbeds, (*onnx.Value)(nil)
	for i := range c.Layers {
		b.Scope(fmt.Sprintf("layers.%d", i), func() { x, pending = c.layer(b, attended, names.layer(i), int(i), x, pending) })
		if c.crossEvery == 0 && int(i) < len(step.Deepstack) {
			pending = b.Op("Add", []*onnx.Value{pending, step.Deepstack[i]})
		}
	}
	_, x = b.AddRMSNorm("norm", b.WantedRows(step, x), b.WantedRows(step, pending), t.Weight(names.norm, h), c.RMSNormEps)
	var w blocks.Weight
	if t.Has(names.head + ".weight") {
		w = t.Weight(names.head+".weight", c.VocabSize, h)
	} else {
		w = t.Shared(names.table, c.VocabSize, h)
	}
	logits := b.Linear(x, blocks.Linear{Name: "lm_head", W: w, Kind: blocks.Head, Layer: -1})
	b.StepOutputs(step, logits, c.VocabSize, cache)
	t.Ignore(names.ignore...)
}

// layer is LlamaDecoderLayer. The second residual sum is left to the next norm, which fuses it: x is the residual
// stream and pending what is still to be added to it (nil before the first layer).
func (c llamaConfig) layer(b *blocks.Builder, step *blocks.Step, names llamaLayerNames, index int, x, pending *onnx.Value) (*onnx.Value, *onnx.Value) {
	t := b.Tensors
	h, m, q := c.HiddenSize, c.IntermediateSize, c.Heads*c.headDim()
	var y *onnx.Value
	qkv := blocks.Linear{Name: "self_attn.qkv_proj", Kind: blocks.Attention, Layer: index, W: names.qkv(t, ".weight", h)}
	norm, qkv := b.Smooth(t.Weight(names.inputNorm, h), qkv)
	if pending == nil {
		y = b.RMSNorm("input_layernorm", x, norm, c.RMSNormEps)
	} else {
		x, y = b.AddRMSNorm("input_layernorm", x, pending, norm, c.RMSNormEps)
	}
	if c.qkvBias() {
		bias := names.qkv(t, ".bias")
		qkv.B = &bias
	}
	y = b.CachedAttention(step, index, c.rotated(b, step, names, b.Linear(y, qkv)), c.cache(), c.window(int64(index)))
	out := blocks.Linear{Name: "self_attn.o_proj", W: t.Weight(names.output+".weight", h, q), Kind: blocks.Attention, Layer: index}
	if c.AttentionBias {
		bias := t.Weight(names.output+".bias", h)
		out.B = &bias
	}
	y = b.Linear(y, out)
	if every := int(c.crossEvery); every > 0 && index%every == 0 {
		y = b.Op("Add", []*onnx.Value{y, step.Deepstack[index/every]})
	}

	down := blocks.Linear{Name: "mlp.down_proj", W: t.Weight(names.down+".weight", h, m), Kind: blocks.MLP, Layer: index}
	up := t.Weight(names.up+".weight", m, h)
	if !c.MLPBias {
		up, down = b.Smooth(up, down)
	}
	norm, gateUp := b.Smooth(t.Weight(names.postNorm, h), blocks.Linear{Name: "mlp.gate_up_proj", Kind: blocks.MLP, Layer: index,
		W: blocks.ConcatRows(t.Weight(names.gate+".weight", m, h), up)})
	x, y = b.AddRMSNorm("post_attention_layernorm", x, y, norm, c.RMSNormEps)
	if c.MLPBias {
		both := blocks.ConcatRows(t.Weight(names.gate+".bias", m), t.Weight(names.up+".bias", m))
		bias := t.Weight(names.down+".bias", h)
		gateUp.B, down.B = &both, &bias
	}
	parts := b.Columns(b.Linear(y, gateUp), m, m)
	y = b.Op("Mul", []*onnx.Value{b.Activate("silu", parts[0]), parts[1]})
	return x, b.Linear(y, down)
}

// rotated does to q and k what attention does not: norms and rotations with tables a token, the scale of far queries.
func (c llamaConfig) rotated(b *blocks.Builder, step *blocks.Step, names llamaLayerNames, qkv *onnx.Value) *onnx.Value {
	if !c.packedRope && c.logN == 0 {
		return qkv
	}
	d, kv := c.headDim(), c.kvHeads()
	parts := b.Columns(qkv, c.Heads*d, kv*d, kv*d)
	if c.logN > 0 { // a factor on a query may come before its rotation as well as behind it
		parts[0] = b.Op("Mul", []*onnx.Value{parts[0], b.LogScale(step, c.logN)})
		return b.Op("Concat", parts, onnx.Int("axis", 1))
	}
	for i, p := range []struct {
		norm, path string
		heads      int64
	}{{"q_norm", names.queryNorm, c.Heads}, {"k_norm", names.keyNorm, kv}} {
		if c.qkNorm {
			heads := b.Op("Reshape", []*onnx.Value{parts[i], b.Ints1(-1, d)})
			heads = b.RMSNorm(p.norm, heads, b.Tensors.Weight(p.path, d), c.RMSNormEps)
			parts[i] = b.Op("Reshape", []*onnx.Value{heads, b.Ints1(-1, p.heads*d)})
		}
		parts[i] = b.RotateStep(step, parts[i], p.heads, d)
	}
	return b.Op("Concat", parts, onnx.Int("axis", 1))
}

// decoder describes the decoder in the manifest.
func (c llamaConfig) decoder(t *blocks.Tensors, where string) *manifest.Decoder {
	rope, positions := c.rope(t, where)
	return &manifest.Decoder{Component: "decoder", Layers: int(c.Layers), HiddenSize: int(c.HiddenSize), Heads: int(c.Heads),
		KVHeads: int(c.kvHeads()), HeadDim: int(c.headDim()), VocabSize: int(c.VocabSize), MaxPositions: int(positions),
		CacheDType: "float32", Rope: rope}
}

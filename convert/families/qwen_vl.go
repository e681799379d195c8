// Qwen-VL and Qwen-VL-Chat (Bai et al. 2023, "Qwen-VL"), as their authors released them: an OpenCLIP ViT, a resampler of
// learned queries with positions of two dimensions, and the Qwen-7B decoder; a tiktoken vocabulary; boxes in the text.

package families

import (
	"encoding/json"
	"fmt"
	"math"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/convert/tiktoken"
	"glimpse/manifest"
)

type qwenOriginal struct{}

// qwenConfig is QWenConfig.
type qwenConfig struct {
	VocabSize     int64            `json:"vocab_size"`
	HiddenSize    int64            `json:"hidden_size"`
	Layers        int64            `json:"num_hidden_layers"`
	Heads         int64            `json:"num_attention_heads"`
	KVChannels    int64            `json:"kv_channels"`
	Intermediate  int64            `json:"intermediate_size"` // of both halves of the MLP together
	MaxPositions  int64            `json:"max_position_embeddings"`
	SeqLength     int64            `json:"seq_length"` // of the training
	NormEps       float64          `json:"layer_norm_epsilon"`
	RotaryBase    float64          `json:"rotary_emb_base"`
	RotaryPart    float64          `json:"rotary_pct"`
	DynamicNTK    bool             `json:"use_dynamic_ntk"`
	LogN          bool             `json:"use_logn_attn"`
	NoBias        bool             `json:"no_bias"`
	ScaleWeights  bool             `json:"scale_attn_weights"`
	Tied          bool             `json:"tie_word_embeddings"`
	Visual        *qwenVisual      `json:"visual"`
	TokenizerType string           `json:"tokenizer_type"`
	Quantization  *json.RawMessage `json:"quantization_config"`
	// Switches of kernels and of dtypes.
	FlashAttention json.RawMessage `json:"use_flash_attn"`
	BF16           json.RawMessage `json:"bf16"`
	FP16           json.RawMessage `json:"fp16"`
	FP32           json.RawMessage `json:"fp32"`
	ONNXSafe       json.RawMessage `json:"onnx_safe"`
	AttnDropout    json.RawMessage `json:"attn_dropout_prob"`
	EmbDropout     json.RawMessage `json:"emb_dropout_prob"`
}

// qwenVisual is the configuration of the VisionTransformer in visual.py.
type qwenVisual struct {
	Heads      int64   `json:"heads"`
	ImageSize  int64   `json:"image_size"`
	Layers     int64   `json:"layers"`
	MLPRatio   float64 `json:"mlp_ratio"`
	OutputDim  int64   `json:"output_dim"`
	PatchSize  int64   `json:"patch_size"`
	Width      int64   `json:"width"`
	Queries    int64   `json:"n_queries"`
	ImageStart int     `json:"image_start_id"`
}

const (
	qwenVisualEps = 1e-6 // of every norm in visual.py
	// qwenPositions is the side of the tower's stored grid of positions, whatever its picture's.
	qwenPositions = 16
)

func (qwenOriginal) Name() string                            { return "qwen-vl" }
func (qwenOriginal) Match(h Head) bool                       { return h.Is("QWenLMHeadModel") }
func (qwenOriginal) Parts(json.RawMessage) map[string]string { return nil }

func (f qwenOriginal) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := qwenConfig{VocabSize: 151936, HiddenSize: 4096, Layers: 32, Heads: 32, KVChannels: 128, Intermediate: 22016, MaxPositions: 8192, SeqLength: 2048,
		NormEps: 1e-6, RotaryBase: 10000, RotaryPart: 1, DynamicNTK: true, LogN: true, NoBias: true, ScaleWeights: true}
	decode(r.Config, &c, "config.json", t)
	if c.Visual == nil {
		t.Problem("config.json visual", "is missing: Qwen without pictures is not supported")
		return nil, nil
	}
	if c.Visual.Queries == 0 {
		c.Visual.Queries = 256
	}
	text, ok := c.decoder(t)
	if ok = c.Visual.valid(t) && ok; !ok {
		return nil, nil
	}
	v := *c.Visual
	if v.OutputDim != c.HiddenSize {
		t.Problem("config.json visual output_dim", fmt.Sprintf("is %d and hidden_size %d", v.OutputDim, c.HiddenSize))
	}
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: f.Name(), Precision: string(opts.Precision)}}
	add := func(name string, role blocks.Role, prefix string, layers int64, build func(b *blocks.Builder)) {
		b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
		build(b)
		p.Components = append(p.Components, &Component{name, b})
	}
	const visual = "transformer.visual."
	add("vision", blocks.Vision, visual+"transformer.", v.Layers, func(b *blocks.Builder) { v.build(b, visual) })
	add("connector", blocks.Connector, visual+"attn_pool.", 0, func(b *blocks.Builder) { v.buildResampler(b, visual) })
	add("decoder", blocks.Decoder, "transformer.h.", c.Layers, func(b *blocks.Builder) { text.buildFrom(b, c.layout()) })
	t.Shared("transformer.wte.weight", c.VocabSize, c.HiddenSize)
	t.Ignore("transformer.h.*.attn.masked_bias", "transformer.h.*.attn.bias", "transformer.rotary_emb.inv_freq", "transformer.h.*.attn.rotary_emb.inv_freq")
	p.Embeddings = &Embeddings{Tensor: "transformer.wte.weight", Rows: c.VocabSize, Hidden: c.HiddenSize, Scale: 1}
	p.Manifest.Decoder = text.decoder(t, "config.json")
	p.Manifest.Decoder.Rope = c.rope()
	p.Manifest.Picture = &manifest.Picture{Recipe: "stretch", Resample: "bicubic", Passes: manifest.PassesByWork, Height: int(v.ImageSize), Width: int(v.ImageSize),
		Stages: []string{"vision", "connector"}, Features: "projected", TokensPerTile: int(v.Queries), Mean: clipMean, Std: clipStd}
	f.prompt(r, p, c, t)
	return p, nil
}

func (v qwenVisual) valid(t *blocks.Tensors) bool {
	const where = "config.json visual"
	ok := within(t, where+" width", v.Width, 1, 1<<16)
	ok = within(t, where+" layers", v.Layers, 1, 1<<10) && ok
	ok = within(t, where+" heads", v.Heads, 1, 1<<10) && ok
	ok = within(t, where+" image_size", v.ImageSize, 1, 1<<14) && ok
	ok = within(t, where+" patch_size", v.PatchSize, 1, v.ImageSize) && ok
	ok = within(t, where+" output_dim", v.OutputDim, 128, 1<<16) && ok
	ok = within(t, where+" n_queries", v.Queries, 1, 1<<14) && ok
	if !ok {
		return false
	}
	ok = within(t, where+" mlp_ratio × width", v.hidden(), 1, 1<<20)
	for _, bad := range []struct {
		is        bool
		key, what string
	}{
		{v.Width%v.Heads != 0, "heads", fmt.Sprintf("(%d) do not divide width (%d)", v.Heads, v.Width)},
		{v.ImageSize%v.PatchSize != 0, "patch_size", fmt.Sprintf("(%d) does not divide image_size (%d)", v.PatchSize, v.ImageSize)},
		{v.OutputDim%128 != 0, "output_dim", fmt.Sprintf("(%d) is no multiple of 128, the resampler's head", v.OutputDim)},
		{v.side()*v.side() != v.Queries, "n_queries", fmt.Sprintf("(%d) is no square", v.Queries)},
	} {
		if bad.is {
			t.Problem(where+" "+bad.key, bad.what)
			ok = false
		}
	}
	return ok
}

func (v qwenVisual) grid() int64   { return v.ImageSize / v.PatchSize }
func (v qwenVisual) tokens() int64 { return v.grid() * v.grid() }
func (v qwenVisual) hidden() int64 { return int64(float64(v.Width) * v.MLPRatio) }
func (v qwenVisual) side() int64   { return int64(math.Round(math.Sqrt(float64(v.Queries)))) }

// build adds the tower: pixel_values to vision_features [tiles, patches, width]. There is no class token, no bias in the
// convolution, and no norm behind the blocks.
func (v qwenVisual) build(b *blocks.Builder, prefix string) {
	t, w, p, n := b.Tensors, v.Width, v.PatchSize, v.tokens()
	tiles, size := onnx.Free("tiles"), onnx.Fixed(v.ImageSize)
	pixels := b.Input("pixel_values", onnx.Float, tiles, onnx.Fixed(3), size, size)
	kernel := b.Param("conv1", t.Weight(prefix+"conv1.weight", w, 3, p, p))
	x := b.Op("Conv", []*onnx.Value{pixels, kernel}, onnx.Ints("kernel_shape", p, p), onnx.Ints("strides", p, p))
	x = b.Op("Transpose", []*onnx.Value{b.Op("Reshape", []*onnx.Value{x, b.Ints1(0, w, -1)})}, onnx.Ints("perm", 0, 2, 1))
	positions := t.Weight(prefix+"positional_embedding", qwenPositions*qwenPositions, w).ResizedGrid(qwenPositions, v.grid()).Reshape(1, n, w)
	x = b.Op("Add", []*onnx.Value{x, b.Param("positional_embedding", positions)})
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, w)})
	x = b.LayerNormAt("ln_pre", prefix+"ln_pre", x, w, qwenVisualEps)
	for i := range v.Layers {
		b.Scope(fmt.Sprintf("resblocks.%d", i), func() { x = v.block(b, fmt.Sprintf("%stransformer.resblocks.%d.", prefix, i), x, int(i)) })
	}
	b.Output("vision_features", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, w)}), onnx.Float, tiles, onnx.Fixed(n), onnx.Fixed(w))
}

// block is VisualAttentionBlock: pre-norm attention and MLP with an exact GELU.
func (v qwenVisual) block(b *blocks.Builder, prefix string, x *onnx.Value, layer int) *onnx.Value {
	t, w := b.Tensors, v.Width
	y := b.LayerNormAt("ln_1", prefix+"ln_1", x, w, qwenVisualEps)
	order := v.byPart()
	bias := t.Weight(prefix+"attn.in_proj.bias", 3*w).PermuteRows("q, k, v of all heads", order)
	qkv := blocks.Linear{Name: "attn.in_proj", Kind: blocks.Attention, Layer: layer, B: &bias,
		W: t.Weight(prefix+"attn.in_proj.weight", 3*w, w).PermuteRows("q, k, v of all heads", order)}
	parts := b.Columns(b.Linear(y, qkv), w, w, w)
	y = b.FullAttention(parts[0], parts[1], parts[2], blocks.Heads{Count: v.Heads, Dim: w / v.Heads, QueryLength: v.tokens(), KeyLength: v.tokens()})
	y = b.Dense(y, "attn.out_proj", prefix+"attn.out_proj", w, w, blocks.Attention, layer)
	x, y = b.AddLayerNormAt("ln_2", prefix+"ln_2", x, y, w, qwenVisualEps)
	y = b.Activate("gelu", b.Dense(y, "mlp.c_fc", prefix+"mlp.c_fc", v.hidden(), w, blocks.MLP, layer))
	return b.Op("Add", []*onnx.Value{x, b.Dense(y, "mlp.c_proj", prefix+"mlp.c_proj", w, v.hidden(), blocks.MLP, layer)})
}

// byPart is the order that makes q, k and v of all heads out of rows that are stored head by head, in each q, k, v
// (Megatron's layout).
func (v qwenVisual) byPart() []int64 {
	d := v.Width / v.Heads
	order := make([]int64, 0, 3*v.Width)
	for part := range int64(3) {
		for head := range v.Heads {
			for i := range d {
				order = append(order, (head*3+part)*d+i)
			}
		}
	}
	return order
}

// buildResampler adds Resampler, ln_post and proj: learned queries look at the picture once. Positions are added to
// queries and keys and not to values.
func (v qwenVisual) buildResampler(b *blocks.Builder, prefix string) {
	t, w, o, q, n := b.Tensors, v.Width, v.OutputDim, v.Queries, v.tokens()
	tiles, pool := onnx.Free("tiles"), prefix+"attn_pool."
	features := b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(n), onnx.Fixed(w))
	values := b.Op("Reshape", []*onnx.Value{features, b.Ints1(-1, w)})
	values = b.Linear(values, blocks.Linear{Name: "kv_proj", W: t.Weight(pool+"kv_proj.weight", o, w), Kind: blocks.Project, Layer: -1})
	values = b.LayerNormAt("ln_kv", pool+"ln_kv", values, o, qwenVisualEps)

	positions := t.Weight(pool+"pos_embed", q, o)
	keys := b.Op("Reshape", []*onnx.Value{values, b.Ints1(-1, n, o)})
	keys = b.Op("Add", []*onnx.Value{keys, b.Param("key_positions", positions.ResizedGrid(v.side(), v.grid()).Reshape(1, n, o))})
	keys = b.Op("Reshape", []*onnx.Value{keys, b.Ints1(-1, o)})

	queries := b.LayerNormAt("ln_q", pool+"ln_q", b.Param("query", t.Weight(pool+"query", q, o)), o, qwenVisualEps)
	queries = b.Op("Add", []*onnx.Value{queries, b.Param("query_positions", positions)})

	in, bias := t.Weight(pool+"attn.in_proj_weight", 3*o, o), t.Weight(pool+"attn.in_proj_bias", 3*o)
	project := func(name string, x *onnx.Value, part int64) *onnx.Value {
		own := bias.Rows(part*o, (part+1)*o)
		return b.Linear(x, blocks.Linear{Name: name, W: in.Rows(part*o, (part+1)*o), B: &own, Kind: blocks.Project, Layer: -1})
	}
	queries = b.Op("Reshape", []*onnx.Value{project("attn.q", queries, 0), b.Ints1(1, q, o)})
	queries = b.Op("Reshape", []*onnx.Value{b.Repeat(queries, features, q, o), b.Ints1(-1, o)})
	x := b.FullAttention(queries, project("attn.k", keys, 1), project("attn.v", values, 2),
		blocks.Heads{Count: o / 128, Dim: 128, QueryLength: q, KeyLength: n})
	x = b.Dense(x, "attn.out_proj", pool+"attn.out_proj", o, o, blocks.Project, -1)
	x = b.LayerNormAt("ln_post", prefix+"ln_post", x, o, qwenVisualEps)
	x = b.Linear(x, blocks.Linear{Name: "proj", W: t.Weight(prefix+"proj", o, o).Transposed(), Kind: blocks.Project, Layer: -1})
	b.Output("projected", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, q, o)}), onnx.Float, tiles, onnx.Fixed(q), onnx.Fixed(o))
}

// decoder is QWenModel in the terms of a LLaMA: biases on q, k and v alone, queries scaled by the logarithm of their place.
func (c qwenConfig) decoder(t *blocks.Tensors) (llamaConfig, bool) {
	ok := true
	for _, bad := range []struct {
		is        bool
		key, what string
	}{
		{c.RotaryPart != 1, "rotary_pct", fmt.Sprintf("is %v; heads are rotated whole", c.RotaryPart)},
		{!c.NoBias, "no_bias", "is false; biases besides those of q, k and v are not supported"},
		{!c.ScaleWeights, "scale_attn_weights", "is false; attention without a scale is not supported"},
		{c.Tied, "tie_word_embeddings", "is true; the head is stored by itself"},
		{c.Quantization != nil, "quantization_config", "is set: take the release that is not quantized, convert quantizes by itself"},
		{c.Intermediate%2 != 0, "intermediate_size", fmt.Sprintf("is %d; it counts two halves", c.Intermediate)},
		{c.SeqLength < 2, "seq_length", fmt.Sprintf("is %d", c.SeqLength)},
		{c.RotaryBase <= 1, "rotary_emb_base", fmt.Sprintf("is %v", c.RotaryBase)},
	} {
		if bad.is {
			t.Problem("config.json "+bad.key, bad.what)
			ok = false
		}
	}
	kv, dim, off := c.Heads, c.KVChannels, false
	text := llamaConfig{ModelType: "qwen2", VocabSize: c.VocabSize, HiddenSize: c.HiddenSize, IntermediateSize: c.Intermediate / 2, Layers: c.Layers,
		Heads: c.Heads, KVHeads: &kv, HeadDim: &dim, HiddenAct: "silu", MaxPositions: c.MaxPositions, RMSNormEps: c.NormEps, RopeTheta: c.RotaryBase,
		PartialRotary: 1, UseSliding: &off}
	if c.LogN {
		text.logN = c.SeqLength
	}
	return text, text.valid(t, "config.json") && ok
}

// layout names QWenModel's tensors; silu is on w2.
func (c qwenConfig) layout() llamaLayout {
	rows := 3 * c.Heads * c.KVChannels
	return llamaLayout{norm: "transformer.ln_f.weight", head: "lm_head", table: "transformer.wte.weight",
		layer: func(i int64) llamaLayerNames {
			at := fmt.Sprintf("transformer.h.%d.", i)
			return llamaLayerNames{inputNorm: at + "ln_1.weight", postNorm: at + "ln_2.weight", output: at + "attn.c_proj",
				gate: at + "mlp.w2", up: at + "mlp.w1", down: at + "mlp.c_proj",
				qkv: func(t *blocks.Tensors, suffix string, in ...int64) blocks.Weight {
					return t.Weight(at+"attn.c_attn"+suffix, append([]int64{rows}, in...)...)
				}}
		}}
}

// rope is RotaryEmbedding of modeling_qwen.py: the base grows with the prompt's length beyond that of the training.
func (c qwenConfig) rope() *manifest.Rope {
	r := &manifest.Rope{Type: "default", Theta: c.RotaryBase, Dim: int(c.KVChannels)}
	if c.DynamicNTK {
		r.Type, r.OriginalMaxPositions = manifest.RopePromptNTK, int(c.SeqLength)
	}
	return r
}

// qwenPattern cuts texts before merging (tokenization_qwen.py).
const qwenPattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

// qwenSpecials are the tokens behind the ranks, in the order of their ids. Those that mark boxes are part of texts.
func qwenSpecials() []tiktoken.Special {
	list := []tiktoken.Special{{Text: "<|endoftext|>"}, {Text: "<|im_start|>"}, {Text: "<|im_end|>"}}
	for i := range 205 {
		list = append(list, tiktoken.Special{Text: fmt.Sprintf("<|extra_%d|>", i)})
	}
	for _, tag := range []string{"ref", "box", "quad"} {
		list = append(list, tiktoken.Special{Text: "<" + tag + ">", Plain: true}, tiktoken.Special{Text: "</" + tag + ">", Plain: true})
	}
	return append(list, tiktoken.Special{Text: "<img>"}, tiktoken.Special{Text: "</img>"}, tiktoken.Special{Text: "<imgpad>"})
}

// qwenTemplate is make_context of qwen_generation_utils.py and from_list_format of tokenization_qwen.py. Releases have no
// template file. Of the two line ends at the end, Jinja drops one.
const qwenTemplate = `{% if messages[0].role != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% set pictures = namespace(count=0) %}{% for part in message.content %}{% if part.type == 'image' %}{% set pictures.count = pictures.count + 1 %}Picture {{ pictures.count }}:<img></img>
{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}<|im_start|>assistant

`

// ranksFile is the vocabulary's name in a release.
const ranksFile = "qwen.tiktoken"

// prompt fills in what concerns text: the tokenizer is made of the file of ranks.
func (qwenOriginal) prompt(r *Release, p *Plan, c qwenConfig, t *blocks.Tensors) {
	start := c.Visual.ImageStart
	p.Manifest.Prompt = manifest.Prompt{Expansion: "repeat", Placeholder: "<img></img>", Prefix: "<img>", Suffix: "</img>", ImageToken: "<imgpad>", Named: true,
		Caption: "Describe the image.", RawCaption: "<img></img>Generate the caption in English:"}
	p.Manifest.Boxes = &manifest.Boxes{Format: manifest.BoxesTags, Scale: 1000}
	specials := qwenSpecials()
	// Ids count back from <img>, the third from last.
	first := start - (len(specials) - 3)
	eos, bos := first, (*int)(nil)
	r.generation(&p.Manifest, generationConfig{EOS: oneOrMany{eos}, BOS: bos, Pad: &eos}, t)
	p.Manifest.Tokens.EOS = []int{first, first + 2, first + 1} // end of text, of a turn; or another turn begins
	p.Manifest.Tokens.Image = start + 2
	tokenizer := r.Tokenizer
	if ranks := r.Extra[ranksFile]; tokenizer == nil && ranks != nil {
		var err error
		if tokenizer, err = tiktoken.Convert(ranks, tiktoken.Spec{Pattern: qwenPattern, Normalize: "NFC", Specials: specials}); err != nil {
			t.Problem(ranksFile, err.Error())
			return
		}
		if id, ok := tokenID(tokenizer, "<img>"); !ok || id != start {
			t.Problem(ranksFile, fmt.Sprintf("gives <img> the id %d where config.json visual image_start_id says %d", id, start))
		}
	}
	r.addText(p, tokenizer, qwenTemplate, t)
}

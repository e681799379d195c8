// InternViT (Chen et al. 2024, "InternVL"; transformers' InternVLVisionModel and the authors' InternVisionModel): a
// pre-norm ViT with layer scale, whose large version has RMS norms and norms queries and keys over their full width.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// internViT is InternVLVisionConfig and the authors' InternVisionConfig; they differ in names.
type internViT struct {
	HiddenSize       int64    `json:"hidden_size"`
	IntermediateSize int64    `json:"intermediate_size"`
	Layers           int64    `json:"num_hidden_layers"`
	Heads            int64    `json:"num_attention_heads"`
	Channels         int64    `json:"num_channels"`
	ImageSize        edge     `json:"image_size"`
	PatchSize        edge     `json:"patch_size"`
	HiddenAct        string   `json:"hidden_act"`
	NormEps          float64  `json:"layer_norm_eps"`
	NormType         string   `json:"norm_type"`
	AttentionBias    *bool    `json:"attention_bias"` // of transformers
	QKVBias          *bool    `json:"qkv_bias"`       // of the authors
	UseQKNorm        *bool    `json:"use_qk_norm"`
	QKNormalization  *bool    `json:"qk_normalization"`
	MeanPooling      *bool    `json:"use_mean_pooling"`
	Absolute         *bool    `json:"use_absolute_position_embeddings"`
	MaskToken        bool     `json:"use_mask_token"`
	UseMoE           bool     `json:"use_moe"`
	LayerScale       *float64 `json:"layer_scale_init_value"` // an initial value: the trained scales are stored
	// What the authors' saves repeat of training, and of experts that UseMoE would turn on.
	Dropped

	// inputSize is the side of pixel_values where it is not ImageSize, for which the position table was trained.
	inputSize int64
}

// Dropped are keys of the authors' vision configurations that say nothing about inference.
type Dropped struct {
	HiddenDropout  float64         `json:"hidden_dropout_prob"`
	ProjectionDrop float64         `json:"projection_dropout"`
	DropPath       float64         `json:"drop_path_rate"`
	Flash          bool            `json:"use_flash_attn"`
	CapacityFactor json.RawMessage `json:"capacity_factor"`
	EvalCapacity   json.RawMessage `json:"eval_capacity_factor"`
	Laux           json.RawMessage `json:"laux_allreduce"`
	MoECoeff       json.RawMessage `json:"moe_coeff_ratio"`
	MoESize        json.RawMessage `json:"moe_intermediate_size"`
	MoEScale       json.RawMessage `json:"moe_output_scale"`
	Noisy          json.RawMessage `json:"noisy_gate_policy"`
	Experts        json.RawMessage `json:"num_experts"`
	Routed         json.RawMessage `json:"num_routed_experts"`
	Shared         json.RawMessage `json:"num_shared_experts"`
	SharedSize     json.RawMessage `json:"shared_expert_intermediate_size"`
	UseResidual    json.RawMessage `json:"use_residual"`
	UseRTS         json.RawMessage `json:"use_rts"`
	WeightedRes    json.RawMessage `json:"use_weighted_residual"`
}

// edge is a side that is written as a number or as [height, width] of a square.
type edge int64

func (e *edge) UnmarshalJSON(raw []byte) error {
	var one int64
	if json.Unmarshal(raw, &one) == nil {
		*e = edge(one)
		return nil
	}
	var both []int64
	if err := json.Unmarshal(raw, &both); err != nil || len(both) != 2 || both[0] != both[1] {
		return fmt.Errorf("a side or a square's two are due, not %s", clip(string(raw), 40))
	}
	*e = edge(both[0])
	return nil
}

func decodeInternViT(raw json.RawMessage, where string, t *blocks.Tensors) (internViT, bool) {
	c := internViT{HiddenSize: 3200, IntermediateSize: 12800, Layers: 48, Heads: 25, Channels: 3, ImageSize: 224, PatchSize: 14,
		HiddenAct: "gelu", NormEps: 1e-6, NormType: "rms_norm"}
	var head Head
	if json.Unmarshal(raw, &head) == nil && head.ModelType == "internvl_vision" {
		c.HiddenSize, c.IntermediateSize, c.Layers, c.Heads, c.ImageSize, c.NormType = 1024, 4096, 24, 16, 448, "layer_norm"
	}
	if raw != nil {
		decode(raw, &c, where, t)
	}
	tower := clipVision{HiddenSize: c.HiddenSize, IntermediateSize: c.IntermediateSize, Layers: c.Layers, Heads: c.Heads, Channels: c.Channels,
		ImageSize: int64(c.ImageSize), PatchSize: int64(c.PatchSize), HiddenAct: c.HiddenAct}
	ok := tower.valid(t, where)
	for _, bad := range []struct {
		is        bool
		key, what string
	}{
		{c.NormType != "rms_norm" && c.NormType != "layer_norm", "norm_type", fmt.Sprintf("is %q; rms_norm and layer_norm are known", c.NormType)},
		{c.Absolute != nil && !*c.Absolute, "use_absolute_position_embeddings", "is false: other positions are not supported"},
		{c.MaskToken, "use_mask_token", "is true: mask tokens are for training"},
		{c.UseMoE, "use_moe", "is true: experts are not supported"},
	} {
		if bad.is {
			t.Problem(where+" "+bad.key, bad.what)
			ok = false
		}
	}
	return c, ok
}

// size is the side of pixel_values.
func (c internViT) size() int64 {
	if c.inputSize != 0 {
		return c.inputSize
	}
	return int64(c.ImageSize)
}

func (c internViT) grid() int64   { return c.size() / int64(c.PatchSize) }
func (c internViT) tokens() int64 { return c.grid()*c.grid() + 1 }

// positions is the position table, resized to the grid of the input where it was trained for another.
func (c internViT) positions(t *blocks.Tensors, name string) blocks.Weight {
	stored := int64(c.ImageSize) / int64(c.PatchSize)
	table := t.Weight(name, 1, stored*stored+1, c.HiddenSize)
	if stored == c.grid() {
		return table
	}
	rows := table.Reshape(stored*stored+1, c.HiddenSize)
	grid := rows.Rows(1, stored*stored+1).ResizedGrid(stored, c.grid())
	return blocks.ConcatRows(rows.Rows(0, 1), grid).Reshape(1, c.tokens(), c.HiddenSize)
}

// qkvBias and qkNorm read whichever of the two names is set; both are off by default.
func (c internViT) qkvBias() bool {
	return c.AttentionBias != nil && *c.AttentionBias || c.QKVBias != nil && *c.QKVBias
}

func (c internViT) qkNorm() bool {
	return c.UseQKNorm != nil && *c.UseQKNorm || c.QKNormalization != nil && *c.QKNormalization
}

// internNames are the modules' names below the tower: as transformers saves them, or as the authors do.
type internNames struct {
	class, patch, position string
	layer                  string // "encoder.layer.%d."
	fused                  string // attn.qkv, or empty when q, k, v are apart
	query, key, value      string
	queryNorm, keyNorm     string
	output                 string
	norm1, norm2           string
	scale1, scale2         string
}

var (
	internHub = internNames{class: "embeddings.cls_token", patch: "embeddings.patch_embeddings.projection", position: "embeddings.position_embeddings",
		layer: "encoder.layer.%d.", query: "attention.q_proj", key: "attention.k_proj", value: "attention.v_proj", queryNorm: "attention.q_norm", keyNorm: "attention.k_norm",
		output: "attention.projection_layer", norm1: "layernorm_before", norm2: "layernorm_after", scale1: "lambda_1", scale2: "lambda_2"}
	internAuthors = internNames{class: "embeddings.class_embedding", patch: "embeddings.patch_embedding", position: "embeddings.position_embedding",
		layer: "encoder.layers.%d.", fused: "attn.qkv", queryNorm: "attn.q_norm", keyNorm: "attn.k_norm",
		output: "attn.proj", norm1: "norm1", norm2: "norm2", scale1: "ls1", scale2: "ls2"}
)

// build adds the tower from pixel_values to the output of layer last−1, [tiles·tokens, hidden_size] rows with the class
// token first. Neither release stores or runs a norm behind it. Layers from last on are stored and never run.
func (c internViT) build(b *blocks.Builder, prefix string, names internNames, pixels *onnx.Value, last int64) *onnx.Value {
	t, h, p := b.Tensors, c.HiddenSize, int64(c.PatchSize)
	var x *onnx.Value
	b.Scope("embeddings", func() {
		kernel := b.Param("patch_embedding", t.Weight(prefix+names.patch+".weight", h, c.Channels, p, p))
		bias := b.Param("patch_embedding.bias", t.Weight(prefix+names.patch+".bias", h))
		x = b.Op("Conv", []*onnx.Value{pixels, kernel, bias}, onnx.Ints("kernel_shape", p, p), onnx.Ints("strides", p, p))
		x = b.Op("Transpose", []*onnx.Value{b.Op("Reshape", []*onnx.Value{x, b.Ints1(0, h, -1)})}, onnx.Ints("perm", 0, 2, 1))
		class := b.Repeat(b.Param("class_embedding", t.Weight(prefix+names.class, 1, 1, h)), pixels, 1, h)
		x = b.Op("Concat", []*onnx.Value{class, x}, onnx.Int("axis", 1))
		x = b.Op("Add", []*onnx.Value{x, b.Param("position_embedding", c.positions(t, prefix+names.position))})
		x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
	})
	for i := range last {
		b.Scope(fmt.Sprintf("layers.%d", i), func() { x = c.layer(b, prefix+fmt.Sprintf(names.layer, i), names, x, int(i)) })
	}
	for i := last; i < c.Layers; i++ {
		t.Ignore(prefix + fmt.Sprintf(names.layer, i) + "*")
	}
	return x
}

// layer is InternVisionEncoderLayer: x + ls1·attn(norm1(x)), then x + ls2·mlp(norm2(x)).
func (c internViT) layer(b *blocks.Builder, prefix string, names internNames, x *onnx.Value, index int) *onnx.Value {
	t, h, m := b.Tensors, c.HiddenSize, c.IntermediateSize
	y := c.norm(b, "norm1", prefix+names.norm1, x)
	parts := b.Columns(b.Linear(y, c.qkv(t, prefix, names, index)), h, h, h)
	if c.qkNorm() {
		parts[0] = b.RMSNorm("q_norm", parts[0], t.Weight(prefix+names.queryNorm+".weight", h), c.NormEps)
		parts[1] = b.RMSNorm("k_norm", parts[1], t.Weight(prefix+names.keyNorm+".weight", h), c.NormEps)
	}
	y = b.FullAttention(parts[0], parts[1], parts[2], blocks.Heads{Count: c.Heads, Dim: h / c.Heads, QueryLength: c.tokens(), KeyLength: c.tokens()})
	y = c.scaled(b, "attn.proj", prefix+names.output, prefix+names.scale1, y, h, blocks.Attention, index)
	x = b.Op("Add", []*onnx.Value{x, y})
	y = c.norm(b, "norm2", prefix+names.norm2, x)
	y = b.Activate(blocks.Activation(c.HiddenAct), b.Dense(y, "mlp.fc1", prefix+"mlp.fc1", m, h, blocks.MLP, index))
	y = c.scaled(b, "mlp.fc2", prefix+"mlp.fc2", prefix+names.scale2, y, m, blocks.MLP, index)
	return b.Op("Add", []*onnx.Value{x, y})
}

func (c internViT) norm(b *blocks.Builder, name, path string, x *onnx.Value) *onnx.Value {
	if c.NormType == "rms_norm" {
		return b.RMSNorm(name, x, b.Tensors.Weight(path+".weight", c.HiddenSize), c.NormEps)
	}
	return b.LayerNormAt(name, path, x, c.HiddenSize, c.NormEps)
}

// qkv is the fused projection, stored fused (authors) or apart (hub).
func (c internViT) qkv(t *blocks.Tensors, prefix string, names internNames, index int) blocks.Linear {
	h := c.HiddenSize
	l := blocks.Linear{Name: "attn.qkv", Kind: blocks.Attention, Layer: index}
	stored := func(suffix string, shape ...int64) blocks.Weight {
		if names.fused != "" {
			shape[0] *= 3
			return t.Weight(prefix+names.fused+suffix, shape...)
		}
		return blocks.ConcatRows(t.Weight(prefix+names.query+suffix, shape...), t.Weight(prefix+names.key+suffix, shape...), t.Weight(prefix+names.value+suffix, shape...))
	}
	l.W = stored(".weight", h, h)
	if c.qkvBias() {
		bias := stored(".bias", h)
		l.B = &bias
	}
	return l
}

// scaled is a Linear followed by its layer scale.
func (c internViT) scaled(b *blocks.Builder, name, path, scale string, x *onnx.Value, in int64, kind blocks.Kind, index int) *onnx.Value {
	y := b.Dense(x, name, path, c.HiddenSize, in, kind, index)
	return b.Op("Mul", []*onnx.Value{y, b.Param(name+".scale", b.Tensors.Weight(scale, c.HiddenSize))})
}

// The towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (Wang et al. 2024; Bai et al. 2025; transformers'
// Qwen2VisionTransformerPretrainedModel, Qwen2_5_VisionTransformerPretrainedModel, Qwen3VLVisionModel): a ViT over a list
// of patches with rotary positions of rows and columns. Everything that depends on a picture's size is an input.

package families

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// qwenVision is Qwen2VLVisionConfig, Qwen2_5_VLVisionConfig and Qwen3VLVisionConfig.
type qwenVision struct {
	Depth           int64   `json:"depth"`
	EmbedDim        int64   `json:"embed_dim"` // Qwen2-VL's tower; its hidden_size is the decoder's
	HiddenSize      int64   `json:"hidden_size"`
	OutHiddenSize   int64   `json:"out_hidden_size"`
	Intermediate    int64   `json:"intermediate_size"`
	MLPRatio        float64 `json:"mlp_ratio"`
	HiddenAct       string  `json:"hidden_act"`
	Heads           int64   `json:"num_heads"`
	Channels        int64   `json:"in_channels"`
	Chans           int64   `json:"in_chans"` // what releases write and the classes do not read
	PatchSize       int64   `json:"patch_size"`
	SpatialPatch    int64   `json:"spatial_patch_size"` // repeats patch_size
	Merge           int64   `json:"spatial_merge_size"`
	Temporal        int64   `json:"temporal_patch_size"`
	Window          int64   `json:"window_size"`
	FullAttention   []int64 `json:"fullatt_block_indexes"`
	TokensPerSecond float64 `json:"tokens_per_second"` // of videos
	Positions       int64   `json:"num_position_embeddings"`
	Deepstack       []int64 `json:"deepstack_visual_indexes"`

	kind qwenKind
}

// qwenKind is which of the three architectures it is.
type qwenKind int

const (
	qwen2VL qwenKind = iota
	qwen25VL
	qwen3VL
)

const qwenVisionEps = 1e-6 // of every norm in the towers

func decodeQwenVision(raw json.RawMessage, kind qwenKind, t *blocks.Tensors) (qwenVision, bool) {
	c := qwenVision{Depth: 32, Heads: 16, Channels: 3, PatchSize: 14, Merge: 2, Temporal: 2, kind: kind}
	switch kind {
	case qwen2VL:
		c.EmbedDim, c.HiddenSize, c.MLPRatio, c.HiddenAct = 1280, 3584, 4, "quick_gelu"
	case qwen25VL:
		c.HiddenSize, c.OutHiddenSize, c.Intermediate, c.HiddenAct = 3584, 3584, 3420, "silu"
		c.Window, c.FullAttention, c.TokensPerSecond = 112, []int64{7, 15, 23, 31}, 4
	case qwen3VL:
		c.Depth, c.HiddenSize, c.OutHiddenSize, c.Intermediate, c.HiddenAct = 27, 1152, 3584, 4304, "gelu_pytorch_tanh"
		c.PatchSize, c.Positions, c.Deepstack = 16, 2304, []int64{8, 16, 24}
	}
	where := "config.json vision_config"
	if raw != nil {
		decode(raw, &c, where, t)
	}
	if kind == qwen2VL {
		c.OutHiddenSize, c.HiddenSize = c.HiddenSize, c.EmbedDim
		c.Intermediate = int64(float64(c.EmbedDim) * c.MLPRatio)
	}
	return c, c.valid(t, where)
}

func (c qwenVision) valid(t *blocks.Tensors, where string) bool {
	ok := within(t, where+" depth", c.Depth, 1, 1<<10)
	ok = within(t, where+" hidden_size", c.HiddenSize, 1, 1<<16) && ok
	ok = within(t, where+" out_hidden_size", c.OutHiddenSize, 1, 1<<16) && ok
	ok = within(t, where+" intermediate_size", c.Intermediate, 1, 1<<18) && ok
	ok = within(t, where+" num_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" in_channels", c.Channels, 3, 3) && ok
	ok = within(t, where+" patch_size", c.PatchSize, 1, 1<<10) && ok
	ok = within(t, where+" spatial_merge_size", c.Merge, 1, 16) && ok
	ok = within(t, where+" temporal_patch_size", c.Temporal, 1, 16) && ok
	if !ok {
		return false
	}
	problem := func(key, format string, args ...any) {
		t.Problem(where+" "+key, fmt.Sprintf(format, args...))
		ok = false
	}
	if c.HiddenSize%c.Heads != 0 || c.headDim()%4 != 0 {
		problem("num_heads", "is %d, which does not cut hidden_size %d into heads of a multiple of 4", c.Heads, c.HiddenSize)
	}
	if c.Chans != 0 && c.Chans != c.Channels {
		problem("in_chans", "is %d where 3 is due", c.Chans)
	}
	if c.SpatialPatch != 0 && c.SpatialPatch != c.PatchSize {
		problem("spatial_patch_size", "is %d and patch_size %d", c.SpatialPatch, c.PatchSize)
	}
	if _, err := blocks.ParseActivation(c.HiddenAct); err != nil {
		problem("hidden_act", "%v", err)
	}
	if c.kind == qwen25VL && c.Window < c.PatchSize*c.Merge {
		problem("window_size", "is %d, less than one merged patch of %d", c.Window, c.PatchSize*c.Merge)
	}
	if c.kind == qwen3VL && c.grid()*c.grid() != c.Positions {
		problem("num_position_embeddings", "is %d, which is no square", c.Positions)
	}
	for _, named := range []struct {
		key    string
		blocks []int64
	}{{"fullatt_block_indexes", c.FullAttention}, {"deepstack_visual_indexes", c.Deepstack}} {
		for k, i := range named.blocks {
			if i < 0 || i >= c.Depth || slices.Contains(named.blocks[:k], i) {
				problem(named.key, "is %v; each of the %d blocks may be named once", named.blocks, c.Depth)
				break
			}
		}
	}
	return ok
}

func (c qwenVision) headDim() int64 { return c.HiddenSize / c.Heads }
func (c qwenVision) unit() int64    { return c.Merge * c.Merge } // patches of one token
func (c qwenVision) grid() int64    { return int64(math.Round(math.Sqrt(float64(c.Positions)))) }
func (c qwenVision) patch() int64   { return c.Channels * c.Temporal * c.PatchSize * c.PatchSize }

// merged is the dimension of rows behind the patch merger.
func (c qwenVision) merged() onnx.Dim { return onnx.Free(fmt.Sprintf("patches / %d", c.unit())) }

// qwenTower is the tower's graph under construction.
type qwenTower struct {
	qwenVision
	b        *blocks.Builder
	prefix   string
	cos, sin *onnx.Value
	windows  blocks.Windows
	frames   *onnx.Value
}

// build adds the tower: pixel_values [patches, channels·frames·size·size] to vision_features [patches, hidden_size], in
// the order of windows where there are any, and deepstack_N.
func (c qwenVision) build(b *blocks.Builder, prefix string) {
	t, h, patches := b.Tensors, c.HiddenSize, onnx.Free("patches")
	w := qwenTower{qwenVision: c, b: b, prefix: prefix}
	x := b.Input("pixel_values", onnx.Float, patches, onnx.Fixed(c.patch()))
	// The convolution's stride is its kernel, so on patches it is a matrix.
	embed := blocks.Linear{Name: "patch_embed", Kind: blocks.Patch, Layer: -1,
		W: t.Weight(prefix+"patch_embed.proj.weight", h, c.Channels, c.Temporal, c.PatchSize, c.PatchSize).Reshape(h, c.patch())}
	if c.kind == qwen3VL {
		bias := t.Weight(prefix+"patch_embed.proj.bias", h)
		embed.B = &bias
	}
	x = b.Linear(x, embed)
	if c.kind == qwen3VL {
		x = b.Op("Add", []*onnx.Value{x, w.positions(patches)})
	}
	half := onnx.Fixed(c.headDim() / 2)
	w.cos, w.sin = b.Input("vision_cos", onnx.Float, patches, half), b.Input("vision_sin", onnx.Float, patches, half)
	if c.kind == qwen25VL && int64(len(c.FullAttention)) < c.Depth {
		w.windows = b.WindowInputs(patches)
	}
	if c.kind != qwen25VL || len(c.FullAttention) > 0 {
		w.frames = b.Input("frame_sizes", onnx.Int64, onnx.Free("frames"))
	}
	if c.kind == qwen25VL {
		x = b.Op("Gather", []*onnx.Value{x, b.Input("window_index", onnx.Int64, patches)})
	}
	for i := range c.Depth {
		b.Scope(fmt.Sprintf("blocks.%d", i), func() { x = w.block(x, i) })
		if n := slices.Index(c.Deepstack, i); n >= 0 {
			b.Scope(fmt.Sprintf("deepstack.%d", n), func() {
				y := c.merger(b, fmt.Sprintf("%sdeepstack_merger_list.%d.", prefix, n), x, true)
				b.Output(fmt.Sprintf("deepstack_%d", n), y, onnx.Float, c.merged(), onnx.Fixed(c.OutHiddenSize))
			})
		}
	}
	b.Output("vision_features", x, onnx.Float, patches, onnx.Fixed(h))
}

// positions is fast_pos_embed_interpolate: the weighted sum of the four learned positions around each patch.
func (w qwenTower) positions(patches onnx.Dim) *onnx.Value {
	b, four := w.b, onnx.Fixed(4)
	index, weight := b.Input("position_index", onnx.Int64, patches, four), b.Input("position_weight", onnx.Float, patches, four)
	table := b.Param("pos_embed", b.Tensors.Weight(w.prefix+"pos_embed.weight", w.Positions, w.HiddenSize))
	corners := b.Op("Gather", []*onnx.Value{table, index}) // [patches, 4, hidden_size]
	corners = b.Op("Mul", []*onnx.Value{corners, b.Op("Unsqueeze", []*onnx.Value{weight, b.Ints1(2)})})
	return b.Op("ReduceSum", []*onnx.Value{corners, b.Ints1(1)}, onnx.Int("keepdims", 0))
}

// block is Qwen2VLVisionBlock and its successors': x + attn(norm1(x)), then x + mlp(norm2(x)).
func (w qwenTower) block(x *onnx.Value, index int64) *onnx.Value {
	b, t, h, layer := w.b, w.b.Tensors, w.HiddenSize, int(index)
	at := fmt.Sprintf("%sblocks.%d.", w.prefix, index)
	y := w.norm(b, "norm1", at+"norm1", x)
	parts := b.Columns(b.Dense(y, "attn.qkv", at+"attn.qkv", 3*h, h, blocks.Attention, layer), h, h, h)
	q := b.RotateHeads(parts[0], w.cos, w.sin, w.Heads, w.headDim())
	k := b.RotateHeads(parts[1], w.cos, w.sin, w.Heads, w.headDim())
	heads := blocks.Heads{Count: w.Heads, Dim: w.headDim()}
	if w.kind == qwen25VL && !slices.Contains(w.FullAttention, index) {
		y = b.WindowAttention(q, k, parts[2], w.windows, heads)
	} else {
		y = b.FrameAttention(q, k, parts[2], w.frames, heads)
	}
	x = b.Op("Add", []*onnx.Value{x, b.Dense(y, "attn.proj", at+"attn.proj", h, h, blocks.Attention, layer)})

	y, act, m := w.norm(b, "norm2", at+"norm2", x), blocks.Activation(w.HiddenAct), w.Intermediate
	if w.kind == qwen25VL {
		bias := blocks.ConcatRows(t.Weight(at+"mlp.gate_proj.bias", m), t.Weight(at+"mlp.up_proj.bias", m))
		gateUp := blocks.Linear{Name: "mlp.gate_up_proj", Kind: blocks.MLP, Layer: layer, B: &bias,
			W: blocks.ConcatRows(t.Weight(at+"mlp.gate_proj.weight", m, h), t.Weight(at+"mlp.up_proj.weight", m, h))}
		halves := b.Columns(b.Linear(y, gateUp), m, m)
		y = b.Op("Mul", []*onnx.Value{b.Activate(act, halves[0]), halves[1]})
		y = b.Dense(y, "mlp.down_proj", at+"mlp.down_proj", h, m, blocks.MLP, layer)
	} else {
		up, down := "mlp.fc1", "mlp.fc2"
		if w.kind == qwen3VL {
			up, down = "mlp.linear_fc1", "mlp.linear_fc2"
		}
		y = b.Activate(act, b.Dense(y, "mlp.fc1", at+up, m, h, blocks.MLP, layer))
		y = b.Dense(y, "mlp.fc2", at+down, h, m, blocks.MLP, layer)
	}
	return b.Op("Add", []*onnx.Value{x, y})
}

// norm is an RMS norm in Qwen2.5-VL and a LayerNorm in the others.
func (c qwenVision) norm(b *blocks.Builder, name, path string, x *onnx.Value) *onnx.Value {
	if c.kind == qwen25VL {
		return b.RMSNorm(name, x, b.Tensors.Weight(path+".weight", c.HiddenSize), qwenVisionEps)
	}
	return b.LayerNormAt(name, path, x, c.HiddenSize, qwenVisionEps)
}

// merger is PatchMerger: the patches of a token side by side, two matrices with an exact GELU between. The norm comes
// before they are joined or, of deepstack's mergers, after.
func (c qwenVision) merger(b *blocks.Builder, prefix string, x *onnx.Value, normAfter bool) *onnx.Value {
	h := c.HiddenSize * c.unit()
	norm, first, second := "ln_q", "mlp.0", "mlp.2"
	if c.kind == qwen3VL {
		norm, first, second = "norm", "linear_fc1", "linear_fc2"
	}
	if !normAfter {
		x = c.norm(b, "norm", prefix+norm, x)
	}
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
	if normAfter {
		x = b.LayerNormAt("norm", prefix+norm, x, h, qwenVisionEps)
	}
	x = b.Activate("gelu", b.Dense(x, "fc1", prefix+first, h, h, blocks.Project, -1))
	return b.Dense(x, "fc2", prefix+second, c.OutHiddenSize, h, blocks.Project, -1)
}

// buildMerger adds the connector: vision_features [patches, hidden_size] to projected [patches / merge², hidden_size],
// put back from the order of windows to rows of the picture.
func (c qwenVision) buildMerger(b *blocks.Builder, prefix string) {
	x := b.Input("vision_features", onnx.Float, onnx.Free("patches"), onnx.Fixed(c.HiddenSize))
	x = c.merger(b, prefix+"merger.", x, false)
	if c.kind == qwen25VL {
		x = b.Op("Gather", []*onnx.Value{x, b.Input("merge_order", onnx.Int64, c.merged())})
	}
	b.Output("projected", x, onnx.Float, c.merged(), onnx.Fixed(c.OutHiddenSize))
}

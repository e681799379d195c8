// The CLIP vision tower (transformers' CLIPVisionModel; Radford et al. 2021, section 2.4), and CLIP's image processor.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

// clipVision is CLIPVisionConfig.
type clipVision struct {
	HiddenSize       int64   `json:"hidden_size"`
	IntermediateSize int64   `json:"intermediate_size"`
	Layers           int64   `json:"num_hidden_layers"`
	Heads            int64   `json:"num_attention_heads"`
	Channels         int64   `json:"num_channels"`
	ImageSize        int64   `json:"image_size"`
	PatchSize        int64   `json:"patch_size"`
	HiddenAct        string  `json:"hidden_act"`
	LayerNormEps     float64 `json:"layer_norm_eps"`
	VocabSize        int64   `json:"vocab_size"` // of the text tower; releases repeat it here
}

func clipVisionDefaults() clipVision {
	return clipVision{HiddenSize: 768, IntermediateSize: 3072, Layers: 12, Heads: 12, Channels: 3, ImageSize: 224,
		PatchSize: 32, HiddenAct: "quick_gelu", LayerNormEps: 1e-5}
}

// valid notes sizes that cannot be; planning with them would overflow or divide by zero.
func (c clipVision) valid(t *blocks.Tensors, where string) bool {
	ok := within(t, where+" hidden_size", c.HiddenSize, 1, 1<<16)
	ok = within(t, where+" intermediate_size", c.IntermediateSize, 1, 1<<18) && ok
	ok = within(t, where+" num_hidden_layers", c.Layers, 1, 1<<10) && ok
	ok = within(t, where+" num_attention_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" num_channels", c.Channels, 3, 3) && ok
	ok = within(t, where+" image_size", c.ImageSize, 1, 1<<13) && ok
	ok = within(t, where+" patch_size", c.PatchSize, 1, max(1, min(c.ImageSize, 1<<13))) && ok
	if ok && c.HiddenSize%c.Heads != 0 {
		t.Problem(where+" hidden_size", fmt.Sprintf("(%d) is not a multiple of num_attention_heads (%d)", c.HiddenSize, c.Heads))
		ok = false
	}
	if _, err := blocks.ParseActivation(c.HiddenAct); err != nil {
		t.Problem(where+" hidden_act", err.Error())
		ok = false
	}
	return ok
}

func (c clipVision) grid() int64 { return c.ImageSize / c.PatchSize }

// tokens is the length of the tower's sequence: the class token and the patches.
func (c clipVision) tokens() int64 { return c.grid()*c.grid() + 1 }

// hiddenState turns vision_feature_layer into an index of hidden_states, where 0 is the embedding's output and i the
// output of layer i−1; negative ones count from the end.
func (c clipVision) hiddenState(layer int64) (int64, bool) {
	if layer < 0 {
		layer += c.Layers + 1
	}
	return layer, layer >= 0 && layer <= c.Layers
}

// build adds the tower up to the last of the wanted hidden states and returns those, each [tiles·tokens, hidden_size]
// rows with the class token first. The layers behind it and post_layernorm are stored in releases and never run.
func (c clipVision) build(b *blocks.Builder, prefix string, pixels *onnx.Value, wanted []int64) []*onnx.Value {
	t := b.Tensors
	h := c.HiddenSize
	states := map[int64]*onnx.Value{}
	var x *onnx.Value
	b.Scope("embeddings", func() { x = c.embed(b, prefix+"embeddings.", pixels) })
	x = b.LayerNorm("pre_layrnorm", x, t.Weight(prefix+"pre_layrnorm.weight", h), t.Weight(prefix+"pre_layrnorm.bias", h), c.LayerNormEps)
	states[0] = x
	last := int64(0)
	for _, w := range wanted {
		last = max(last, w)
	}
	for i := range last {
		b.Scope(fmt.Sprintf("layers.%d", i), func() { x = c.layer(b, fmt.Sprintf("%sencoder.layers.%d.", prefix, i), x, int(i)) })
		states[i+1] = x
	}
	for i := last; i < c.Layers; i++ {
		t.Ignore(fmt.Sprintf("%sencoder.layers.%d.*", prefix, i))
	}
	t.Ignore(prefix+"post_layernorm.*", prefix+"embeddings.position_ids")
	out := make([]*onnx.Value, len(wanted))
	for i, w := range wanted {
		out[i] = states[w]
	}
	return out
}

// embed is CLIPVisionEmbeddings: patches by convolution, the class token in front, learned positions.
func (c clipVision) embed(b *blocks.Builder, prefix string, pixels *onnx.Value) *onnx.Value {
	t := b.Tensors
	h, p, n := c.HiddenSize, c.PatchSize, c.tokens()
	kernel := b.Param("patch_embedding", t.Weight(prefix+"patch_embedding.weight", h, c.Channels, p, p))
	x := b.Op("Conv", []*onnx.Value{pixels, kernel}, onnx.Ints("kernel_shape", p, p), onnx.Ints("strides", p, p))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(0, h, -1)})
	x = b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 0, 2, 1)) // [tiles, patches, hidden_size]
	class := b.Param("class_embedding", t.Weight(prefix+"class_embedding", h).Reshape(1, 1, h))
	tiles := b.Op("Shape", []*onnx.Value{pixels}, onnx.Int("start", 0), onnx.Int("end", 1))
	class = b.Op("Expand", []*onnx.Value{class, b.Op("Concat", []*onnx.Value{tiles, b.Ints1(1, h)}, onnx.Int("axis", 0))})
	x = b.Op("Concat", []*onnx.Value{class, x}, onnx.Int("axis", 1))
	x = b.Op("Add", []*onnx.Value{x, b.Param("position_embedding", t.Weight(prefix+"position_embedding.weight", n, h))})
	return b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
}

// layer is CLIPEncoderLayer: pre-norm attention and MLP, both with biases.
func (c clipVision) layer(b *blocks.Builder, prefix string, x *onnx.Value, index int) *onnx.Value {
	t := b.Tensors
	h, m := c.HiddenSize, c.IntermediateSize
	norm := func(name string) (w, bias blocks.Weight) {
		return t.Weight(prefix+name+".weight", h), t.Weight(prefix+name+".bias", h)
	}
	proj := func(name string, out, in int64) (w, bias blocks.Weight) {
		return t.Weight(prefix+name+".weight", out, in), t.Weight(prefix+name+".bias", out)
	}
	w1, b1 := norm("layer_norm1")
	y := b.LayerNorm("layer_norm1", x, w1, b1, c.LayerNormEps)

	qw, qb := proj("self_attn.q_proj", h, h)
	kw, kb := proj("self_attn.k_proj", h, h)
	vw, vb := proj("self_attn.v_proj", h, h)
	bias := blocks.ConcatRows(qb, kb, vb)
	qkv := b.Linear(y, blocks.Linear{Name: "self_attn.qkv_proj", W: blocks.ConcatRows(qw, kw, vw), B: &bias, Kind: blocks.Attention, Layer: index})
	parts := b.Columns(qkv, h, h, h)
	y = b.FullAttention(parts[0], parts[1], parts[2], c.tokens(), c.Heads, h/c.Heads)
	ow, ob := proj("self_attn.out_proj", h, h)
	y = b.Linear(y, blocks.Linear{Name: "self_attn.out_proj", W: ow, B: &ob, Kind: blocks.Attention, Layer: index})

	w2, b2 := norm("layer_norm2")
	x, y = b.AddLayerNorm("layer_norm2", x, y, w2, b2, c.LayerNormEps)
	fw, fb := proj("mlp.fc1", m, h)
	y = b.Linear(y, blocks.Linear{Name: "mlp.fc1", W: fw, B: &fb, Kind: blocks.MLP, Layer: index})
	y = b.Activate(blocks.Activation(c.HiddenAct), y)
	gw, gb := proj("mlp.fc2", h, m)
	y = b.Linear(y, blocks.Linear{Name: "mlp.fc2", W: gw, B: &gb, Kind: blocks.MLP, Layer: index})
	return b.Op("Add", []*onnx.Value{x, y})
}

// clipProcessor is the preprocessor_config.json of CLIPImageProcessor.
type clipProcessor struct {
	CropSize      sizes     `json:"crop_size"`
	Size          sizes     `json:"size"`
	DoCenterCrop  *bool     `json:"do_center_crop"`
	DoConvertRGB  *bool     `json:"do_convert_rgb"`
	DoNormalize   *bool     `json:"do_normalize"`
	DoRescale     *bool     `json:"do_rescale"`
	DoResize      *bool     `json:"do_resize"`
	Mean          []float64 `json:"image_mean"`
	Std           []float64 `json:"image_std"`
	Resample      int       `json:"resample"`
	RescaleFactor float64   `json:"rescale_factor"`
	Processor     string    `json:"image_processor_type"`
	Extractor     string    `json:"feature_extractor_type"` // the older name of the same
	ProcessorType string    `json:"processor_class"`
}

// sizes is a size as processors write it: a number, or an object.
type sizes struct {
	ShortestEdge int `json:"shortest_edge"`
	Height       int `json:"height"`
	Width        int `json:"width"`
}

func (s *sizes) UnmarshalJSON(raw []byte) error {
	var edge int
	if json.Unmarshal(raw, &edge) == nil {
		*s = sizes{ShortestEdge: edge, Height: edge, Width: edge}
		return nil
	}
	type plain sizes
	return json.Unmarshal(raw, (*plain)(s))
}

// resampleNames are Pillow's filters by the number that processors store.
var resampleNames = map[int]string{0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

// picture reads CLIPImageProcessor's configuration as a recipe; its defaults are those of CLIP.
func (c clipVision) picture(raw json.RawMessage, t *blocks.Tensors) *manifest.Picture {
	where := "preprocessor_config.json"
	size := int(c.ImageSize)
	p := clipProcessor{CropSize: sizes{Height: size, Width: size}, Size: sizes{ShortestEdge: size}, Resample: 3, RescaleFactor: 1.0 / 255,
		Mean: []float64{0.48145466, 0.4578275, 0.40821073}, Std: []float64{0.26862954, 0.26130258, 0.27577711}}
	if raw != nil {
		p.Size, p.CropSize = sizes{}, sizes{}
		decode(raw, &p, where, t)
	}
	for _, f := range []struct {
		name string
		set  *bool
	}{{"do_center_crop", p.DoCenterCrop}, {"do_convert_rgb", p.DoConvertRGB}, {"do_normalize", p.DoNormalize}, {"do_rescale", p.DoRescale}, {"do_resize", p.DoResize}} {
		if f.set != nil && !*f.set {
			t.Problem(where+" "+f.name, "is false; this recipe does every step")
		}
	}
	if kind := p.Processor + p.Extractor; kind != "" && kind != "CLIPImageProcessor" && kind != "CLIPImageProcessorFast" && kind != "CLIPFeatureExtractor" {
		t.Problem(where+" image_processor_type", fmt.Sprintf("is %q where CLIPImageProcessor is due", kind))
	}
	if p.Size.ShortestEdge == 0 || p.CropSize.Height != size || p.CropSize.Width != size {
		t.Problem(where, fmt.Sprintf("resizes to %+v and crops %+v; the tower takes %d×%d with size.shortest_edge given", p.Size, p.CropSize, size, size))
	}
	if d := p.RescaleFactor*255 - 1; d > 1e-6 || d < -1e-6 {
		t.Problem(where+" rescale_factor", fmt.Sprintf("is %v where 1/255 is due", p.RescaleFactor))
	}
	if resampleNames[p.Resample] == "" {
		t.Problem(where+" resample", fmt.Sprintf("is %d, which is no filter", p.Resample))
	}
	return &manifest.Picture{Recipe: "clip", Resample: resampleNames[p.Resample], Height: size, Width: size,
		ShortEdge: p.Size.ShortestEdge, CropHeight: p.CropSize.Height, CropWidth: p.CropSize.Width, Mean: p.Mean, Std: p.Std}
}

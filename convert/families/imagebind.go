// ImageBind's audio trunk (Girdhar et al. 2023): a ViT over mel spectrograms whose attention has one learned key and value
// more than tokens, and a head that gives one normalised, scaled vector a clip.

package families

import (
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// imageBindAudio holds the sizes; all but the heads are read off the tensors.
type imageBindAudio struct {
	prefix           string // of the release's tensors: "imagebind."
	hidden, mlp      int64
	layers, heads    int64
	embedding        int64 // width of the common space
	kernel, stride   int64 // of the stem's convolution
	mels, frames     int64 // of a spectrogram
	tokens           int64 // class token included
	logitScaleBounds float32
}

// ImageBind's code fixes these for audio.
const (
	imageBindStride = 10
	imageBindMels   = 128
	imageBindFrames = 204
)

func readImageBind(t *blocks.Tensors, prefix string, heads int64) (imageBindAudio, bool) {
	c := imageBindAudio{prefix: prefix, stride: imageBindStride, mels: imageBindMels, frames: imageBindFrames, heads: heads}
	stem := prefix + "modality_preprocessors.audio.rgbt_stem.proj.weight"
	c.hidden, c.kernel = t.Dim(stem, 0), t.Dim(stem, 2)
	c.mlp = t.Dim(c.block(0)+"mlp.fc1.weight", 0)
	c.embedding = t.Dim(prefix+"modality_heads.audio.2.weight", 0)
	for t.Has(c.block(c.layers)+"norm_1.weight") && c.layers < 1<<10 {
		c.layers++
	}
	if c.heads == 0 && c.hidden%64 == 0 {
		c.heads = c.hidden / 64
	}
	ok := within(t, stem, c.hidden, 1, 1<<16)
	ok = within(t, stem, c.kernel, 1, c.mels) && ok
	ok = within(t, prefix+"modality_trunks.audio.blocks", c.layers, 1, 1<<10) && ok
	ok = within(t, c.block(0)+"mlp.fc1.weight", c.mlp, 1, 1<<18) && ok
	ok = within(t, prefix+"modality_heads.audio.2.weight", c.embedding, 1, 1<<16) && ok
	if ok && (c.heads < 1 || c.hidden%c.heads != 0) {
		t.Problem("options.audio_heads", fmt.Sprintf("is %d, which does not divide the audio trunk's width of %d", c.heads, c.hidden))
		ok = false
	}
	if ok {
		c.tokens = ((c.mels-c.kernel)/c.stride+1)*((c.frames-c.kernel)/c.stride+1) + 1
	}
	return c, ok
}

func (c imageBindAudio) block(i int64) string {
	return fmt.Sprintf("%smodality_trunks.audio.blocks.%d.", c.prefix, i)
}

// build adds the trunk from fbank [clips, 1, mels, frames] to imagebind_embedding [clips, embedding], with the tensors on
// the way that golden sets hold.
func (c imageBindAudio) build(b *blocks.Builder) {
	t, h, n := b.Tensors, c.hidden, c.tokens
	clips := onnx.Free("clips")
	x := b.Input("fbank", onnx.Float, clips, onnx.Fixed(1), onnx.Fixed(c.mels), onnx.Fixed(c.frames))
	in := x
	pre := c.prefix + "modality_preprocessors.audio."
	b.Scope("stem", func() {
		kernel := b.Param("proj", t.Weight(pre+"rgbt_stem.proj.weight", h, 1, c.kernel, c.kernel))
		x = b.Op("Conv", []*onnx.Value{x, kernel}, onnx.Ints("kernel_shape", c.kernel, c.kernel), onnx.Ints("strides", c.stride, c.stride))
		x = b.Op("Transpose", []*onnx.Value{b.Op("Reshape", []*onnx.Value{x, b.Ints1(0, h, -1)})}, onnx.Ints("perm", 0, 2, 1))
		x = b.LayerNormAt("norm_layer", pre+"rgbt_stem.norm_layer", x, h, 1e-5)
		class := b.Repeat(b.Param("cls_token", t.Weight(pre+"cls_token", 1, 1, h)), in, 1, h)
		x = b.Op("Concat", []*onnx.Value{class, x}, onnx.Int("axis", 1))
		x = b.Op("Add", []*onnx.Value{x, b.Param("pos_embed", t.Weight(pre+"pos_embedding_helper.pos_embed", 1, n, h))})
	})
	b.Output("imagebind_tokens", x, onnx.Float, clips, onnx.Fixed(n), onnx.Fixed(h))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
	for i := range c.layers {
		b.Scope(fmt.Sprintf("blocks.%d", i), func() { x = c.layer(b, c.block(i), in, x, int(i)) })
	}
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, h)})
	b.Output("imagebind_trunk", x, onnx.Float, clips, onnx.Fixed(n), onnx.Fixed(h))

	head := c.prefix + "modality_heads.audio."
	y := b.LayerNormAt("head.norm", head+"0", x, h, 1e-6)
	y = b.Op("Squeeze", []*onnx.Value{b.Op("Slice", []*onnx.Value{y, b.Ints1(0), b.Ints1(1), b.Ints1(1)}), b.Ints1(1)})
	b.Output("imagebind_cls_normed", y, onnx.Float, clips, onnx.Fixed(h))
	y = b.Linear(y, blocks.Linear{Name: "head.proj", W: t.Weight(head+"2.weight", c.embedding, h), Kind: blocks.Project, Layer: -1})
	scale := b.Op("Exp", []*onnx.Value{b.Param("log_logit_scale", t.Weight(c.prefix+"modality_postprocessors.audio.1.log_logit_scale"))})
	scale = b.Op("Min", []*onnx.Value{scale, b.Scalar(100)})
	b.Output("imagebind_embedding", b.Op("Mul", []*onnx.Value{b.Normalize(y), scale}), onnx.Float, clips, onnx.Fixed(c.embedding))
}

// layer is BlockWithMasking with nn.MultiheadAttention(add_bias_kv=True): pre-norm, and a learned key and value behind
// those of the tokens.
func (c imageBindAudio) layer(b *blocks.Builder, path string, like, x *onnx.Value, index int) *onnx.Value {
	t, h, n := b.Tensors, c.hidden, c.tokens
	y := b.LayerNormAt("norm_1", path+"norm_1", x, h, 1e-6)
	bias := t.Weight(path+"attn.in_proj_bias", 3*h)
	qkv := b.Linear(y, blocks.Linear{Name: "attn.in_proj", W: t.Weight(path+"attn.in_proj_weight", 3*h, h), B: &bias, Kind: blocks.Attention, Layer: index})
	parts := b.Columns(qkv, h, h, h)
	extended := func(rows *onnx.Value, name string) *onnx.Value {
		rows = b.Op("Reshape", []*onnx.Value{rows, b.Ints1(-1, n, h)})
		more := b.Repeat(b.Param(name, t.Weight(path+"attn."+name, 1, 1, h)), like, 1, h)
		rows = b.Op("Concat", []*onnx.Value{rows, more}, onnx.Int("axis", 1))
		return b.Op("Reshape", []*onnx.Value{rows, b.Ints1(-1, h)})
	}
	y = b.FullAttention(parts[0], extended(parts[1], "bias_k"), extended(parts[2], "bias_v"),
		blocks.Heads{Count: c.heads, Dim: h / c.heads, QueryLength: n, KeyLength: n + 1})
	y = b.Dense(y, "attn.out_proj", path+"attn.out_proj", h, h, blocks.Attention, index)
	x, y = b.AddLayerNormAt("norm_2", path+"norm_2", x, y, h, 1e-6)
	y = b.Activate("gelu", b.Dense(y, "mlp.fc1", path+"mlp.fc1", c.mlp, h, blocks.MLP, index))
	y = b.Dense(y, "mlp.fc2", path+"mlp.fc2", h, c.mlp, blocks.MLP, index)
	return b.Op("Add", []*onnx.Value{x, y})
}

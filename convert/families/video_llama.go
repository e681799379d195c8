// Video-LLaMA (Zhang et al. 2023; the authors' VideoLLAMA): frames through EVA ViT-g and BLIP-2's Q-Former, a second
// Q-Former over all frames' queries with their frame positions, and a LLaMA; sound through ImageBind's audio trunk and a
// third Q-Former. Released in pieces, which a .toml names: the language model's folder as checkpoint, and the parts vision
// (eva_vit_g.pth), qformer (blip2_pretrained_flant5xxl.pth), video and audio (the finetuned branches), imagebind.

package families

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type videoLLaMA struct{}

// The parts beside LAVIS' two.
const (
	videoPart     = "video"
	audioPart     = "audio"
	imageBindPart = "imagebind"
)

func (videoLLaMA) Name() string { return "video-llama" }
func (videoLLaMA) Match(h Head) bool {
	return h.Is("LlamaForCausalLM") && (h.Has(videoPart) || h.Has(audioPart))
}

func (videoLLaMA) Parts(json.RawMessage) map[string]string {
	return map[string]string{evaPart: "eva_vit_g.pth", qformerPart: "blip2_pretrained_flant5xxl.pth", videoPart: "finetuned_visual_branch.pth"}
}

// PartsFor adds the sound's pieces when one of them is given: a missing one is then named.
func (f videoLLaMA) PartsFor(h Head) map[string]string {
	parts := f.Parts(nil)
	if h.Has(audioPart) || h.Has(imageBindPart) {
		parts[audioPart], parts[imageBindPart] = "finetuned_audio_branch.pth", "imagebind_huge.pth"
	}
	return parts
}

// videoRules lead from the pieces' names to those that the graphs are built from; lavisRules take what is BLIP-2's.
var videoRules = []lavisRule{
	{regexp.MustCompile(`^(?:video\.(video)|audio\.(audio))_Qformer\.bert\.embeddings\.LayerNorm\.`), "${1}${2}_qformer.layernorm."},
	{regexp.MustCompile(`^(?:video\.(video)|audio\.(audio))_Qformer\.bert\.(.*)attention\.self\.`), "${1}${2}_qformer.${3}attention.attention."},
	{regexp.MustCompile(`^(?:video\.(video)|audio\.(audio))_Qformer\.bert\.`), "${1}${2}_qformer."}, // each branch's own: a file may hold remains of the other's
	{regexp.MustCompile(`^(video|audio|imagebind)\.`), "$1."},
	{regexp.MustCompile(`^(vision|qformer)\.`), ""}, // BLIP-2's, by lavisToHub
	{regexp.MustCompile(`^`), "language_model."},
}

func videoName(stored string) string {
	for _, r := range videoRules {
		if !r.match.MatchString(stored) {
			continue
		}
		if r.to == "" {
			return lavisToHub(stored)
		}
		return r.match.ReplaceAllString(stored, r.to)
	}
	return stored
}

func (f videoLLaMA) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	t.Rename(videoName)
	for name := range r.Options {
		if !strings.Contains(" vision_layers vision_heads qformer_heads audio_heads llama_v2 ", " "+name+" ") {
			t.Problem("options."+name, "is not known; there are vision_layers, vision_heads, qformer_heads, audio_heads and llama_v2")
		}
	}
	text, ok := decodeLlama(r.Config, "config.json", t)
	lavis := blip2Authors{}
	raw, err := lavis.config(r, t)
	if err != nil {
		return nil, err
	}
	var hub blip2Config
	if err := json.Unmarshal(raw, &hub); err != nil {
		return nil, fmt.Errorf("sizes of the pieces: %w", err)
	}
	vision, good := decodeEVA(hub.VisionConfig, t)
	former, fine := decodeQFormer(hub.QFormerConfig, hub.Queries, vision, t)
	if !ok || !good || !fine {
		return nil, nil
	}
	vision.finalEps, vision.rawOutput = 1e-5, true
	m := videoModel{vision: vision, frame: former, text: text}
	p := m.plan(f.Name(), r, t, opts)
	if _, sound := r.Parts[audioPart]; sound {
		m.sound(p, r, t, opts)
	}
	// What pieces hold beside what runs: constant buffers, the modules that another piece gives, BLIP-2's own projection.
	t.Ignore("vision.norm.*", "vision.head.*", fmt.Sprintf("vision_model.encoder.layers.%d.*", vision.Layers), "language_projection.*",
		"*.embeddings.position_ids", "video.Qformer.*", "audio.Qformer.*", "video.llama_model.*", "audio.llama_model.*", "audio.audio_encoder.*",
		"audio.video_Qformer.*", "video.audio_Qformer.*", "*_qformer.embeddings.position_ids", "*_qformer.cls.*", "imagebind.*.vision.*", "imagebind.*.text.*", "imagebind.*.depth.*", "imagebind.*.thermal.*", "imagebind.*.imu.*")
	return p, nil
}

// videoModel is Video-LLaMA with its sizes.
type videoModel struct {
	vision evaVision
	frame  qformer // BLIP-2's, over one frame
	text   llamaConfig
}

// branch is a video or audio Q-Former: two BERT layers that look at their input in each.
func (m videoModel) branch(t *blocks.Tensors, name string, width int64) qformer {
	c := m.frame
	c.EncoderSize, c.CrossEvery, c.Layers = width, 1, 0
	for t.Has(fmt.Sprintf("%s_qformer.encoder.layer.%d.attention.attention.query.weight", name, c.Layers)) && c.Layers < 1<<10 {
		c.Layers++
	}
	c.queries = t.Dim(name+"."+name+"_query_tokens", 1)
	within(t, name+"_query_tokens", c.queries, 1, 1<<12)
	within(t, name+"_Qformer layers", c.Layers, 1, 1<<10)
	return c
}

func (m videoModel) add(p *Plan, name string, role blocks.Role, prefix string, layers int64, t *blocks.Tensors, opts Options, build func(b *blocks.Builder)) {
	blip2Model{}.add(p, name, role, prefix, layers, t, opts, build)
}

func (m videoModel) plan(family string, r *Release, t *blocks.Tensors, opts Options) *Plan {
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: family, Precision: string(opts.Precision)}}
	m.add(p, "vision", blocks.Vision, "vision_model.", m.vision.Layers, t, opts, func(b *blocks.Builder) { m.vision.build(b, "vision_model.") })
	m.add(p, "connector", blocks.Connector, "video_qformer.", m.frame.Layers, t, opts, m.connector)
	const model = "language_model.model."
	m.add(p, "decoder", blocks.Decoder, model, m.text.Layers, t, opts, func(b *blocks.Builder) { m.text.build(b, model, "language_model.lm_head") })
	t.Shared(model+"embed_tokens.weight", m.text.VocabSize, m.text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: model + "embed_tokens.weight", Rows: m.text.VocabSize, Hidden: m.text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = m.text.decoder(t, "config.json")
	r.generation(&p.Manifest, generationConfig{EOS: m.text.EOS, BOS: m.text.BOS, Pad: m.text.Pad}, t)
	pic := stretchPicture(nil, int(m.vision.ImageSize), t)
	pic.Stages, pic.Features, pic.TokensPerTile = []string{"vision", "connector"}, "projected", int(t.Dim("video.video_query_tokens", 1))
	pic.Video = m.frames(t)
	p.Manifest.Picture = pic
	m.prompt(p, r, t)
	return p
}

// connector is encode_videoQformer_visual behind ln_vision, for the frames of one clip: each frame's queries, plus the
// frame's position, in a row; the video Q-Former over them; llama_proj.
func (m videoModel) connector(b *blocks.Builder) {
	t, q, h := b.Tensors, m.frame.queries, m.frame.HiddenSize
	video := m.branch(t, videoPart, h)
	frames := onnx.Free("tiles")
	features := b.Input("vision_features", onnx.Float, frames, onnx.Fixed(m.vision.tokens()), onnx.Fixed(m.vision.HiddenSize))
	x := m.frame.queriesOnly(b, "qformer.", "query_tokens", "qformer.layernorm", features)
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, q, h)})
	b.Output("image_qformer", x, onnx.Float, frames, onnx.Fixed(q), onnx.Fixed(h))

	positions := t.Dim("video.video_frame_position_embedding.weight", 0)
	table := b.Param("video_frame_position_embedding", t.Weight("video.video_frame_position_embedding.weight", positions, h))
	count := b.Op("Squeeze", []*onnx.Value{b.Op("Shape", []*onnx.Value{features}, onnx.Int("start", 0), onnx.Int("end", 1))})
	index := b.Op("Range", []*onnx.Value{b.Int64s(nil, 0), count, b.Int64s(nil, 1)})
	position := b.Op("Unsqueeze", []*onnx.Value{b.Op("Gather", []*onnx.Value{table, index}), b.Ints1(1)})
	x = b.Op("Reshape", []*onnx.Value{b.Op("Add", []*onnx.Value{x, position}), b.Ints1(1, -1, h)})
	b.Output("video_qformer_input", x, onnx.Float, onnx.Fixed(1), onnx.Free(fmt.Sprintf("tiles * %d", q)), onnx.Fixed(h))
	m.project(b, video, videoPart, "projected", x)
}

// project runs a branch's Q-Former over memory [1, rows, width] and projects its queries to the language model.
func (m videoModel) project(b *blocks.Builder, former qformer, branch, output string, memory *onnx.Value) {
	t, h := b.Tensors, former.HiddenSize
	prefix := branch + "_qformer."
	var x *onnx.Value
	b.Scope(branch+"_qformer", func() {
		x = former.overMemory(b, prefix, branch+"."+branch+"_query_tokens", prefix+"layernorm", memory)
	})
	b.Output(branch+"_qformer", x, onnx.Float, onnx.Fixed(1), onnx.Fixed(former.queries), onnx.Fixed(h))
	proj := map[string]string{videoPart: "video.llama_proj", audioPart: "audio.audio_llama_proj"}[branch]
	bias := t.Weight(proj+".bias", m.text.HiddenSize)
	y := b.LinearOver(x, blocks.Linear{Name: "llama_proj", W: t.Weight(proj+".weight", m.text.HiddenSize, h), B: &bias, Kind: blocks.Project, Layer: -1})
	b.Output(output, y, onnx.Float, onnx.Fixed(1), onnx.Fixed(former.queries), onnx.Fixed(m.text.HiddenSize))
}

// sound adds the audio trunk and its branch.
func (m videoModel) sound(p *Plan, r *Release, t *blocks.Tensors, opts Options) {
	trunk, ok := readImageBind(t, imageBindPart+".", r.Options["audio_heads"])
	if !ok {
		return
	}
	positions, queries := t.Dim("audio.audio_position_embedding.weight", 0), t.Dim("audio.audio_query_tokens", 1)
	within(t, "audio.audio_position_embedding.weight", positions, 1, 1<<10)
	m.hears(p, trunk, positions, queries)
	m.add(p, "audio", blocks.Vision, "imagebind.modality_trunks.audio.", trunk.layers, t, opts, trunk.build)
	m.add(p, "audio_connector", blocks.Connector, "audio_qformer.", 2, t, opts, func(b *blocks.Builder) {
		clips := onnx.Free("clips")
		x := b.Input("imagebind_embedding", onnx.Float, clips, onnx.Fixed(trunk.embedding))
		table := b.Param("audio_position_embedding", t.Weight("audio.audio_position_embedding.weight", t.Dim("audio.audio_position_embedding.weight", 0), trunk.embedding))
		count := b.Op("Shape", []*onnx.Value{x}, onnx.Int("start", 0), onnx.Int("end", 1))
		x = b.Op("Add", []*onnx.Value{x, b.Op("Slice", []*onnx.Value{table, b.Ints1(0), count, b.Ints1(0)})})
		x = b.Op("Unsqueeze", []*onnx.Value{x, b.Ints1(0)})
		b.Output("audio_qformer_input", x, onnx.Float, onnx.Fixed(1), clips, onnx.Fixed(trunk.embedding))
		m.project(b, m.branch(t, audioPart, trunk.embedding), audioPart, "audio_projected", x)
	})
}

// LLaVA-NeXT (Liu et al. 2024; transformers' LlavaNextForConditionalGeneration): LLaVA-1.5's modules over the tiles of a
// picture, whose features are joined again with a learned newline behind each row. LLaVA-OneVision (Li et al. 2024;
// LlavaOnevisionForConditionalGeneration): the same with a SigLIP tower and Qwen2.

package families

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

type (
	llavaNext      struct{}
	llavaOneVision struct{}
)

// anyresConfig is what LlavaNextConfig and LlavaOnevisionConfig add to LlavaConfig.
type anyresConfig struct {
	llavaConfig
	Pinpoints  [][]int `json:"image_grid_pinpoints"`
	UseNewline *bool   `json:"use_image_newline_parameter"`
	Aspect     string  `json:"vision_aspect_ratio"`
	VideoToken *int    `json:"video_token_index"`
	VideoID    *int    `json:"video_token_id"`
}

func (llavaNext) Name() string                                 { return "llava-next" }
func (llavaNext) Match(h Head) bool                            { return h.Is("LlavaNextForConditionalGeneration") }
func (llavaNext) Parts(json.RawMessage) map[string]string      { return nil }
func (llavaOneVision) Name() string                            { return "llava-onevision" }
func (llavaOneVision) Match(h Head) bool                       { return h.Is("LlavaOnevisionForConditionalGeneration") }
func (llavaOneVision) Parts(json.RawMessage) map[string]string { return nil }

func (f llavaNext) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := anyresConfig{llavaConfig: llavaConfig{ProjectorAct: "gelu", ProjectorBias: true, FeatureLayer: featureLayers{-2}, Select: "default"}}
	decode(r.Config, &c, "config.json", t)
	vision := clipVisionDefaults()
	decodeCLIP(c.VisionConfig, &vision, t)
	text, ok := decodeLlama(c.TextConfig, "config.json text_config", t)
	if ok = vision.valid(t, "config.json vision_config") && ok; !ok {
		return nil, nil
	}
	m := llavaModel{
		family: f.Name(), vision: vision, text: text, layers: c.FeatureLayer, selection: c.Select, act: c.ProjectorAct, bias: c.ProjectorBias,
		visionPrefix: t.Prefix("vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower.", "vision_tower."),
	}
	m.hubNames(t)
	m.newline = t.Prefix("image_newline", "model.image_newline")
	p := m.plan(r, t, opts)
	p.Manifest.Picture = anyresPicture(r.Preprocessor, int(vision.ImageSize), c.Pinpoints, t)
	m.anyres(p, vision.grid(), c, r, t)
	return p, nil
}

func (f llavaOneVision) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := anyresConfig{llavaConfig: llavaConfig{ProjectorAct: "gelu", ProjectorBias: true, FeatureLayer: featureLayers{-1}, Select: "full"}, Aspect: "anyres_max_9"}
	decode(r.Config, &c, "config.json", t)
	defaults := siglipDefaults()
	defaults.HiddenSize, defaults.IntermediateSize, defaults.Layers, defaults.Heads, defaults.ImageSize, defaults.PatchSize = 1152, 4304, 26, 16, 384, 14
	vision, ok := decodeSigLIP(c.VisionConfig, defaults, t)
	text, good := decodeLlama(c.TextConfig, "config.json text_config", t)
	if !ok || !good {
		return nil, nil
	}
	if len(c.FeatureLayer) != 1 || c.Select != "full" {
		t.Problem("config.json vision_feature_layer", fmt.Sprintf("is %v with %q; one layer of SigLIP with \"full\" is supported", c.FeatureLayer, c.Select))
		return nil, nil
	}
	layer, ok := clipVision{Layers: vision.Layers}.hiddenState(c.FeatureLayer[0])
	if !ok {
		t.Problem("config.json vision_feature_layer", fmt.Sprintf("is %d; the tower has %d layers", c.FeatureLayer[0], vision.Layers))
		return nil, nil
	}
	m := llavaModel{
		family: f.Name(), text: text, selection: "full", act: c.ProjectorAct, bias: c.ProjectorBias,
		visionPrefix: t.Prefix("vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower.", "vision_tower."),
	}
	// The projector and the recipe see a tower of this many rows.
	m.tower = func(b *blocks.Builder) int64 {
		vision.build(b, m.visionPrefix, layer, false)
		return vision.HiddenSize
	}
	m.towerTokens, m.vision.Layers = vision.tokens(), vision.Layers
	m.hubNames(t)
	m.newline = t.Prefix("image_newline", "model.image_newline")
	p := m.plan(r, t, opts)
	p.Manifest.Picture = anyresPicture(r.Preprocessor, int(vision.ImageSize), c.Pinpoints, t)
	p.Manifest.Picture.MaxAnyres = maxAnyres(c.Aspect, t)
	p.Manifest.Picture.Background = meanColor(p.Manifest.Picture.Mean)
	m.anyres(p, vision.grid(), c, r, t)
	if video := r.video(p.Manifest.Picture); video != nil {
		// apply_pooling halves a frame's map, and get_video_features ends the video with one newline.
		video.Pool, video.EndNewline = 2, true
		p.Manifest.Picture.Video = video
		p.Manifest.Prompt.VideoPlaceholder, p.Manifest.Prompt.VideoToken = "<video>", "<video>"
		p.Manifest.Tokens.Video = 151647 // LlavaOnevisionConfig's default
		set(&p.Manifest.Tokens.Video, c.VideoID)
		set(&p.Manifest.Tokens.Video, c.VideoToken)
	}
	return p, nil
}

// meanColor is the padding of LlavaOnevisionImageProcessor's pad_to_square, which makes the one tile of a picture that is
// not tiled: the mean as bytes, rounded down.
func meanColor(mean []float64) []int {
	color := make([]int, len(mean))
	for c, v := range mean {
		color[c] = int(v * 255)
	}
	return color
}

var anyresMax = regexp.MustCompile(`^anyres_max_(\d{1,3})$`)

// maxAnyres reads the number of tiles behind "anyres_max_".
func maxAnyres(aspect string, t *blocks.Tensors) int {
	match := anyresMax.FindStringSubmatch(aspect)
	if match == nil {
		t.Problem("config.json vision_aspect_ratio", fmt.Sprintf("is %q; anyres_max_N is known", aspect))
		return 0
	}
	n, _ := strconv.Atoi(match[1])
	return n
}

// hubNames fills in the names that LLaVA's hub layouts share.
func (m *llavaModel) hubNames(t *blocks.Tensors) {
	m.projectorPrefix = t.Prefix("multi_modal_projector.", "model.multi_modal_projector.")
	m.linears = []string{"linear_1", "linear_2"}
	m.textPrefix, m.head = t.Prefix("language_model.model.", "model.language_model."), "language_model.lm_head"
	if m.textPrefix == "model.language_model." {
		m.head = "lm_head"
	}
}

// anyres completes the recipe and the prompt of a tiling model.
func (m llavaModel) anyres(p *Plan, grid int64, c anyresConfig, r *Release, t *blocks.Tensors) {
	m.picture(p, t)
	pic := p.Manifest.Picture
	pic.Features, pic.Newline, pic.PatchGrid = "mlp", "image_newline", int(grid)
	image := 32000
	set(&image, c.ImageTokenID)
	set(&image, c.ImageToken)
	p.Manifest.Tokens.Image = image
	p.Manifest.Prompt.ImageToken, p.Manifest.Prompt.Placeholder = "<image>", "<image>"
	r.addText(p, r.Tokenizer, r.template(), t)
}

// newlineOutput hands the learned newline on beside the features: the picture's rows end with it.
func (m llavaModel) newlineOutput(b *blocks.Builder) {
	if m.newline == "" {
		return
	}
	v := b.Param("newline", b.Tensors.Weight(m.newline, m.text.HiddenSize).Reshape(1, m.text.HiddenSize))
	b.Output("image_newline", b.Op("Identity", []*onnx.Value{v}), onnx.Float, onnx.Fixed(1), onnx.Fixed(m.text.HiddenSize))
}

// LLaVA-1.5 as its authors released it (haotian-liu/LLaVA, LlavaLlamaForCausalLM): the LLaMA tensors at the top, the
// projector as model.mm_projector, and the CLIP tower in a checkpoint of its own that the configuration only names.

package families

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"

	"glimpse/convert/blocks"
	"glimpse/manifest"
)

type llava15Authors struct{}

// llavaAuthorsConfig is LlavaConfig of the authors' code: LlamaConfig with mm_ keys.
type llavaAuthorsConfig struct {
	llamaConfig
	AspectRatio   string          `json:"image_aspect_ratio"`
	MMHiddenSize  int64           `json:"mm_hidden_size"`
	Projector     string          `json:"mm_projector_type"`
	SelectFeature string          `json:"mm_vision_select_feature"`
	SelectLayer   int64           `json:"mm_vision_select_layer"`
	Tower         string          `json:"mm_vision_tower"`
	PatchToken    bool            `json:"mm_use_im_patch_token"`
	StartEnd      bool            `json:"mm_use_im_start_end"`
	Resampler     *string         `json:"mm_resampler_type"`
	Pinpoints     json.RawMessage `json:"image_grid_pinpoints"`
	UseProjector  *bool           `json:"use_mm_proj"`
	// How the checkpoint was trained; nothing at inference depends on it.
	ProjectorLR     *float64 `json:"mm_projector_lr"`
	FreezeAdapter   bool     `json:"freeze_mm_mlp_adapter"`
	FreezeResampler bool     `json:"freeze_mm_vision_resampler"`
	TuneAdapter     bool     `json:"tune_mm_mlp_adapter"`
	TuneResampler   bool     `json:"tune_mm_vision_resampler"`
	UnfreezeTower   bool     `json:"unfreeze_mm_vision_tower"`
	PaddingSide     string   `json:"tokenizer_padding_side"`
	ModelMaxLength  int64    `json:"tokenizer_model_max_length"`
}

// towerPart is the name of the vision tower among a release's parts.
const towerPart = "vision_tower"

func (llava15Authors) Name() string      { return "llava-1.5 (authors)" }
func (llava15Authors) Match(h Head) bool { return h.Is("LlavaLlamaForCausalLM") }

func (llava15Authors) Parts(config json.RawMessage) map[string]string {
	var c struct {
		Tower string `json:"mm_vision_tower"`
	}
	_ = json.Unmarshal(config, &c) // Plan judges the configuration
	return map[string]string{towerPart: c.Tower}
}

func (f llava15Authors) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	text, _ := decodeLlama(nil, "config.json", t)
	c := llavaAuthorsConfig{llamaConfig: text, Projector: "linear", SelectLayer: -2, SelectFeature: "patch"}
	decode(r.Config, &c, "config.json", t)
	c.ModelType = "llama"
	ok := c.valid(t, "config.json")
	for _, unsupported := range []struct {
		set  bool
		key  string
		what string
	}{
		{c.StartEnd, "mm_use_im_start_end", "is true: pictures between start and end tokens are not supported"},
		{c.Pinpoints != nil && string(c.Pinpoints) != "null", "image_grid_pinpoints", "is set: tiles are not supported in this layout"},
		{c.Resampler != nil, "mm_resampler_type", "is set: resamplers are not supported"},
		{c.UseProjector != nil && !*c.UseProjector, "use_mm_proj", "is false: a checkpoint without a projector answers no pictures"},
	} {
		if unsupported.set {
			t.Problem("config.json "+unsupported.key, unsupported.what)
		}
	}
	tower := r.Parts[towerPart]
	if tower == nil {
		return nil, fmt.Errorf("the vision tower %q is needed and was not given", c.Tower)
	}
	var towerHead Head
	_ = json.Unmarshal(tower.Config, &towerHead) // decoding judges it
	if towerHead.Is("InternVisionModel") {
		return internChat10{}.plan(r, c, ok, t, opts)
	}
	vision := clipVisionDefaults()
	decodeTower(tower.Config, &vision, t)
	if ok = vision.valid(t, "vision_tower config.json") && ok; !ok {
		return nil, nil
	}
	linears := projectorLinears(c.Projector, t)
	m := llavaModel{
		family: f.Name(), vision: vision, text: c.llamaConfig, layers: featureLayers{c.SelectLayer}, selection: "default", act: "gelu", bias: true,
		visionPrefix:    t.Prefix("vision_tower.vision_model.", "vision_tower."),
		projectorPrefix: "model.mm_projector",
		textPrefix:      "model.", head: "lm_head", linears: linears,
	}
	if c.SelectFeature == "cls_patch" {
		m.selection = "full"
	} else if c.SelectFeature != "patch" {
		t.Problem("config.json mm_vision_select_feature", fmt.Sprintf("is %q; patch and cls_patch are known", c.SelectFeature))
	}
	p := m.plan(r, t, opts)
	// What else a CLIP checkpoint holds: its text tower and the contrastive heads.
	t.Ignore("vision_tower.text_model.*", "vision_tower.visual_projection.weight", "vision_tower.text_projection.weight", "vision_tower.logit_scale")

	p.Manifest.Picture = clipPicture(tower.Preprocessor, int(vision.ImageSize), t)
	c.aspect(p.Manifest.Picture, t)
	m.picture(p, t)
	c.prompt(p, r, llavaV1, t)
	return p, nil
}

// aspect is image_aspect_ratio: what is done to pictures that are no squares before CLIP's own steps.
func (c llavaAuthorsConfig) aspect(pic *manifest.Picture, t *blocks.Tensors) {
	pic.Passes = manifest.PassesByWork // the authors' processor is Pillow's
	switch c.AspectRatio {
	case "pad": // expand2square on the processor's mean colour
		pic.Recipe = "pad"
		for _, mean := range pic.Mean {
			pic.Background = append(pic.Background, int(mean*255))
		}
	case "", "square":
	default:
		t.Problem("config.json image_aspect_ratio", fmt.Sprintf("is %q; pad and square are supported", c.AspectRatio))
	}
}

// prompt is the authors' tokenizer_image_token: the texts around pictures are tokenized each by itself.
func (c llavaAuthorsConfig) prompt(p *Plan, r *Release, talk conversation, t *blocks.Tensors) {
	// The authors' code marks a picture with an id outside of the vocabulary; here it is a special token behind it.
	image := int(c.VocabSize)
	tokenizer := r.Tokenizer
	if tokenizer != nil {
		if id, found := tokenID(tokenizer, "<image>"); found {
			image = id
		} else if withImage, err := withToken(tokenizer, "<image>", image); err != nil {
			t.Problem(tokenizerFile, err.Error())
		} else {
			tokenizer = withImage
		}
	}
	if tokenizer != nil {
		if slow, err := slowPrefix(tokenizer); err != nil {
			t.Problem(tokenizerFile, err.Error())
		} else {
			tokenizer = slow
		}
	}
	p.Manifest.Tokens.Image = image
	p.Manifest.Prompt.ImageToken, p.Manifest.Prompt.Placeholder, p.Manifest.Prompt.Apart = "<image>", "<image>", true
	template := r.template()
	if template == "" {
		template = talk.template
	}
	r.addText(p, tokenizer, template, t)
}

// decodeTower reads the tower's configuration: a CLIPModel's, with the tower under vision_config, or a bare tower's.
func decodeTower(raw json.RawMessage, into *clipVision, t *blocks.Tensors) {
	var whole struct {
		VisionConfig json.RawMessage `json:"vision_config"`
	}
	if json.Unmarshal(raw, &whole) == nil && whole.VisionConfig != nil {
		raw = whole.VisionConfig
	}
	decode(raw, into, "vision_tower config.json", t)
}

var mlpProjector = regexp.MustCompile(`^mlp(\d)x_gelu$`)

// projectorLinears names the matrices of build_vision_projector: "linear" is one, "mlpNx_gelu" a Sequential in which
// every second module is the activation.
func projectorLinears(kind string, t *blocks.Tensors) []string {
	if kind == "linear" {
		if t.Has("model.mm_projector.0.weight") {
			return []string{".0"}
		}
		return []string{""}
	}
	match := mlpProjector.FindStringSubmatch(kind)
	if match == nil {
		t.Problem("config.json mm_projector_type", fmt.Sprintf("is %q; linear and mlpNx_gelu are supported", kind))
		return []string{".0", ".2"}
	}
	depth, _ := strconv.Atoi(match[1])
	var names []string
	for i := range max(depth, 1) {
		names = append(names, "."+strconv.Itoa(2*i))
	}
	return names
}

// slowPrefix returns tokenizer.json with the leading space of the slow tokenizer, which the authors' code asks for: where
// only the first stretch of a text gets one, it gets it even when it begins with a space already. Others stay as they are.
func slowPrefix(tokenizer json.RawMessage) (json.RawMessage, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(tokenizer, &doc); err != nil {
		return nil, fmt.Errorf("cannot be decoded: %w", err)
	}
	var before struct {
		Type   string `json:"type"`
		Scheme string `json:"prepend_scheme"`
	}
	if json.Unmarshal(doc["pre_tokenizer"], &before) != nil || before.Type != "Metaspace" || before.Scheme != "first" ||
		len(doc["normalizer"]) > 0 && string(doc["normalizer"]) != "null" {
		return tokenizer, nil
	}
	doc["normalizer"] = json.RawMessage(`{"type": "Replace", "pattern": {"Regex": "^ "}, "content": "  "}`)
	return json.Marshal(doc)
}

// InternVL chat models as their authors released them (OpenGVLab/InternVL, InternVLChatModel: InternVL-Chat-V1-1 to 1-5,
// InternVL 2, 2.5 and 3): the hub's model under other names, with the prompt in the authors' code.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/manifest"
)

type internVLAuthors struct{}

// internVLAuthorsConfig is InternVLChatConfig.
type internVLAuthorsConfig struct {
	TextConfig    json.RawMessage `json:"llm_config"`
	VisionConfig  json.RawMessage `json:"vision_config"`
	Downsample    float64         `json:"downsample_ratio"`
	ShuffleKind   string          `json:"ps_version"`
	SelectLayer   int64           `json:"select_layer"`
	ForceSize     *int64          `json:"force_image_size"`
	Template      string          `json:"template"`
	Dynamic       bool            `json:"dynamic_image_size"`
	Thumbnail     bool            `json:"use_thumbnail"`
	MinPatches    int             `json:"min_dynamic_patch"`
	MaxPatches    int             `json:"max_dynamic_patch"`
	PadToSquare   bool            `json:"pad2square"`
	BackboneLoRA  int             `json:"use_backbone_lora"`
	TextLoRA      int             `json:"use_llm_lora"`
	TieEmbeddings *bool           `json:"tie_word_embeddings"` // as llm_config says
	HiddenSize    json.RawMessage `json:"hidden_size"`         // repeats llm_config's
	Fold          json.RawMessage `json:"image_fold"`          // of training
	System        json.RawMessage `json:"system_message"`      // the authors' code takes the template's
}

func (internVLAuthors) Name() string                            { return "internvl (authors)" }
func (internVLAuthors) Match(h Head) bool                       { return h.Is("InternVLChatModel") }
func (internVLAuthors) Parts(json.RawMessage) map[string]string { return nil }

func (f internVLAuthors) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := internVLAuthorsConfig{Downsample: 0.5, ShuffleKind: "v1", SelectLayer: -1, MinPatches: 1, MaxPatches: 6}
	decode(r.Config, &c, "config.json", t)
	vision, ok := decodeInternViT(c.VisionConfig, "config.json vision_config", t)
	text, good := decodeLlama(c.TextConfig, "config.json llm_config", t)
	if c.ForceSize != nil {
		vision.inputSize = *c.ForceSize
		ok = within(t, "config.json force_image_size", *c.ForceSize, max(1, int64(vision.PatchSize)), 1<<13) && ok
	}
	talk, known := internConversations[c.Template]
	for _, bad := range []struct {
		is        bool
		key, what string
	}{
		{c.ShuffleKind != "v1" && c.ShuffleKind != "v2", "ps_version", fmt.Sprintf("is %q; v1 and v2 are known", c.ShuffleKind)},
		{c.PadToSquare, "pad2square", "is true, which is not supported"},
		{c.BackboneLoRA != 0, "use_backbone_lora", "is set: merge the adapters into the weights first"},
		{c.TextLoRA != 0, "use_llm_lora", "is set: merge the adapters into the weights first"},
		{!known, "template", fmt.Sprintf("is %q; internvl_zh, Hermes-2, internlm2-chat and internvl2_5 are known", c.Template)},
		{c.MinPatches < 1 || c.MaxPatches < c.MinPatches || c.MaxPatches > 1<<10, "max_dynamic_patch", fmt.Sprintf("is %d and min_dynamic_patch %d", c.MaxPatches, c.MinPatches)},
	} {
		if bad.is {
			t.Problem("config.json "+bad.key, bad.what)
			ok = false
		}
	}
	if !ok || !good {
		return nil, nil
	}
	m := internModel{family: f.Name(), vision: vision, names: internAuthors, text: text, textConfig: "config.json llm_config", downsample: c.Downsample,
		swapBack: c.ShuffleKind == "v2", select_: c.SelectLayer, act: "gelu", visionPrefix: "vision_model.", projector: "mlp1.",
		projection: [3]string{"0", "1", "3"}, textPrefix: "language_model.model.", head: "language_model.lm_head", shuffleFirst: true}
	if text.ModelType == "internlm2" {
		m.fusedText, m.head = &internLM2{}, "language_model.output"
	}
	p := m.plan(r, t, opts)
	if p == nil {
		return nil, nil
	}
	m.finish(p, c.picture(r.Preprocessor, int(vision.size()), t))
	f.prompt(p, r, talk, t)
	return p, nil
}

// picture is the authors' load_image: the picture is stretched to the tower's square, or to a grid of squares with the
// whole picture last. The processor's file gives the colours alone; its crop is never used.
func (c internVLAuthorsConfig) picture(raw json.RawMessage, size int, t *blocks.Tensors) *manifest.Picture {
	p := imageProcessor{Resample: 3, Mean: imagenetMean, Std: imagenetStd}
	if raw != nil {
		p = decodeProcessor(raw, []string{"CLIPImageProcessor", "CLIPFeatureExtractor"}, t)
	}
	pic := &manifest.Picture{Recipe: "stretch", Resample: "bicubic", Passes: manifest.PassesByWork, Height: size, Width: size, Mean: p.Mean, Std: p.Std}
	if c.Dynamic {
		pic.Recipe, pic.MinTiles, pic.MaxTiles, pic.Thumbnail = "grid", c.MinPatches, c.MaxPatches, c.Thumbnail
	}
	return pic
}

// prompt is InternVLChatModel.chat: the conversation's template, <image> as <img>, its tokens and </img>, and the
// conversation's own end of turn beside the release's.
func (internVLAuthors) prompt(p *Plan, r *Release, talk conversation, t *blocks.Tensors) {
	const context = "<IMG_CONTEXT>"
	p.Manifest.Tokens.Image = -1
	if r.Tokenizer != nil {
		for _, token := range []struct {
			name string
			use  func(id int)
		}{
			{context, func(id int) { p.Manifest.Tokens.Image = id }},
			{talk.end, func(id int) { p.Manifest.Tokens.EOS = withID(p.Manifest.Tokens.EOS, id) }},
		} {
			id, found := tokenID(r.Tokenizer, token.name)
			if !found {
				t.Problem(tokenizerFile, fmt.Sprintf("has no token %s", token.name))
				continue
			}
			token.use(id)
		}
	}
	prompt := &p.Manifest.Prompt
	prompt.Placeholder, prompt.ImageToken, prompt.Prefix, prompt.Suffix = "<image>", context, "<img>", "</img>"
	p.Manifest.Picture.Video = &manifest.Video{}
	prompt.VideoPlaceholder, prompt.FramePrefix, prompt.FrameSuffix, prompt.FrameSeparator = "<video>", "Frame{frame}: <img>", "</img>", "\n"
	r.addText(p, r.Tokenizer, talk.template, t)
}

// withID adds an id that is not there yet.
func withID(ids []int, id int) []int {
	for _, known := range ids {
		if known == id {
			return ids
		}
	}
	return append(ids, id)
}

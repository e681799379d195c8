// Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a tower that takes pictures at their own size, a patch merger, and a Qwen2 or Qwen3
// decoder whose rotary positions have a time, a row and a column (M-RoPE). Qwen3-VL also adds features of earlier blocks
// behind the decoder's first layers (deepstack).

package families

import (
	"encoding/json"
	"fmt"
	"slices"

	"glimpse/convert/blocks"
	"glimpse/manifest"
)

// qwenVL is one of the three: they differ in their towers and decoders, and in nothing else.
type qwenVL struct {
	name         string
	architecture string
	kind         qwenKind
}

var qwenVLs = []qwenVL{
	{"qwen2-vl", "Qwen2VLForConditionalGeneration", qwen2VL},
	{"qwen2.5-vl", "Qwen2_5_VLForConditionalGeneration", qwen25VL},
	{"qwen3-vl", "Qwen3VLForConditionalGeneration", qwen3VL},
}

// qwenVLConfig are the keys beside the decoder's; older saves have those of the decoder in the same object.
type qwenVLConfig struct {
	TextConfig    json.RawMessage `json:"text_config"`
	VisionConfig  json.RawMessage `json:"vision_config"`
	ImageToken    int             `json:"image_token_id"`
	VideoToken    *int            `json:"video_token_id"`
	VisionStart   *int            `json:"vision_start_token_id"`
	VisionEnd     *int            `json:"vision_end_token_id"`
	VisionToken   *int            `json:"vision_token_id"`
	TieEmbeddings *bool           `json:"tie_word_embeddings"`
}

func (f qwenVL) Name() string                          { return f.name }
func (f qwenVL) Match(h Head) bool                     { return h.Is(f.architecture) }
func (qwenVL) Parts(json.RawMessage) map[string]string { return nil }

func (f qwenVL) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := qwenVLConfig{ImageToken: 151655}
	outer, inner := f.split(r.Config, t)
	decode(outer, &c, "config.json", t)
	vision, ok := decodeQwenVision(c.VisionConfig, f.kind, t)
	text, good := f.decoder(inner, t)
	if !ok || !good {
		return nil, nil
	}
	if vision.OutHiddenSize != text.HiddenSize {
		t.Problem("config.json vision_config out_hidden_size", fmt.Sprintf("is %d and the decoder's hidden_size %d", vision.OutHiddenSize, text.HiddenSize))
	}
	if n := int64(len(vision.Deepstack)); n > text.Layers {
		t.Problem("config.json vision_config deepstack_visual_indexes", fmt.Sprintf("has %d blocks and the decoder %d layers", n, text.Layers))
		return nil, nil
	}
	text.deepstack = len(vision.Deepstack)
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: f.name, Precision: string(opts.Precision)}}
	f.components(p, t, opts, vision, text)

	p.Manifest.Decoder = text.decoder(t, "config.json")
	p.Manifest.Decoder.Positions = manifest.PositionsMRoPE
	p.Manifest.Prompt = manifest.Prompt{Expansion: "repeat", Caption: "Describe the image.", Placeholder: "<|image_pad|>", ImageToken: "<|image_pad|>"}
	r.generation(&p.Manifest, generationConfig{EOS: text.EOS, BOS: text.BOS, Pad: text.Pad}, t)
	p.Manifest.Tokens.Image = c.ImageToken
	p.Manifest.Picture = patchesPicture(r.Preprocessor, vision, t)
	f.video(r, p, c, vision, t)
	if r.Tokenizer != nil {
		if id, ok := tokenID(r.Tokenizer, p.Manifest.Prompt.ImageToken); !ok || id != c.ImageToken {
			t.Problem(tokenizerFile, fmt.Sprintf("gives the image token %q the id %d (found: %v) where config.json says %d", p.Manifest.Prompt.ImageToken, id, ok, c.ImageToken))
		}
	}
	r.addText(p, f.boxes(r.Tokenizer, p, t), r.template(), t)
	return p, nil
}

// video says what becomes of videos: patches of several frames, one after the other in the prompt or, in Qwen3-VL, each with
// its time in front.
func (f qwenVL) video(r *Release, p *Plan, c qwenVLConfig, vision qwenVision, t *blocks.Tensors) {
	picture := p.Manifest.Picture.Patches
	v := &manifest.PatchVideo{MinPixels: picture.MinPixels, MaxPixels: picture.MaxPixels, Apart: f.kind == qwen3VL, AllFrames: f.kind == qwen3VL}
	if f.kind == qwen3VL { // Qwen3VLVideoProcessor's own
		v.MinPixels, v.MaxPixels = 128*32*32, 768*32*32
	}
	if f.kind == qwen25VL {
		v.TokensPerSecond = vision.TokensPerSecond
	}
	const file = "video_preprocessor_config.json"
	if raw := r.Extra[file]; raw != nil {
		given := videoProcessor{Size: sizes{ShortestEdge: v.MinPixels, LongestEdge: v.MaxPixels}}
		decode(raw, &given, file, t)
		v.MinPixels, v.MaxPixels = given.Size.ShortestEdge, given.Size.LongestEdge
		if given.MinPixels != 0 {
			v.MinPixels = given.MinPixels
		}
		if given.MaxPixels != 0 {
			v.MaxPixels = given.MaxPixels
		}
		given.check(file, p.Manifest.Picture, t)
	}
	if v.MinPixels < 1 || v.MaxPixels < v.MinPixels {
		t.Problem(file, fmt.Sprintf("bounds a video by %d and %d pixels", v.MinPixels, v.MaxPixels))
	}
	picture.Video, p.Manifest.Picture.Video = v, &manifest.Video{}
	p.Manifest.Prompt.VideoPlaceholder, p.Manifest.Prompt.VideoToken = "<|video_pad|>", "<|video_pad|>"
	p.Manifest.Tokens.Video = 151656
	set(&p.Manifest.Tokens.Video, c.VideoToken)
	if f.kind == qwen3VL {
		p.Manifest.Prompt.FramePrefix, p.Manifest.Prompt.FrameSuffix = "<{seconds} seconds><|vision_start|>", "<|vision_end|>"
	}
}

// videoProcessor is video_preprocessor_config.json of Qwen2VLVideoProcessor and Qwen3VLVideoProcessor. How frames are chosen
// is up to the request here.
type videoProcessor struct {
	Size          sizes           `json:"size"`
	MinPixels     int             `json:"min_pixels"`
	MaxPixels     int             `json:"max_pixels"`
	PatchSize     int             `json:"patch_size"`
	Temporal      int             `json:"temporal_patch_size"`
	Merge         int             `json:"merge_size"`
	Mean          []float64       `json:"image_mean"`
	Std           []float64       `json:"image_std"`
	Resample      int             `json:"resample"`
	Kind          string          `json:"video_processor_type"`
	Processor     string          `json:"processor_class"`
	ImageKind     json.RawMessage `json:"image_processor_type"`
	FPS           json.RawMessage `json:"fps"`
	MinFrames     json.RawMessage `json:"min_frames"`
	MaxFrames     json.RawMessage `json:"max_frames"`
	Sample        json.RawMessage `json:"do_sample_frames"`
	ConvertRGB    json.RawMessage `json:"do_convert_rgb"`
	Normalize     json.RawMessage `json:"do_normalize"`
	Rescale       json.RawMessage `json:"do_rescale"`
	Resize        json.RawMessage `json:"do_resize"`
	RescaleFactor json.RawMessage `json:"rescale_factor"`
	CenterCrop    json.RawMessage `json:"do_center_crop"`
	CropSize      json.RawMessage `json:"crop_size"`
	DefaultSquare json.RawMessage `json:"default_to_square"`
	DataFormat    json.RawMessage `json:"data_format"`
	InputFormat   json.RawMessage `json:"input_data_format"`
	DeviceName    json.RawMessage `json:"device"`
	Metadata      json.RawMessage `json:"return_metadata"`
}

// check holds a video's frames to what pictures go through: one recipe does both.
func (v videoProcessor) check(file string, picture *manifest.Picture, t *blocks.Tensors) {
	for _, s := range []struct {
		key         string
		given, want int
	}{{"patch_size", v.PatchSize, picture.Patches.Size}, {"temporal_patch_size", v.Temporal, picture.Patches.Temporal}, {"merge_size", v.Merge, picture.Patches.Merge}} {
		if s.given != 0 && s.given != s.want {
			t.Problem(file+" "+s.key, fmt.Sprintf("is %d and the tower's %d", s.given, s.want))
		}
	}
	if v.Resample != 0 && resampleNames[v.Resample] != picture.Resample {
		t.Problem(file+" resample", fmt.Sprintf("is %d and pictures are resized %s", v.Resample, picture.Resample))
	}
	if v.Mean != nil && !slices.Equal(v.Mean, picture.Mean) || v.Std != nil && !slices.Equal(v.Std, picture.Std) {
		t.Problem(file+" image_mean, image_std", "are not those of pictures")
	}
}

// boxes says how the model writes boxes: between tokens in Qwen2-VL, as JSON in the others, in pixels of the resized picture
// or in thousandths. It returns the tokenizer that shows them.
func (f qwenVL) boxes(tokenizer json.RawMessage, p *Plan, t *blocks.Tensors) json.RawMessage {
	switch f.kind {
	case qwen25VL:
		p.Manifest.Boxes = &manifest.Boxes{Format: manifest.BoxesJSON}
	case qwen3VL:
		p.Manifest.Boxes = &manifest.Boxes{Format: manifest.BoxesJSON, Scale: 1000}
	default:
		marks := []string{"<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"}
		p.Manifest.Boxes = &manifest.Boxes{Format: manifest.BoxesTags, Scale: 1000, Marks: marks}
		if tokenizer == nil {
			return nil
		}
		shown, err := withPlainTokens(tokenizer, marks)
		if err != nil {
			t.Problem(tokenizerFile, err.Error())
		}
		return shown
	}
	return tokenizer
}

// withPlainTokens returns tokenizer.json with some added tokens called text instead of special, so that answers show them.
// Their ids stay.
func withPlainTokens(tokenizer json.RawMessage, names []string) (json.RawMessage, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(tokenizer, &doc); err != nil {
		return nil, fmt.Errorf("is not a JSON object: %w", err)
	}
	var added []map[string]json.RawMessage
	if err := json.Unmarshal(doc["added_tokens"], &added); err != nil {
		return nil, fmt.Errorf("added_tokens: %w", err)
	}
	for _, token := range added {
		var content string
		if json.Unmarshal(token["content"], &content) == nil && slices.Contains(names, content) {
			token["special"] = json.RawMessage("false")
		}
	}
	raw, err := json.Marshal(added)
	if err != nil {
		return nil, err
	}
	doc["added_tokens"] = raw
	return json.Marshal(doc)
}

// components adds the graphs. Saves of transformers 5 have the tower and the decoder side by side below "model.".
func (f qwenVL) components(p *Plan, t *blocks.Tensors, opts Options, vision qwenVision, text llamaConfig) {
	tower, decoder := "visual.", "model."
	if f.kind == qwen3VL || t.Elements("model.language_model.") > 0 {
		tower, decoder = "model.visual.", "model.language_model."
	}
	add := func(name string, role blocks.Role, prefix string, layers int64, build func(b *blocks.Builder)) {
		b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
		build(b)
		p.Components = append(p.Components, &Component{name, b})
	}
	add("vision", blocks.Vision, tower, vision.Depth, func(b *blocks.Builder) { vision.build(b, tower) })
	add("connector", blocks.Connector, tower+"merger.", 0, func(b *blocks.Builder) { vision.buildMerger(b, tower) })
	add("decoder", blocks.Decoder, decoder, text.Layers, func(b *blocks.Builder) { text.build(b, decoder, "lm_head") })
	t.Shared(decoder+"embed_tokens.weight", text.VocabSize, text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: decoder + "embed_tokens.weight", Rows: text.VocabSize, Hidden: text.HiddenSize, Scale: 1}
}

// split parts config.json into the keys of qwenVLConfig and the decoder's configuration, wherever that lies.
func (f qwenVL) split(config json.RawMessage, t *blocks.Tensors) (outer, inner json.RawMessage) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(config, &keys); err != nil {
		t.Problem("config.json", fmt.Sprintf("is not a JSON object: %v", err))
		return json.RawMessage("{}"), json.RawMessage("{}")
	}
	if nested, ok := keys["text_config"]; ok {
		return config, nested
	}
	around, text := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	for k, v := range keys {
		switch k {
		case "vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id":
			around[k] = v
		default:
			text[k] = v
		}
	}
	return marshalObject(around), marshalObject(text)
}

// Defaults of Qwen2VLTextConfig, Qwen2_5_VLTextConfig and Qwen3VLTextConfig that differ from those of the decoders alone.
const (
	qwen2TextDefaults = `{"vocab_size":152064,"hidden_size":8192,"intermediate_size":29568,"num_hidden_layers":80,"num_attention_heads":64,
		"num_key_value_heads":8,"max_position_embeddings":32768,"rms_norm_eps":1e-5,"rope_theta":1000000,"max_window_layers":80,"use_sliding_window":false}`
	qwen3TextDefaults = `{"vocab_size":151936,"hidden_size":4096,"intermediate_size":22016,"num_hidden_layers":32,"num_attention_heads":32,
		"num_key_value_heads":32,"max_position_embeddings":128000,"rms_norm_eps":1e-6,"rope_theta":500000,"head_dim":128}`
)

// decoder reads the decoder's configuration.
func (f qwenVL) decoder(raw json.RawMessage, t *blocks.Tensors) (llamaConfig, bool) {
	defaults, class := qwen2TextDefaults, `"qwen2"`
	if f.kind == qwen3VL {
		defaults, class = qwen3TextDefaults, `"qwen3"`
	}
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(defaults), &keys); err != nil {
		panic("families: the decoder's defaults are no JSON: " + err.Error())
	}
	if err := json.Unmarshal(raw, &keys); err != nil {
		t.Problem("config.json text_config", fmt.Sprintf("is not a JSON object: %v", err))
		return llamaConfig{}, false
	}
	keys["model_type"] = json.RawMessage(class)
	c, ok := decodeLlama(marshalObject(keys), "config.json", t)
	if !ok {
		return c, false
	}
	c.packedRope = true
	scaling := c.RopeScaling
	if scaling == nil {
		scaling = c.RopeParameters
	}
	if scaling == nil || len(scaling.Sections) != 3 {
		t.Problem("config.json rope_scaling mrope_section", "is missing: three sections of the rotary frequencies are due")
		return c, false
	}
	if sum := int64(scaling.Sections[0] + scaling.Sections[1] + scaling.Sections[2]); 2*sum != c.cache().RopeDim {
		t.Problem("config.json rope_scaling mrope_section", fmt.Sprintf("is %v, which does not add up to half of head_dim %d", scaling.Sections, c.headDim()))
		return c, false
	}
	return c, true
}

// marshalObject cannot fail: its values came out of JSON.
func marshalObject(keys map[string]json.RawMessage) json.RawMessage {
	raw, err := json.Marshal(keys)
	if err != nil {
		panic("families: " + err.Error())
	}
	return raw
}

// patchesPicture is Qwen2VLImageProcessor: both sides to multiples of a merged patch, within bounds of the area, whose
// names in newer files are those of edges.
func patchesPicture(raw json.RawMessage, vision qwenVision, t *blocks.Tensors) *manifest.Picture {
	p := decodeProcessor(raw, []string{"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"}, t)
	patches := &manifest.Patches{Size: int(vision.PatchSize), Merge: int(vision.Merge), Temporal: int(vision.Temporal), HeadDim: int(vision.headDim()),
		MinPixels: 56 * 56, MaxPixels: 28 * 28 * 1280}
	if vision.kind == qwen25VL {
		patches.Window = int(vision.Window)
	}
	if vision.kind == qwen3VL {
		patches.PositionGrid = int(vision.grid())
	}
	for _, v := range []struct {
		to    *int
		given []int
	}{{&patches.MinPixels, []int{p.Size.ShortestEdge, p.MinPixels}}, {&patches.MaxPixels, []int{p.Size.LongestEdge, p.MaxPixels}}} {
		for _, n := range v.given {
			if n != 0 {
				*v.to = n
			}
		}
	}
	for _, v := range []struct {
		key         string
		given, want int
	}{{"patch_size", p.PatchSize, patches.Size}, {"merge_size", p.MergeSize, patches.Merge}, {"temporal_patch_size", p.TemporalPatch, patches.Temporal}} {
		if v.given != 0 && v.given != v.want {
			t.Problem(processorFile+" "+v.key, fmt.Sprintf("is %d and the tower's %d", v.given, v.want))
		}
	}
	if patches.MinPixels < 1 || patches.MaxPixels < patches.MinPixels {
		t.Problem(processorFile, fmt.Sprintf("bounds a picture by %d and %d pixels", patches.MinPixels, patches.MaxPixels))
	}
	return &manifest.Picture{Recipe: manifest.RecipePatches, Resample: resampleNames[p.Resample], Patches: patches,
		Stages: []string{"vision", "connector"}, Features: "projected", Mean: p.Mean, Std: p.Std}
}

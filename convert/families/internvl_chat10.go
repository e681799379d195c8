// InternVL-Chat 1.0 (OpenGVLab/InternVL, internvl_chat_llava): the authors' LLaVA with an InternViT in the place of CLIP. The
// tower is a release of its own, and runs at a size that its name says.

package families

import (
	"encoding/json"
	"strings"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type internChat10 struct{}

// plan is called by the authors' LLaVA once the tower is known; ok is what it thinks of the configuration.
func (internChat10) plan(r *Release, c llavaAuthorsConfig, ok bool, t *blocks.Tensors, opts Options) (*Plan, error) {
	tower := r.Parts[towerPart]
	vision, good := decodeInternViT(tower.Config, "vision_tower config.json", t)
	if !ok || !good {
		return nil, nil
	}
	// CLIPVisionTower of the authors' code: the size is in the name, whatever the tower's files say.
	vision.inputSize = 336
	if strings.Contains(c.Tower, "448") {
		vision.inputSize = 448
	}
	state := c.SelectLayer
	if state < 0 {
		state += vision.Layers + 1
	}
	if !within(t, "config.json mm_vision_select_layer", state, 0, vision.Layers) {
		return nil, nil
	}
	if c.SelectFeature != "patch" {
		t.Problem("config.json mm_vision_select_feature", "is not patch, which this tower's features are")
	}
	prefix := towerPart + "."
	m := llavaModel{
		family: "internvl-chat-1.0", text: c.llamaConfig, act: "gelu", bias: true, visionPrefix: prefix,
		projectorPrefix: "model.mm_projector", linears: projectorLinears(c.Projector, t), textPrefix: "model.", head: "lm_head",
		towerTokens: vision.tokens() - 1,
		tower: func(b *blocks.Builder) int64 {
			h, n, size := vision.HiddenSize, vision.tokens(), onnx.Fixed(vision.size())
			pixels := b.Input("pixel_values", onnx.Float, onnx.Free("tiles"), onnx.Fixed(3), size, size)
			x := b.Op("Reshape", []*onnx.Value{vision.build(b, prefix, internAuthors, pixels, state), b.Ints1(-1, n, h)})
			x = b.Op("Slice", []*onnx.Value{x, b.Ints1(1), b.Ints1(n), b.Ints1(1)}) // without the class token
			b.Output("vision_features", x, onnx.Float, onnx.Free("tiles"), onnx.Fixed(n-1), onnx.Fixed(h))
			return h
		},
	}
	m.vision.Layers = vision.Layers
	p := m.plan(r, t, opts)
	p.Manifest.Picture = internChat10{}.picture(tower.Preprocessor, int(vision.size()), t)
	c.aspect(p.Manifest.Picture, t)
	m.picture(p, t)
	c.prompt(p, r, vicunaV1, t)
	return p, nil
}

// picture is CLIPImageProcessor with the tower's colours and the size of the input.
func (internChat10) picture(raw json.RawMessage, size int, t *blocks.Tensors) *manifest.Picture {
	p := imageProcessor{Resample: 3, Mean: imagenetMean, Std: imagenetStd}
	if raw != nil {
		p = decodeProcessor(raw, []string{"CLIPImageProcessor", "CLIPFeatureExtractor"}, t)
	}
	return &manifest.Picture{Recipe: "clip", Resample: resampleNames[p.Resample], Height: size, Width: size, ShortEdge: size,
		CropHeight: size, CropWidth: size, Mean: p.Mean, Std: p.Std}
}

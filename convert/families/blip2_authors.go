// BLIP-2 as its authors released it (salesforce/LAVIS): eva_vit_g.pth, a Q-Former file (blip2_pretrained_*.pth) and the
// language model's own folder (flan-t5 or OPT), put together by a .toml of pieces. The tensors are those of the hub's
// release under other names, so the plan is the hub's over a renamed checkpoint.

package families

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"glimpse/convert/blocks"
)

type blip2Authors struct{}

// The parts beside the language model's folder.
const (
	evaPart     = "vision"
	qformerPart = "qformer"
)

func (blip2Authors) Name() string { return "blip-2 (authors)" }
func (blip2Authors) Match(h Head) bool {
	return h.Has(qformerPart) && (h.Is("T5ForConditionalGeneration") || h.Is("OPTForCausalLM"))
}
func (blip2Authors) Parts(json.RawMessage) map[string]string {
	return map[string]string{evaPart: "eva_vit_g.pth", qformerPart: "blip2_pretrained_flant5xxl.pth"}
}

// lavisRule renames what matches; the first rule that does is the only one.
type lavisRule struct {
	match *regexp.Regexp
	to    string
}

// lavisRules lead from LAVIS' names, with the part's name in front, to the hub's.
var lavisRules = []lavisRule{
	{regexp.MustCompile(`^vision\.cls_token$`), "vision_model.embeddings.class_embedding"},
	{regexp.MustCompile(`^vision\.pos_embed$`), "vision_model.embeddings.position_embedding"},
	{regexp.MustCompile(`^vision\.patch_embed\.proj\.`), "vision_model.embeddings.patch_embedding."},
	{regexp.MustCompile(`^vision\.blocks\.(\d+)\.attn\.proj\.`), "vision_model.encoder.layers.$1.self_attn.projection."},
	{regexp.MustCompile(`^vision\.blocks\.(\d+)\.attn\.`), "vision_model.encoder.layers.$1.self_attn."},
	{regexp.MustCompile(`^vision\.blocks\.(\d+)\.norm([12])\.`), "vision_model.encoder.layers.$1.layer_norm$2."},
	{regexp.MustCompile(`^vision\.blocks\.(\d+)\.`), "vision_model.encoder.layers.$1."},
	{regexp.MustCompile(`^qformer\.query_tokens$`), "query_tokens"},
	{regexp.MustCompile(`^qformer\.ln_vision\.`), "vision_model.post_layernorm."},
	{regexp.MustCompile(`^qformer\.Qformer\.bert\.embeddings\.LayerNorm\.`), "qformer.layernorm."},
	{regexp.MustCompile(`^qformer\.Qformer\.bert\.(.*)attention\.self\.`), "qformer.${1}attention.attention."},
	{regexp.MustCompile(`^qformer\.Qformer\.bert\.`), "qformer."},
	{regexp.MustCompile(`^qformer\.(t5|opt)_proj\.`), "language_projection."},
	{regexp.MustCompile(`^vision\.`), "vision."}, // norm and head, which nothing runs
	{regexp.MustCompile(`^qformer\.`), "qformer."},
	{regexp.MustCompile(`^`), "language_model."},
}

// lavisToHub renames a tensor of the merged pieces.
func lavisToHub(name string) string {
	for _, r := range lavisRules {
		if r.match.MatchString(name) {
			return r.match.ReplaceAllString(name, r.to)
		}
	}
	return name
}

func (f blip2Authors) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	t.Rename(lavisToHub)
	for name := range r.Options {
		if !strings.Contains(" vision_layers vision_heads qformer_heads ", " "+name+" ") {
			t.Problem("options."+name, "is not known; there are vision_layers, vision_heads and qformer_heads")
		}
	}
	config, err := f.config(r, t)
	if err != nil {
		return nil, err
	}
	hub := *r
	hub.Config = config
	hub.Preprocessor = nil // LAVIS' processors are code: square, bicubic, CLIP's mean and deviation
	// The norm and the head of the file, its block behind the last that runs, and BERT's constant positions.
	t.Ignore("vision.norm.*", "vision.head.*", "qformer.embeddings.position_ids", "qformer.cls.*", "qformer.itm_head.*")
	layers := f.visionLayers(r, t)
	t.Ignore(fmt.Sprintf("vision_model.encoder.layers.%d.*", layers))
	p, err := blip2{}.planWith(&hub, t, opts, func(v *evaVision) { v.finalEps = 1e-5 }) // LAVIS' LayerNorm keeps torch's default
	if p != nil {
		p.Manifest.Family = f.Name()
	}
	return p, err
}

// visionLayers: create_eva_vit_g runs 39 blocks of a file that holds one more.
func (blip2Authors) visionLayers(r *Release, t *blocks.Tensors) int64 {
	if n, ok := r.Options["vision_layers"]; ok {
		return n
	}
	n := int64(0)
	for t.Has(fmt.Sprintf("vision_model.encoder.layers.%d.layer_norm1.weight", n)) && n < 1<<10 {
		n++
	}
	return min(n, 39)
}

// config writes the sizes that LAVIS leaves to its code as the hub's configuration: from the tensors' shapes, and the
// heads, which no shape tells, from what ViT-g and BERT have or from the options.
func (f blip2Authors) config(r *Release, t *blocks.Tensors) (json.RawMessage, error) {
	option := func(name string, otherwise int64) int64 {
		if n, ok := r.Options[name]; ok {
			return n
		}
		return otherwise
	}
	const eva, former = "vision_model.", "qformer.encoder.layer."
	hidden, patch := t.Dim(eva+"embeddings.class_embedding", 2), t.Dim(eva+"embeddings.patch_embedding.weight", 2)
	grid := int64(0)
	for grid*grid < t.Dim(eva+"embeddings.position_embedding", 1)-1 && grid < 1<<10 {
		grid++
	}
	width := t.Dim("query_tokens", 2)
	layers := int64(0)
	for t.Has(fmt.Sprintf("%s%d.attention.attention.query.weight", former, layers)) && layers < 1<<10 {
		layers++
	}
	return json.Marshal(map[string]any{
		"architectures": []string{"Blip2ForConditionalGeneration"}, "model_type": "blip-2", "num_query_tokens": t.Dim("query_tokens", 1),
		"vision_config": map[string]any{"hidden_size": hidden, "intermediate_size": t.Dim(eva+"encoder.layers.0.mlp.fc1.weight", 0),
			"num_hidden_layers": f.visionLayers(r, t), "num_attention_heads": option("vision_heads", hidden/88), "patch_size": patch, "image_size": grid * patch},
		"qformer_config": map[string]any{"hidden_size": width, "intermediate_size": t.Dim(former+"0.intermediate_query.dense.weight", 0),
			"num_hidden_layers": layers, "num_attention_heads": option("qformer_heads", width/64), "encoder_hidden_size": hidden},
		"text_config": r.Config,
	})
}

// Package families holds one file for each model family. A family reads like the model's own forward pass: it decodes
// its configuration strictly, claims every tensor of the checkpoint, and builds one graph a component.
//
// Planning is pure: no weights are read, no clock and no randomness are used, so a plan can be made from a
// configuration and a tensor list alone. Everything that cannot be placed is listed at once.
package families

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"glimpse/convert/blocks"
	"glimpse/manifest"
)

// Release is what a checkpoint says about itself besides its weights. Files that the release lacks are nil.
type Release struct {
	Name             string // base name of the checkpoint
	Config           json.RawMessage
	Preprocessor     json.RawMessage // preprocessor_config.json
	Processor        json.RawMessage // processor_config.json
	Generation       json.RawMessage // generation_config.json
	TokenizerConfig  json.RawMessage // tokenizer_config.json
	SpecialTokensMap json.RawMessage // special_tokens_map.json
	Tokenizer        json.RawMessage // tokenizer.json
	ChatTemplate     string          // chat_template.jinja, or the text inside chat_template.json
	// Extra are further files that families ask for by their paths in the release (a second tokenizer).
	Extra map[string]json.RawMessage
	// Parts are the other checkpoints that the release refers to (a vision tower kept elsewhere), by the name under
	// which their tensors appear with "NAME." in front.
	Parts map[string]*Release
	// Options are the sizes that a release in pieces leaves to its code (heads, layers); a .toml of pieces gives them.
	Options map[string]int64
	// PlanOnly says that nothing will run: a missing tokenizer is then no problem.
	PlanOnly bool
}

// Component is one graph of the plan.
type Component struct {
	Name    string
	Builder *blocks.Builder
}

// File is a file of the model folder that is written as it is.
type File struct {
	Name    string
	Content []byte
}

// Embeddings is the token table, copied in the dtype it is stored in.
type Embeddings struct {
	Tensor string
	Rows   int64
	Hidden int64
	Scale  float64
}

// Plan is a model folder that is ready to be written. Manifest has everything but the sizes and hashes of files.
type Plan struct {
	Manifest   manifest.Manifest
	Components []*Component
	Embeddings *Embeddings
	Files      []File
}

// Options are what the user chose.
type Options struct {
	Precision blocks.Precision
	Guide     blocks.Guide
}

// Family converts one kind of model.
type Family interface {
	// Name is the family's short name, as manifests and docs show it.
	Name() string
	// Match reports whether the configuration belongs to the family.
	Match(head Head) bool
	// Parts names the other checkpoints that this release needs: part name → how the configuration refers to it.
	Parts(config json.RawMessage) map[string]string
	// Plan builds the graphs. It notes whatever it cannot place as problems of tensors and returns the plan all the
	// same, so that every problem is listed.
	Plan(release *Release, tensors *blocks.Tensors, opts Options) (*Plan, error)
}

// PartChooser is a Family whose parts depend on which of them are given.
type PartChooser interface {
	PartsFor(head Head) map[string]string
}

// PartsOf names the other checkpoints that a release of the family needs.
func PartsOf(f Family, head Head, config json.RawMessage) map[string]string {
	if c, ok := f.(PartChooser); ok {
		return c.PartsFor(head)
	}
	return f.Parts(config)
}

// Head is what families are told apart by.
type Head struct {
	ModelType     string   `json:"model_type"`
	Architectures []string `json:"architectures"`
	Given         []string `json:"-"` // names of the parts that a .toml of pieces gives
}

// Has reports whether a .toml of pieces gives the part.
func (h Head) Has(part string) bool { return slices.Contains(h.Given, part) }

// Is reports whether the configuration names the architecture.
func (h Head) Is(architecture string) bool {
	for _, a := range h.Architectures {
		if a == architecture {
			return true
		}
	}
	return false
}

// all lists the families; a new one is added here and nowhere else.
var all = []Family{blip2Authors{}, videoLLaMA{}, llava15{}, llava15Authors{}, blip2{}, blip2Retrieval{}, instructBLIP{}, internVL{}, internVLAuthors{}, llavaNext{}, llavaOneVision{}, smolVLM{}, gemma3{}, internVL14B{},
	qwenVLs[0], qwenVLs[1], qwenVLs[2], qwenOriginal{}}

// UnknownError says that no family takes a configuration.
type UnknownError struct{ Head Head }

func (e *UnknownError) Error() string {
	known := make([]string, len(all))
	for i, f := range all {
		known[i] = f.Name()
	}
	sort.Strings(known)
	return fmt.Sprintf("architecture %q (model_type %q) is not supported; supported families: %s",
		strings.Join(e.Head.Architectures, ", "), e.Head.ModelType, strings.Join(known, ", "))
}

// Find returns the family that a config.json belongs to. given are the names of the parts that come with it.
func Find(config json.RawMessage, given ...string) (Family, Head, error) {
	head := Head{Given: given}
	if err := json.Unmarshal(config, &head); err != nil {
		return nil, head, fmt.Errorf("read config.json: %w", err)
	}
	for _, f := range all {
		if f.Match(head) {
			return f, head, nil
		}
	}
	return nil, head, &UnknownError{head}
}

// Names lists the supported families.
func Names() []string {
	names := make([]string, len(all))
	for i, f := range all {
		names[i] = f.Name()
	}
	return names
}

// Reading, checking and writing model.toml.

package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFileBytes bounds model.toml: real ones are a few KiB.
const maxFileBytes = 4 << 20

// Read reads and checks folder/model.toml. Every problem found is in the one error.
func Read(folder string) (*Manifest, error) {
	path := filepath.Join(folder, FileName)
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s is not a model folder: it has no %s (make one with `glimpse convert CHECKPOINT -o %s`): %w", folder, FileName, folder, err)
		}
		return nil, fmt.Errorf("open model folder: %w", err)
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("read %s: %d bytes, more than the %d a manifest may have", path, info.Size(), maxFileBytes)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	m, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return m, nil
}

// Parse decodes and checks a manifest.
func Parse(raw []byte) (*Manifest, error) {
	var head struct {
		FormatVersion int `toml:"format_version"`
	}
	if _, err := toml.Decode(string(raw), &head); err != nil {
		return nil, err
	}
	// The version is judged before the keys, so that a newer folder is called newer and not malformed.
	if head.FormatVersion != FormatVersion {
		return nil, fmt.Errorf("format_version is %d and this glimpse reads %d: convert the checkpoint again", head.FormatVersion, FormatVersion)
	}
	var m Manifest
	meta, err := toml.Decode(string(raw), &m)
	if err != nil {
		return nil, err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		names := make([]string, len(unknown))
		for i, k := range unknown {
			names[i] = k.String()
		}
		return nil, fmt.Errorf("unknown keys: %s", strings.Join(names, ", "))
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return &m, nil
}

// Encode returns the manifest as TOML. Equal manifests give equal bytes.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	var buf bytes.Buffer
	enc := toml.NewEncoder(&buf)
	enc.Indent = ""
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return buf.Bytes(), nil
}

// Validate checks what a reader relies on and lists every problem at once.
func (m *Manifest) Validate() error {
	var p problems
	p.check(m.FormatVersion == FormatVersion, "format_version is %d, not %d", m.FormatVersion, FormatVersion)
	p.check(len(m.Components) > 0, "no components")
	for name, c := range m.Components {
		p.file("components."+name+".file", c.File, true)
		p.file("components."+name+".data", c.Data, false)
		for _, port := range slices.Concat(c.Inputs, c.Outputs) {
			p.check(port.Name != "", "components.%s has a port without a name", name)
			p.check(slices.Contains([]string{"float32", "float16", "int64", "int32"}, port.DType),
				"components.%s port %s has dtype %q", name, port.Name, port.DType)
		}
	}
	p.check(m.Target == "" || m.Target == TargetCUDA, "target is %q; known is %q", m.Target, TargetCUDA)
	m.validatePicture(&p)
	m.validateAudio(&p)
	m.validateDecoder(&p)
	m.validateInstruction(&p)
	m.validateScoring(&p)
	m.validateBoxes(&p)
	p.file("prompt.template", m.Prompt.Template, false)
	p.check(!m.Prompt.Named || m.Prompt.Prefix != "" && m.Prompt.Suffix != "" && m.Prompt.Placeholder == m.Prompt.Prefix+m.Prompt.Suffix,
		"prompt.named is set, and prompt.placeholder is %q, not %q and %q with a name between", m.Prompt.Placeholder, m.Prompt.Prefix, m.Prompt.Suffix)
	return p.err()
}

func (m *Manifest) validatePicture(p *problems) {
	pic := m.Picture
	if pic == nil {
		return
	}
	p.check(pic.Recipe != "", "picture.recipe is empty")
	p.check(len(pic.Stages) > 0, "picture.stages is empty")
	m.stages(p, "picture.stages", pic.Stages)
	p.check(pic.Features != "" || m.Decoder == nil, "picture.features is empty and there is a decoder that reads them")
	p.check(pic.Features == "" || m.makes(pic.Stages, pic.Features), "picture.features is %q, which none of picture.stages makes", pic.Features)
	m.validatePatches(p)
	p.check(pic.Passes == "" || pic.Passes == PassesByWork, "picture.passes is %q; known is %q", pic.Passes, PassesByWork)
	p.check(pic.Newline == "" || m.makes(pic.Stages, pic.Newline), "picture.newline is %q, which none of picture.stages makes", pic.Newline)
	if v := pic.Video; v != nil {
		p.within("picture.video.pool", v.Pool, 0, 1<<10)
		p.check(m.Prompt.VideoPlaceholder != "", "picture.video is there and prompt.video_placeholder is empty")
		p.within("picture.video.frames", v.Frames, 0, 1<<12)
		p.within("picture.video.max_frames", v.MaxFrames, 0, 1<<12)
		p.check(v.MaxFrames == 0 || v.Frames <= v.MaxFrames, "picture.video.frames is %d and picture.video.max_frames %d", v.Frames, v.MaxFrames)
		p.check(v.Scaler == "" || v.Scaler == "swscale", "picture.video.scaler is %q; known is swscale", v.Scaler)
		p.check(!v.EndNewline || pic.Newline != "", "picture.video.end_newline is set and picture.newline is empty")
	}
	p.check(pic.Video != nil || m.Prompt.VideoPlaceholder == "", "prompt.video_placeholder is %q and there is no picture.video", m.Prompt.VideoPlaceholder)
	if pic.Patches == nil { // otherwise all three follow from each picture's size
		p.within("picture.height", pic.Height, 1, 1<<14)
		p.within("picture.width", pic.Width, 1, 1<<14)
		p.within("picture.tokens_per_tile", pic.TokensPerTile, 1, 1<<20)
	}
	p.check(len(pic.Mean) == 3 && len(pic.Std) == 3, "picture.mean and picture.std need three values each")
	for _, s := range pic.Std {
		p.check(s > 0, "picture.std has %v; it must be positive", s)
	}
}

func (m *Manifest) validateDecoder(p *problems) {
	d := m.Decoder
	if d == nil {
		return
	}
	_, ok := m.Components[d.Component]
	p.check(ok, "decoder.component names %q, which is not a component", d.Component)
	if d.Prefill != "" {
		_, ok := m.Components[d.Prefill]
		p.check(ok, "decoder.prefill names %q, which is not a component", d.Prefill)
	}
	p.within("decoder.layers", d.Layers, 1, 1<<12)
	p.within("decoder.hidden_size", d.HiddenSize, 1, 1<<20)
	p.within("decoder.heads", d.Heads, 1, 1<<12)
	p.within("decoder.kv_heads", d.KVHeads, 1, 1<<12)
	p.within("decoder.head_dim", d.HeadDim, 1, 1<<12)
	p.within("decoder.vocab_size", d.VocabSize, 1, 1<<24)
	p.within("decoder.max_positions", d.MaxPositions, 1, 1<<24)
	p.check(slices.Contains([]string{"float32", "float16"}, d.CacheDType), "decoder.cache_dtype is %q; known are float32 and float16", d.CacheDType)
	if d.Rope != nil {
		p.within("decoder.rope.dim", d.Rope.Dim, 2, d.HeadDim)
		p.check(d.Rope.Theta > 0, "decoder.rope.theta is %v", d.Rope.Theta)
	}
	if d.RopeLocal != nil {
		p.check(d.Rope != nil, "decoder.rope_local is set without decoder.rope")
		p.within("decoder.rope_local.dim", d.RopeLocal.Dim, 2, d.HeadDim)
		p.check(d.RopeLocal.Theta > 0, "decoder.rope_local.theta is %v", d.RopeLocal.Theta)
	}
	m.validateMRoPE(p)
	if m.Embeddings == nil {
		p.check(false, "a decoder needs embeddings")
		return
	}
	e := m.Embeddings
	p.file("embeddings.file", e.File, true)
	p.within("embeddings.rows", e.Rows, 1, 1<<24)
	p.check(e.HiddenSize == d.HiddenSize, "embeddings.hidden_size is %d and decoder.hidden_size %d", e.HiddenSize, d.HiddenSize)
	p.check(slices.Contains([]string{"float32", "float16", "bfloat16"}, e.DType), "embeddings.dtype is %q", e.DType)
	if enc := d.Encoder; enc != nil {
		m.stages(p, "decoder.encoder.component", []string{enc.Component})
		p.within("decoder.encoder.start_token", enc.StartToken, 0, e.Rows-1)
		p.within("decoder.encoder.max_positions", enc.MaxPositions, 1, 1<<24)
		p.check(d.MaxPositions > 1, "decoder.max_positions is %d and the start token takes one", d.MaxPositions)
	}
}

// problems collects what is wrong with a manifest.
type problems struct{ list []error }

func (p *problems) check(ok bool, format string, args ...any) {
	if !ok {
		p.list = append(p.list, fmt.Errorf(format, args...))
	}
}

func (p *problems) within(key string, v, low, high int) {
	p.check(v >= low && v <= high, "%s is %d; it must lie in %d..%d", key, v, low, high)
}

// file checks that name stays inside the folder: manifests travel, and may be hostile.
func (p *problems) file(key, name string, required bool) {
	if name == "" {
		p.check(!required, "%s is empty", key)
		return
	}
	p.check(filepath.IsLocal(name), "%s is %q, which leaves the model folder", key, name)
}

func (p *problems) err() error { return errors.Join(p.list...) }

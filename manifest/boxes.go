// Boxes in answers.

package manifest

import "slices"

// Formats of boxes in an answer's text.
const (
	BoxesTags = "tags" // <ref>label</ref><box>(x1,y1),(x2,y2)</box>, <quad>
	BoxesJSON = "json" // [{"bbox_2d": [x1, y1, x2, y2], "label": "…"}, …], mostly in a fenced block
)

// RopePromptNTK is a Rope.Type: theta grows by α^(dim/(dim−2)) with α = 2^⌈log₂(prompt ÷ original_max_positions) + 1⌉ − 1, at
// least 1, where prompt is the length of the prompt, whatever follows.
const RopePromptNTK = "prompt_ntk"

// PassesByWork is a value of Picture.Passes.
const PassesByWork = "work"

// Boxes says how boxes stand in answers.
type Boxes struct {
	Format string `toml:"format"`
	// Scale is the width and height that coordinates are counted in, whatever the picture's; 0: they are pixels of the
	// picture as it was resized.
	Scale int `toml:"scale,omitzero"`
	// Marks are, for tags, what begins and ends a label, a box and a quadrangle; empty: <ref>, </ref>, <box>, </box>, <quad>, </quad>.
	Marks []string `toml:"marks,omitempty"`
}

func (m *Manifest) validateBoxes(p *problems) {
	b := m.Boxes
	if b == nil {
		return
	}
	p.check(b.Format == BoxesTags || b.Format == BoxesJSON, "boxes.format is %q; known are %s and %s", b.Format, BoxesTags, BoxesJSON)
	p.check(len(b.Marks) == 0 || b.Format == BoxesTags && len(b.Marks) == 6 && !slices.Contains(b.Marks, ""), "boxes.marks has %d texts; six are due, for tags alone", len(b.Marks))
	p.within("boxes.scale", b.Scale, 0, 1<<20)
	p.check(m.Picture != nil, "boxes are set, and there is no picture")
}

package preprocess

import (
	"errors"
	"fmt"
	"math"

	"glimpse/manifest"
)

// Positions of models whose pictures have rows and columns (M-RoPE: Wang et al. 2024, "Qwen2-VL", section 2.1).

// Position is a token's place in time, and its row and column. A text token has the same number three times.
type Position struct{ Time, Row, Column int32 }

// at is the position that all three axes share.
func at(n int32) Position { return Position{n, n, n} }

// TokenMap is the grid of tokens of a picture or video. A video has Steps of them in time, and Interval is what a step adds to
// the time; pictures have neither.
type TokenMap struct {
	Grid
	Steps    int
	Interval float64
}

// tokens counts the map's tokens, and end is where text goes on behind it, counted from where it began: behind the largest of
// time, rows and columns.
func (m TokenMap) tokens() int { return m.Tiles() * max(m.Steps, 1) }
func (m TokenMap) end() int32 {
	return max(m.time(max(m.Steps, 1)-1)+1, int32(m.Columns), int32(m.Rows))
}

func (m TokenMap) time(step int) int32 { return int32(min(float64(step)*m.Interval, math.MaxInt32/4)) }

// Positions returns the position of each token of a prompt, and the number that a later token's place in the sequence is
// moved by. isPicture tells picture tokens from text, and maps are the pictures' and videos' grids of tokens, in their order.
// It is get_rope_index of Qwen2VLModel and its successors: text counts on, a picture's tokens are rows and columns from where
// the text stood, and text goes on behind the larger of both.
func Positions(ids []int32, isPicture func(id int32) bool, maps []TokenMap) (positions []Position, delta int32, err error) {
	positions = make([]Position, 0, len(ids))
	next := int32(0)
	for i := 0; i < len(ids); {
		if !isPicture(ids[i]) {
			positions = append(positions, at(next))
			next++
			i++
			continue
		}
		if len(maps) == 0 {
			return nil, 0, fmt.Errorf("position token %d of the prompt: it belongs to a picture, and there are no more", i)
		}
		m := maps[0]
		maps = maps[1:]
		if m.Columns < 1 || m.Rows < 1 || m.Tiles() > len(ids)-i || m.tokens() > len(ids)-i {
			return nil, 0, fmt.Errorf("position token %d of the prompt: its picture has %d×%d tokens and the prompt %d from there", i, m.Columns, m.Rows, len(ids)-i)
		}
		for n := range m.tokens() {
			if !isPicture(ids[i+n]) {
				return nil, 0, fmt.Errorf("position token %d of the prompt: it is text within the %d tokens of a picture", i+n, m.tokens())
			}
			within := n % m.Tiles()
			positions = append(positions, Position{next + m.time(n/m.Tiles()), next + int32(within/m.Columns), next + int32(within%m.Columns)})
		}
		i += m.tokens()
		next += m.end()
	}
	if len(maps) > 0 {
		return nil, 0, fmt.Errorf("position the prompt: %d pictures have no tokens in it", len(maps))
	}
	return positions, next - int32(len(ids)), nil
}

// MRoPE computes rows of rotary tables for positions with three axes. It is immutable.
type MRoPE struct {
	frequencies []float32
	axis        []uint8 // which axis each frequency turns with: 0 time, 1 row, 2 column
	factor      float32
}

// NewMRoPE prepares the frequencies of a rotary embedding with sections.
func NewMRoPE(r manifest.Rope) (*MRoPE, error) {
	frequencies, factor, err := ropeFrequencies(r, 0)
	if err != nil {
		return nil, fmt.Errorf("rotary tables: %w", err)
	}
	if len(r.Sections) != 3 || r.Sections[0]+r.Sections[1]+r.Sections[2] != len(frequencies) || min(r.Sections[0], r.Sections[1], r.Sections[2]) < 0 {
		return nil, fmt.Errorf("rotary tables: sections %v do not share out %d frequencies among time, rows and columns", r.Sections, len(frequencies))
	}
	if r.Type == "dynamic" {
		return nil, errors.New("rotary tables: dynamic scaling and three axes are not supported together")
	}
	m := &MRoPE{frequencies, make([]uint8, len(frequencies)), factor}
	for i := range m.axis {
		switch {
		case r.Interleaved:
			if a := i % 3; a > 0 && i < 3*r.Sections[a] {
				m.axis[i] = uint8(a)
			}
		case i >= r.Sections[0]+r.Sections[1]:
			m.axis[i] = 2
		case i >= r.Sections[0]:
			m.axis[i] = 1
		}
	}
	return m, nil
}

// Row writes cos and sin of one position, Dim/2 values each.
func (m *MRoPE) Row(cos, sin []float32, p Position) {
	axes := [3]int32{p.Time, p.Row, p.Column}
	for i, f := range m.frequencies {
		angle := float64(float32(axes[m.axis[i]]) * f) // rounded to float32 before the functions see it
		cos[i], sin[i] = float32(math.Cos(angle))*m.factor, float32(math.Sin(angle))*m.factor
	}
}

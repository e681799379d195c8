// From the features of tiles to the rows of the prompt, as each picture's layout says.

package engine

import (
	"errors"
	"fmt"

	"glimpse/preprocess"
)

// arrange replaces the stages' features by the rows of the prompt, where a layout asks for more than all features in
// their order.
func (r *stageResult) arrange(list []placed, features int) error {
	tiles, rows, needed := 0, 0, false
	layouts := make([][]preprocess.FeatureRow, len(list))
	for i, pic := range list {
		layouts[i] = pic.layout.Rows()
		needed = needed || layouts[i] != nil
		tiles += pic.layout.Tiles
		rows += pic.layout.Tokens
	}
	if !needed {
		return nil
	}
	if len(r.features) != tiles*features*r.width {
		return fmt.Errorf("the picture graphs made %d values in rows of %d and the pictures have %d tiles of %d features: recipe and graphs do not belong together",
			len(r.features), r.width, tiles, features)
	}
	out := make([]float32, 0, rows*r.width)
	from := r.features
	for i, pic := range list {
		own := from[:pic.layout.Tiles*features*r.width]
		from = from[len(own):]
		if layouts[i] == nil {
			out = append(out, own...)
			continue
		}
		for _, row := range layouts[i] {
			var err error
			if out, err = r.appendRow(out, own, row); err != nil {
				return err
			}
		}
	}
	r.features = out
	if r.keep != nil && r.keep(arrayProjected) {
		r.arrays[arrayProjected] = Array{Shape: []int64{int64(rows), int64(r.width)}, Data: out}
	}
	return nil
}

// arrayProjected is what enters the language model, by the name that the field gives it.
const arrayProjected = "projected"

// appendRow appends one row, made of a picture's own features.
func (r *stageResult) appendRow(out, own []float32, row preprocess.FeatureRow) ([]float32, error) {
	if row.Newline {
		if len(r.newline) != r.width {
			return nil, errors.New("the picture graphs made no newline, and the recipe puts one between rows")
		}
		return append(out, r.newline...), nil
	}
	start := len(out)
	for k, weight := range row.Weight {
		if weight == 0 {
			continue
		}
		from := own[int(row.From[k])*r.width : (int(row.From[k])+1)*r.width]
		if len(out) == start && weight == 1 { // exact, and most rows
			out = append(out, from...)
			continue
		}
		if len(out) == start {
			out = append(out, make([]float32, r.width)...)
		}
		for c, v := range from {
			out[start+c] += weight * v
		}
	}
	return out, nil
}

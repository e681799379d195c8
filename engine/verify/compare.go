// Tolerances and comparisons. They are the golden sets' README's, for fp32; nothing here may be widened to pass.

package verify

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
)

const (
	pixelValues = "pixel_values"
	pixelVideos = "pixel_values_videos" // pixel_values of a prompt whose pictures are all frames of videos
	imageSizes  = "image_sizes"         // [pictures, 2], height and width

	relativeTolerance = 1e-4 // of the largest value of the reference: stages and embeddings
	logitsTolerance   = 2e-3

	pixelLevels     = 8     // grey levels that any value may be off
	pixelMean       = 1e-3  // mean absolute difference
	pixelShare      = 0.995 // of the values within one grey level
	lossyMean       = 0.03  // JPEG: decoders differ in chroma smoothing and rounding
	levelRounding   = 1e-3  // of a level: float32 against the level's own rounding
	channelsOfColor = 3
)

// order is that in which a model makes its arrays; others follow by name.
var order = []string{"vision_features", "qformer_image", "qformer", "pixel_shuffled", "mlp", "projected", engine.ArrayEmbeds, "encoder_last_hidden_state", engine.ArrayFirstLogits, engine.ArrayLastLogits}

// sortedArrays returns the arrays of a case but for its pixels.
func sortedArrays(arrays map[string]string) []string {
	place := func(name string) int {
		if i := slices.Index(order, name); i >= 0 {
			return i
		}
		return len(order)
	}
	var names []string
	for name := range arrays {
		if name != pixelRows && name != framesUint8 && name != pixelValues && name != pixelVideos && name != imageSizes {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), cmp.Compare(a, b))
	})
	return names
}

// tolerance returns what an array that the graphs made may be off, absolute.
func tolerance(name string, want golden.Array) float64 {
	if name == engine.ArrayFirstLogits || name == engine.ArrayLastLogits {
		return logitsTolerance
	}
	largest := 0.0
	for _, v := range want.Data {
		largest = max(largest, math.Abs(float64(v)))
	}
	return relativeTolerance * largest
}

// compareArray compares an array that the graphs made.
func compareArray(name string, have engine.Array, want golden.Array, tolerance float64) Row {
	r := Row{Array: name}
	if !slices.Equal(have.Shape, want.Shape) {
		r.Note = fmt.Sprintf("have shape %v, want %v", have.Shape, want.Shape)
		return r
	}
	if len(want.Data) == 0 {
		r.Note = "the stored array is empty"
		return r
	}
	if have.Int64 != nil { // integers are equal or not
		for i, v := range have.Int64 {
			if i >= len(want.Data) || float32(v) != want.Data[i] {
				r.Note = fmt.Sprintf("value %d is %d: %d values, want %d", i, v, len(have.Int64), len(want.Data))
				return r
			}
		}
		r.OK = len(have.Int64) == len(want.Data)
		return r
	}
	if len(have.Data) != len(want.Data) {
		r.Note = fmt.Sprintf("have %d values, want %d", len(have.Data), len(want.Data))
		return r
	}
	r.Tolerance = tolerance
	d := differences(have.Data, want.Data)
	r.MaxAbsDiff = d.max
	r.OK = d.max <= r.Tolerance // false for NaN
	if !r.OK {
		r.Note = fmt.Sprintf("value %d: have %g, want %g", d.at, have.Data[d.at], want.Data[d.at])
	}
	return r
}

type difference struct {
	max, mean float64
	at        int // where max is
}

// differences compares equally long arrays. A NaN anywhere makes max NaN.
func differences(have, want []float32) difference {
	var d difference
	sum := 0.0
	for i := range want {
		diff := math.Abs(float64(have[i]) - float64(want[i]))
		sum += diff
		if math.IsNaN(diff) {
			return difference{max: diff, mean: diff, at: i}
		}
		if diff > d.max {
			d.max, d.at = diff, i
		}
	}
	d.mean = sum / float64(len(want))
	return d
}

// channelPlane returns how many values of pixel_values belong to one channel before the next begins: height × width of a
// tile, or the frames of a patch. 0 for shapes that are neither.
func channelPlane(shape []int64) int {
	switch {
	case len(shape) == 4 && shape[1] == channelsOfColor:
		return int(shape[2] * shape[3])
	case len(shape) == 2 && shape[1]%channelsOfColor == 0:
		return int(shape[1] / channelsOfColor)
	}
	return 0
}

// comparePixels compares pixel_values made from the files: [tiles, 3, height, width], or [patches, 3·frames·size·size].
func (k *checker) comparePixels(have engine.Array, want golden.Array) Row {
	r := Row{Array: pixelValues}
	switch {
	case !slices.Equal(have.Shape, want.Shape):
		r.Note = fmt.Sprintf("have shape %v, want %v", have.Shape, want.Shape)
		return r
	case channelPlane(want.Shape) == 0 || len(want.Data) == 0:
		r.Note = fmt.Sprintf("shape %v is not [tiles, 3, height, width], and no list of patches", want.Shape)
		return r
	}
	d := differences(have.Data, want.Data)
	r.MaxAbsDiff = d.max
	if lossy(slices.Concat(k.c.Images, k.frames)) {
		r.Tolerance = k.c.PixelTolerance()
		r.OK = r.Tolerance > 0 && d.max <= r.Tolerance && d.mean <= lossyMean
		r.Note = fmt.Sprintf("JPEG: mean %.3g of %g", d.mean, lossyMean)
		if r.Tolerance == 0 && k.c.RawTolerance != nil {
			r.OK = d.mean <= lossyMean // the case says in words that decoders differ, and gives no largest difference
		}
		return r
	}
	levels := channelLevels(k.engine.Manifest().Picture.Std)
	share, worst := withinLevels(have.Data, want.Data, channelPlane(want.Shape), levels)
	r.Tolerance = pixelLevels * slices.Max(levels)
	r.OK = share >= pixelShare && worst <= pixelLevels+levelRounding && d.mean <= pixelMean
	r.Note = fmt.Sprintf("%.3f %% within a level, the worst %.2f levels off, mean %.2g", 100*share, worst, d.mean)
	return r
}

// lossy reports whether one of the pictures is a JPEG.
func lossy(images []string) bool {
	return slices.ContainsFunc(images, func(name string) bool {
		ext := strings.ToLower(filepath.Ext(name))
		return ext == ".jpg" || ext == ".jpeg"
	})
}

// channelLevels returns one grey level in each channel's units.
func channelLevels(std []float64) []float64 {
	levels := make([]float64, channelsOfColor)
	for c := range levels {
		levels[c] = 1.0 / 255 / std[c]
	}
	return levels
}

// withinLevels returns the share of values within one level and the largest difference in levels. plane is height × width.
func withinLevels(have, want []float32, plane int, levels []float64) (share, worst float64) {
	within := 0
	for i := range want {
		off := math.Abs(float64(have[i])-float64(want[i])) / levels[i/plane%channelsOfColor]
		if off <= 1+levelRounding {
			within++
		}
		if worst = max(worst, off); math.IsNaN(off) {
			return 0, off
		}
	}
	return float64(within) / float64(len(want)), worst
}

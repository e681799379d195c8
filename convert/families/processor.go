// Image processors: preprocessor_config.json as a picture recipe.

package families

import (
	"encoding/json"
	"fmt"
	"slices"

	"glimpse/convert/blocks"
	"glimpse/manifest"
)

// imageProcessor is preprocessor_config.json of the processors that resize, crop, rescale and normalise
// (CLIPImageProcessor, BlipImageProcessor).
type imageProcessor struct {
	CropSize      sizes           `json:"crop_size"`
	Size          sizes           `json:"size"`
	DoCenterCrop  *bool           `json:"do_center_crop"`
	DoConvertRGB  *bool           `json:"do_convert_rgb"`
	DoNormalize   *bool           `json:"do_normalize"`
	DoRescale     *bool           `json:"do_rescale"`
	DoResize      *bool           `json:"do_resize"`
	Mean          []float64       `json:"image_mean"`
	Std           []float64       `json:"image_std"`
	Resample      int             `json:"resample"`
	RescaleFactor float64         `json:"rescale_factor"`
	Processor     string          `json:"image_processor_type"`
	Extractor     string          `json:"feature_extractor_type"` // the older name of the same
	ProcessorType string          `json:"processor_class"`
	SizeDivisor   *int            `json:"size_divisor"`
	DoPad         *bool           `json:"do_pad"`
	CropToPatches *bool           `json:"crop_to_patches"` // GotOcr2ImageProcessor
	MinPatches    int             `json:"min_patches"`
	MaxPatches    int             `json:"max_patches"`
	DataFormat    string          `json:"data_format"`
	DefaultSquare *bool           `json:"default_to_square"`
	Pinpoints     [][]int         `json:"image_grid_pinpoints"` // LlavaNextImageProcessor: [height, width]
	AspectSetting string          `json:"aspect_ratio_setting"`
	Splitting     *bool           `json:"do_image_splitting"` // SmolVLMImageProcessor
	MaxImageSize  sizes           `json:"max_image_size"`
	VideoSampling json.RawMessage `json:"video_sampling"`
	PanAndScan    *bool           `json:"do_pan_and_scan"` // Gemma3ImageProcessor
	PanCrops      json.RawMessage `json:"pan_and_scan_max_num_crops"`
	PanCropSize   json.RawMessage `json:"pan_and_scan_min_crop_size"`
	PanRatio      json.RawMessage `json:"pan_and_scan_min_ratio_to_activate"`
	ImageSeqLen   json.RawMessage `json:"image_seq_length"` // repeats the processor's
	MinPixels     int             `json:"min_pixels"`       // Qwen2VLImageProcessor
	MaxPixels     int             `json:"max_pixels"`
	PatchSize     int             `json:"patch_size"`
	TemporalPatch int             `json:"temporal_patch_size"`
	MergeSize     int             `json:"merge_size"`
}

// sizes is a size as processors write it: a number, or an object.
type sizes struct {
	ShortestEdge int `json:"shortest_edge"`
	Height       int `json:"height"`
	Width        int `json:"width"`
	LongestEdge  int `json:"longest_edge"`
}

func (s *sizes) UnmarshalJSON(raw []byte) error {
	var edge int
	if json.Unmarshal(raw, &edge) == nil {
		*s = sizes{ShortestEdge: edge, Height: edge, Width: edge}
		return nil
	}
	type plain sizes
	return json.Unmarshal(raw, (*plain)(s))
}

const processorFile = "preprocessor_config.json"

// resampleNames are Pillow's filters by the number that processors store; 0, nearest, is used by no model that reads
// pictures and is not offered.
var resampleNames = map[int]string{1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

// CLIP's normalisation, which BLIP uses too.
var (
	clipMean = []float64{0.48145466, 0.4578275, 0.40821073}
	clipStd  = []float64{0.26862954, 0.26130258, 0.27577711}
)

// decodeProcessor reads the configuration over the defaults of its class and notes what the recipes cannot do.
func decodeProcessor(raw json.RawMessage, kinds []string, t *blocks.Tensors) imageProcessor {
	p := imageProcessor{Resample: 3, RescaleFactor: 1.0 / 255, Mean: slices.Clone(clipMean), Std: slices.Clone(clipStd)}
	if raw != nil {
		decode(raw, &p, processorFile, t)
	}
	for _, f := range []struct {
		name string
		set  *bool
	}{{"do_convert_rgb", p.DoConvertRGB}, {"do_normalize", p.DoNormalize}, {"do_rescale", p.DoRescale}, {"do_resize", p.DoResize}} {
		if f.set != nil && !*f.set {
			t.Problem(processorFile+" "+f.name, "is false; this recipe does every step")
		}
	}
	if kind := p.Processor + p.Extractor; kind != "" && !slices.Contains(kinds, kind) {
		t.Problem(processorFile+" image_processor_type", fmt.Sprintf("is %q where %s is due", kind, kinds[0]))
	}
	if d := p.RescaleFactor*255 - 1; d > 1e-6 || d < -1e-6 {
		t.Problem(processorFile+" rescale_factor", fmt.Sprintf("is %v where 1/255 is due", p.RescaleFactor))
	}
	if resampleNames[p.Resample] == "" {
		t.Problem(processorFile+" resample", fmt.Sprintf("is %d; Pillow's filters 1 to 5 are supported", p.Resample))
	}
	return p
}

// clipPicture is CLIPImageProcessor for a tower of size×size pixels: shortest edge, then centre crop.
func clipPicture(raw json.RawMessage, size int, t *blocks.Tensors) *manifest.Picture {
	p := decodeProcessor(raw, []string{"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"}, t)
	if raw == nil {
		p.Size, p.CropSize = sizes{ShortestEdge: size}, sizes{Height: size, Width: size}
	}
	if p.DoCenterCrop != nil && !*p.DoCenterCrop {
		t.Problem(processorFile+" do_center_crop", "is false; this recipe does every step")
	}
	if p.Size.ShortestEdge == 0 || p.CropSize.Height != size || p.CropSize.Width != size {
		t.Problem(processorFile, fmt.Sprintf("resizes to %+v and crops %+v; the tower takes %d×%d with size.shortest_edge given", p.Size, p.CropSize, size, size))
	}
	return &manifest.Picture{Recipe: "clip", Resample: resampleNames[p.Resample], Height: size, Width: size,
		ShortEdge: p.Size.ShortestEdge, CropHeight: p.CropSize.Height, CropWidth: p.CropSize.Width, Mean: p.Mean, Std: p.Std}
}

// stretchPicture is BlipImageProcessor for a tower of size×size pixels: resized to the square, whatever its shape.
func stretchPicture(raw json.RawMessage, size int, t *blocks.Tensors) *manifest.Picture {
	p := decodeProcessor(raw, []string{"BlipImageProcessor", "BlipImageProcessorFast"}, t)
	if raw == nil {
		p.Size = sizes{Height: size, Width: size}
	}
	if p.DoCenterCrop != nil && *p.DoCenterCrop || p.DoPad != nil && *p.DoPad {
		t.Problem(processorFile, "crops or pads; this recipe stretches")
	}
	if p.Size.Height != size || p.Size.Width != size {
		t.Problem(processorFile, fmt.Sprintf("resizes to %+v; the tower takes %d×%d", p.Size, size, size))
	}
	return &manifest.Picture{Recipe: "stretch", Resample: resampleNames[p.Resample], Height: size, Width: size, Mean: p.Mean, Std: p.Std}
}

// ImageNet's normalisation.
var (
	imagenetMean = []float64{0.485, 0.456, 0.406}
	imagenetStd  = []float64{0.229, 0.224, 0.225}
)

// gridPicture is GotOcr2ImageProcessor with crop_to_patches, as InternVL's processor calls it: the picture is stretched to
// the grid of tiles whose aspect ratio is closest to its own, cut row by row, and the whole picture comes last.
func gridPicture(raw json.RawMessage, size int, t *blocks.Tensors) *manifest.Picture {
	p := decodeProcessor(raw, []string{"GotOcr2ImageProcessorFast", "GotOcr2ImageProcessor"}, t)
	if raw == nil {
		p.Size, p.Mean, p.Std = sizes{Height: size, Width: size}, imagenetMean, imagenetStd
	}
	if p.Size.Height != size || p.Size.Width != size {
		t.Problem(processorFile, fmt.Sprintf("resizes to %+v; the tower takes %d×%d", p.Size, size, size))
	}
	if p.MinPatches == 0 {
		p.MinPatches = 1
	}
	if p.MaxPatches == 0 {
		p.MaxPatches = 12
	}
	return &manifest.Picture{Recipe: "grid", Resample: resampleNames[p.Resample], Height: size, Width: size, MinTiles: p.MinPatches, MaxTiles: p.MaxPatches,
		Thumbnail: true, Mean: p.Mean, Std: p.Std}
}

// anyresPicture is LlavaNextImageProcessor and LlavaOnevisionImageProcessor: the whole picture stretched to one tile, then
// the tiles of the best of a list of grids, whose features are unpadded and joined again behind the tower.
func anyresPicture(raw json.RawMessage, size int, pinpoints [][]int, t *blocks.Tensors) *manifest.Picture {
	p := decodeProcessor(raw, []string{"LlavaNextImageProcessor", "LlavaNextImageProcessorFast", "LlavaOnevisionImageProcessor", "LlavaOnevisionImageProcessorFast"}, t)
	if len(p.Pinpoints) == 0 {
		p.Pinpoints = pinpoints
	}
	if p.Size != (sizes{}) && p.Size.ShortestEdge != size && (p.Size.Height != size || p.Size.Width != size) {
		t.Problem(processorFile, fmt.Sprintf("resizes to %+v; the tower takes %d×%d", p.Size, size, size))
	}
	if p.AspectSetting != "" && p.AspectSetting != "anyres" {
		t.Problem(processorFile+" aspect_ratio_setting", fmt.Sprintf("is %q where anyres is due", p.AspectSetting))
	}
	if len(p.Pinpoints) == 0 {
		t.Problem(processorFile+" image_grid_pinpoints", "is missing")
	}
	for _, g := range p.Pinpoints {
		if len(g) != 2 || g[0] <= 0 || g[1] <= 0 || g[0]%size != 0 || g[1]%size != 0 || g[0]/size > 64 || g[1]/size > 64 {
			t.Problem(processorFile+" image_grid_pinpoints", fmt.Sprintf("holds %v, which is no grid of tiles of %d", g, size))
		}
	}
	return &manifest.Picture{Recipe: "anyres", Resample: resampleNames[p.Resample], Height: size, Width: size, Pinpoints: p.Pinpoints, Mean: p.Mean, Std: p.Std}
}

// splitPicture is SmolVLMImageProcessor and Idefics3ImageProcessor: the longer edge to a size, both sides up to multiples
// of the tile, cut row by row, the whole picture stretched to one tile last.
func splitPicture(raw json.RawMessage, size int, t *blocks.Tensors) *manifest.Picture {
	p := decodeProcessor(raw, []string{"SmolVLMImageProcessor", "SmolVLMImageProcessorFast", "Idefics3ImageProcessor", "Idefics3ImageProcessorFast"}, t)
	if raw == nil {
		p.Size, p.MaxImageSize = sizes{LongestEdge: 4 * size}, sizes{LongestEdge: size}
	}
	if p.MaxImageSize.LongestEdge != size {
		t.Problem(processorFile+" max_image_size", fmt.Sprintf("is %+v; the tower takes %d×%d", p.MaxImageSize, size, size))
	}
	if p.Size.LongestEdge < 1 {
		t.Problem(processorFile+" size", "gives no longest_edge")
	}
	return &manifest.Picture{Recipe: "split", Resample: resampleNames[p.Resample], Height: size, Width: size, LongEdge: p.Size.LongestEdge,
		Thumbnail: p.Splitting == nil || *p.Splitting, Mean: p.Mean, Std: p.Std}
}

// video says that frames of videos are stretched to one tile each, as the picture's processor would do it. It is nil where
// the release's video processor prepares frames in another way: the model then takes no videos.
func (r *Release) video(pic *manifest.Picture) *manifest.Video {
	raw := r.Extra["video_preprocessor_config.json"]
	if raw == nil {
		return &manifest.Video{} // older releases have one processor for both
	}
	p := imageProcessor{Resample: 3, RescaleFactor: 1.0 / 255, Mean: pic.Mean, Std: pic.Std, Size: sizes{Height: pic.Height, Width: pic.Width}}
	off := func(b *bool) bool { return b != nil && !*b }
	if json.Unmarshal(raw, &p) != nil || resampleNames[p.Resample] != pic.Resample || !slices.Equal(p.Mean, pic.Mean) || !slices.Equal(p.Std, pic.Std) ||
		p.Size.Height != pic.Height || p.Size.Width != pic.Width || off(p.DoResize) || off(p.DoRescale) || off(p.DoNormalize) ||
		p.DoCenterCrop != nil && *p.DoCenterCrop {
		return nil
	}
	return &manifest.Video{}
}

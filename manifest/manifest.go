// Package manifest holds model.toml, the contract between the two halves of the program: convert writes it and
// everything that runs a model reads it. What differs between families is data here, so the running half never asks
// which family it has.
//
// The format is described field by field in docs/model-folder.md. A reader refuses a folder whose FormatVersion it
// does not know and a file with keys it does not know: an ignored key would be a silently different model.
package manifest

// FormatVersion is the version of model.toml that this package reads and writes.
const FormatVersion = 1

// FileName is the name of the manifest inside a model folder.
const FileName = "model.toml"

// TargetCUDA is Manifest.Target of graphs for CUDA.
const TargetCUDA = "cuda"

// Manifest is model.toml.
type Manifest struct {
	FormatVersion int    `toml:"format_version"`
	Family        string `toml:"family"`    // informative: printed, never compared
	Precision     string `toml:"precision"` // what was asked of convert: fp32, fp16, int8, int4 or auto
	// Target is what the graphs were made to run on: "cuda", whose operators and float16 caches the CPU computes too, slowly;
	// empty is the CPU.
	Target    string `toml:"target,omitempty"`
	Converter string `toml:"converter"` // version of the program that wrote the folder

	Source     Source               `toml:"source"`
	Components map[string]Component `toml:"components"`
	Picture    *Picture             `toml:"picture,omitempty"` // nil: the model takes no pictures
	Audio      *Audio               `toml:"audio,omitempty"`   // nil: the model takes no sound
	Prompt     Prompt               `toml:"prompt"`
	Tokens     Tokens               `toml:"tokens"`
	Decoder    *Decoder             `toml:"decoder,omitempty"` // nil: the model generates no text (scores and embeddings only)
	Embeddings *Embeddings          `toml:"embeddings,omitempty"`
	Generation Generation           `toml:"generation"`
	Scoring    *Scoring             `toml:"scoring,omitempty"` // nil: the model compares no pictures with texts
	Boxes      *Boxes               `toml:"boxes,omitempty"`   // nil: answers hold no boxes
	// Instruction is set where the user's text also goes to the picture stages (InstructBLIP's Q-Former reads it).
	Instruction *TextInput `toml:"instruction,omitempty"`
}

// TextInput says how a text becomes the two inputs of a graph that reads text beside or instead of a picture:
// IDs [texts, text_tokens] i64 and Mask of the same shape, 1 for a token and 0 for padding.
type TextInput struct {
	Tokenizer string `toml:"tokenizer"` // a tokenizer.json in the folder
	IDs       string `toml:"ids"`       // name of the input that takes the ids
	Mask      string `toml:"mask"`
	Pad       int    `toml:"pad"`
	MaxTokens int    `toml:"max_tokens"`       // longer texts are refused
	Prefix    string `toml:"prefix,omitempty"` // put in front of every text
	// Truncate says that longer texts are cut instead, to MaxTokens with the special token that ends them.
	Truncate bool `toml:"truncate,omitempty"`
}

// Scoring describes the heads that compare pictures with texts. The picture stages run first; ImageStages turn their
// tensors into picture embeddings, TextStages turn texts into text embeddings.
type Scoring struct {
	ImageStages []string  `toml:"image_stages"`
	TextStages  []string  `toml:"text_stages"`
	Text        TextInput `toml:"text"`
	// ImageEmbeds is [tiles, rows, width] or [tiles, width]; TextEmbeds is [texts, width]. Both are normalised.
	ImageEmbeds string  `toml:"image_embeds"`
	TextEmbeds  string  `toml:"text_embeds"`
	Scores      []Score `toml:"scores"`
}

// Score is one matrix of pictures × texts.
//
// Kind "similarity" is Scale times the largest dot product of a picture's embedding rows with a text's embedding. Kind
// "pair" runs Component on pairs: it takes ImageFeatures of all pictures, image_index [pairs] i64 that says which picture
// a pair has, and the pair's text, and gives Output [pairs].
type Score struct {
	Name        string  `toml:"name"` // itc, itm, logits_c, logits_g
	Kind        string  `toml:"kind"`
	Scale       float64 `toml:"scale,omitzero"`
	ImageEmbeds string  `toml:"image_embeds,omitempty"` // where it is not Scoring's
	TextEmbeds  string  `toml:"text_embeds,omitempty"`
	Component   string  `toml:"component,omitempty"`
	Output      string  `toml:"output,omitempty"`
}

// Source says what the folder was made from.
type Source struct {
	Name         string       `toml:"name"`                 // base name of the checkpoint
	Architecture string       `toml:"architecture"`         // as in config.json
	Repository   string       `toml:"repository,omitempty"` // of a hub it was pulled from: organisation/name
	Revision     string       `toml:"revision,omitempty"`   // the commit there
	Files        []SourceFile `toml:"files"`
}

// SourceFile is one file of the checkpoint that went into the model.
type SourceFile struct {
	Name   string `toml:"name"`
	Bytes  int64  `toml:"bytes"`
	SHA256 string `toml:"sha256"` // lower-case hex
}

// Component is one ONNX graph of the model. Values flow between components by name: a component's input is fed by
// the tensor of the same name that the picture recipe or an earlier component made.
type Component struct {
	File       string           `toml:"file"`           // .onnx, relative to the folder
	Data       string           `toml:"data,omitempty"` // external data beside it, empty when there is none
	Parameters int64            `toml:"parameters"`     // elements of the checkpoint tensors it uses
	Bytes      int64            `toml:"bytes"`          // size of File and Data together
	Precision  map[string]int64 `toml:"precision"`      // how many parameters are stored as fp32, fp16, int8, int4
	Inputs     []Port           `toml:"inputs"`
	Outputs    []Port           `toml:"outputs"`
}

// Port is one input or output of a component.
type Port struct {
	Name  string   `toml:"name"`
	DType string   `toml:"dtype"` // float32, float16, int64, int32
	Shape []string `toml:"shape"` // numbers, or names for what varies: "tiles", "tokens"
}

// Picture says how a picture becomes the model's tensors, and how many placeholder tokens it takes in the prompt.
type Picture struct {
	Recipe string `toml:"recipe"` // a recipe that preprocess knows: "clip", "pad", "stretch", "grid", "anyres", "split"
	// Stages are the components that turn the recipe's tensors into Features, in the order they run.
	Stages []string `toml:"stages"`
	// Features is the tensor that replaces the placeholder embeddings: [pictures·tokens, hidden_size] in prompt order
	// after its leading dimensions are flattened.
	Features string `toml:"features"`
	// TokensPerTile is the number of feature rows of one tile (one picture where the recipe does not tile).
	TokensPerTile int `toml:"tokens_per_tile"`

	Resample   string    `toml:"resample"`             // nearest, box, bilinear, hamming, bicubic, lanczos: Pillow's filters
	Passes     string    `toml:"passes,omitempty"`     // empty: columns first, then rows; "work": rows first where that is less work, as Pillow 13
	Height     int       `toml:"height"`               // of pixel_values
	Width      int       `toml:"width"`                // of pixel_values
	ShortEdge  int       `toml:"short_edge,omitzero"`  // "clip": the shorter edge after the resize, before the crop
	CropHeight int       `toml:"crop_height,omitzero"` // "clip": centre crop; 0 for none
	CropWidth  int       `toml:"crop_width,omitzero"`  //
	Background []int     `toml:"background,omitempty"` // "pad": RGB of the padding, 0..255; "anyres": the same of a picture that is not tiled, which is stretched without
	MinTiles   int       `toml:"min_tiles,omitzero"`   // "grid": fewest and most tiles of a picture, without the thumbnail
	MaxTiles   int       `toml:"max_tiles,omitzero"`   //
	Thumbnail  bool      `toml:"thumbnail,omitempty"`  // "grid", "split": the whole picture follows the tiles when there are several; "split" does not tile without
	Pinpoints  [][]int   `toml:"pinpoints,omitempty"`  // "anyres": the grids to choose from, [height, width] in pixels
	PatchGrid  int       `toml:"patch_grid,omitzero"`  // a tile's features are a map of PatchGrid × PatchGrid: "anyres", and --tiling hd of others
	MaxAnyres  int       `toml:"max_anyres,omitzero"`  // "anyres": features beyond MaxAnyres tiles' worth are shrunk; 0 for never
	Newline    string    `toml:"newline,omitempty"`    // "anyres": tensor [1, hidden_size] that ends each row of features
	Video      *Video    `toml:"video,omitempty"`      // nil: the model takes no videos
	LongEdge   int       `toml:"long_edge,omitzero"`   // "split": the longer edge after the first resize
	Patches    *Patches  `toml:"patches,omitempty"`    // "patches"
	Mean       []float64 `toml:"mean"`                 // per channel, of values in 0..1
	Std        []float64 `toml:"std"`
}

// Video says how a video becomes tiles and rows: each frame is stretched to one tile.
type Video struct {
	// Pool is the side of the squares of a frame's features (a map of PatchGrid × PatchGrid) that become one row, by
	// bilinear interpolation to the sides divided by Pool and rounded up; 0 or 1: each feature is a row.
	Pool int `toml:"pool,omitzero"`
	// EndNewline says that the picture's Newline follows the last frame.
	EndNewline bool `toml:"end_newline,omitempty"`
	// Whole says that all frames of a video are one run of the stages, which make the rows of one tile of it; a picture is a
	// video of one frame.
	Whole bool `toml:"whole,omitempty"`
	// Frames is how many frames are chosen from a video where a request says nothing: evenly, from the first; 0: as many as a
	// general bound allows.
	Frames    int `toml:"frames,omitzero"`
	MaxFrames int `toml:"max_frames,omitzero"` // of a video; 0: the context bounds them
	// Scaler is "swscale" where frames are resized by a video's decoder, FFmpeg's scale=W:H:flags=bilinear, before they are
	// prepared; empty where they come at their own size.
	Scaler string `toml:"scaler,omitempty"`
}

// Prompt says how messages become text and where pictures go in it.
type Prompt struct {
	// Template is the chat template's file in the folder, empty when the model has none: prompts are then used raw.
	Template string `toml:"template,omitempty"`
	// Placeholder is the text that stands for one picture in the rendered prompt.
	Placeholder string `toml:"placeholder"`
	// Expansion names how pictures enter the prompt. "repeat": in the rendered text each Placeholder becomes Prefix +
	// ImageToken × tokens + Suffix before tokenizing. "grid": the tiles of a picture that was cut come first, each as TilePrefix
	// + ImageToken × tokens, each row of them followed by RowSuffix and all by TilesSuffix; the whole picture is as with
	// "repeat". "prepend": the text is tokenized alone, with its special tokens, and
	// image ids × tokens are put in front of all ids.
	Expansion  string `toml:"expansion"`
	ImageToken string `toml:"image_token"`
	Prefix     string `toml:"prefix,omitempty"`
	Suffix     string `toml:"suffix,omitempty"`
	// Apart says that the texts between pictures are tokenized each by itself, as if it began the prompt, but for special
	// tokens. Otherwise the whole prompt is tokenized at once.
	Apart bool `toml:"apart,omitempty"`
	// TilePrefix is the text before a tile; {row} and {column} in it are its place, counted from 1.
	TilePrefix  string `toml:"tile_prefix,omitempty"`
	RowSuffix   string `toml:"row_suffix,omitempty"`
	TilesSuffix string `toml:"tiles_suffix,omitempty"`
	// VideoPlaceholder stands for one video; empty where the model takes none. It becomes, for each frame, FramePrefix, the
	// tokens and FrameSuffix, with FrameSeparator between frames. {frame} is counted from 1. VideoToken is ImageToken where empty.
	VideoPlaceholder string `toml:"video_placeholder,omitempty"`
	VideoToken       string `toml:"video_token,omitempty"`
	FramePrefix      string `toml:"frame_prefix,omitempty"`
	FrameSuffix      string `toml:"frame_suffix,omitempty"`
	FrameSeparator   string `toml:"frame_separator,omitempty"`
	// AudioPlaceholder stands for one sound and becomes its image tokens; empty where the model takes none.
	AudioPlaceholder string `toml:"audio_placeholder,omitempty"`
	// Named says that a picture has a name between Prefix and Suffix: in a raw prompt it is written there, and where it is no
	// longer than the picture's tokens, their first ids as reported are its bytes.
	Named bool `toml:"named,omitempty"`
	// Caption is the user's text when a picture is to be captioned and nothing was asked.
	Caption string `toml:"caption"`
	// RawCaption is the whole prompt of a caption where there is no template.
	RawCaption string `toml:"raw_caption,omitempty"`
}

// Tokens are the special tokens. Ids are -1 where the model has none.
type Tokens struct {
	Image int   `toml:"image"`          // the id whose embedding is replaced by a feature row
	Video int   `toml:"video,omitzero"` // the same for videos, where it is another id; 0: it is not
	BOS   int   `toml:"bos"`
	EOS   []int `toml:"eos"` // any of these ends generation
	Pad   int   `toml:"pad"`
	// Strings are the special tokens by role (bos_token, eos_token, …) as chat templates see them.
	Strings map[string]string `toml:"strings"`
}

// Decoder describes the language model's graph; its ports are listed in docs/model-folder.md.
type Decoder struct {
	Component string `toml:"component"` // key in Components
	// Prefill is the component with the same ports that is faster for many tokens at once; empty: there is none.
	Prefill      string `toml:"prefill,omitempty"`
	Layers       int    `toml:"layers"`
	HiddenSize   int    `toml:"hidden_size"`
	Heads        int    `toml:"heads"`
	KVHeads      int    `toml:"kv_heads"`
	HeadDim      int    `toml:"head_dim"`
	VocabSize    int    `toml:"vocab_size"` // columns of logits; may exceed the tokenizer's vocabulary
	MaxPositions int    `toml:"max_positions"`
	CacheDType   string `toml:"cache_dtype"` // float32 or float16
	Rope         *Rope  `toml:"rope,omitempty"`
	// RopeLocal describes the tables rope_cos_local and rope_sin_local, of layers with a sliding window that have their own.
	RopeLocal *Rope `toml:"rope_local,omitempty"`
	// Positions is empty where a token's position is its place in the sequence, or "mrope": pictures have rows and columns.
	Positions string `toml:"positions,omitempty"`
	// Encoder is set where the prompt goes through an encoder and the decoder starts from StartToken alone.
	Encoder *Encoder `toml:"encoder,omitempty"`
}

// Encoder describes the encoder of an encoder-decoder model. Its graph takes the prompt's inputs_embeds and gives
// cross_key.N and cross_value.N [1, heads, tokens, head_dim], which the decoder takes from a second arena at every step.
type Encoder struct {
	Component    string `toml:"component"`     // key in Components
	StartToken   int    `toml:"start_token"`   // decoder_start_token_id
	MaxPositions int    `toml:"max_positions"` // longest prompt
}

// Rope describes the rotary embedding's cos/sin tables, which the running half computes and feeds to the decoder.
// Types are those of transformers' ROPE_INIT_FUNCTIONS.
type Rope struct {
	Type  string  `toml:"type"`  // default, linear, dynamic, yarn, llama3, prompt_ntk
	Theta float64 `toml:"theta"` // rope_theta
	// Dim is the number of rotated dimensions of a head (head_dim × partial_rotary_factor).
	Dim                  int     `toml:"dim"`
	Factor               float64 `toml:"factor,omitzero"`
	LowFreqFactor        float64 `toml:"low_freq_factor,omitzero"`  // llama3
	HighFreqFactor       float64 `toml:"high_freq_factor,omitzero"` // llama3
	OriginalMaxPositions int     `toml:"original_max_positions,omitzero"`
	BetaFast             float64 `toml:"beta_fast,omitzero"` // yarn
	BetaSlow             float64 `toml:"beta_slow,omitzero"` // yarn
	MScale               float64 `toml:"mscale,omitzero"`    // yarn
	MScaleAllDim         float64 `toml:"mscale_all_dim,omitzero"`
	AttentionFactor      float64 `toml:"attention_factor,omitzero"` // yarn; 0: computed from Factor
	NoTruncate           bool    `toml:"no_truncate,omitempty"`     // yarn: truncate = false
	// Sections are the numbers of frequencies that turn with the time, row and column of a token (positions "mrope"):
	// one section after the other or, Interleaved, in turns for as long as rows and columns have some left.
	Sections    []int `toml:"sections,omitempty"`
	Interleaved bool  `toml:"interleaved,omitempty"`
}

// Embeddings is the token embedding table: File holds Rows × HiddenSize values of DType, row-major, little-endian,
// and nothing else. It is memory-mapped and looked up in Go.
type Embeddings struct {
	File       string  `toml:"file"`
	DType      string  `toml:"dtype"` // float32, float16, bfloat16: as released
	Rows       int     `toml:"rows"`
	HiddenSize int     `toml:"hidden_size"`
	Scale      float64 `toml:"scale"` // rows are multiplied by this when looked up; 1 for most
}

// Generation holds the defaults that apply when a request says nothing.
type Generation struct {
	MaxNewTokens int `toml:"max_new_tokens"`
	// Stop are texts that end every answer, beside those of a request: conversations that end a turn with a text instead
	// of a token.
	Stop              []string `toml:"stop,omitempty"`
	Temperature       float64  `toml:"temperature"` // of the release, informative: glimpse is greedy unless told otherwise
	TopP              float64  `toml:"top_p"`
	TopK              int      `toml:"top_k"`
	RepetitionPenalty float64  `toml:"repetition_penalty"`
}

// Package golden reads golden sets: folders with cases.json, what upstream answers to each case, and golden.safetensors,
// the arrays on its way there. Both are bounded before anything is allocated: a golden set may come from anywhere.
package golden

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// maxCasesBytes bounds cases.json; real ones have 50 KiB.
const maxCasesBytes = 64 << 20

// Set is a golden set.
type Set struct {
	Name   string
	Folder string
	Cases  []Case
	Arrays *Arrays
}

// Case is one prompt and what upstream made of it.
type Case struct {
	ID              string          `json:"id"`
	Kind            string          `json:"kind"` // empty means "generate"
	Images          []string        `json:"images"`
	Videos          []string        `json:"videos"`
	Audios          []string        `json:"audios"`
	File            string          `json:"file"`       // of cases of the kind "audio"
	AudioFile       string          `json:"audio_file"` // the sound of a video
	Messages        []Message       `json:"messages"`
	Prompt          *string         `json:"prompt"` // nil: pictures alone
	Texts           []string        `json:"texts"`  // each is scored against each picture
	ProcessorKwargs json.RawMessage `json:"processor_kwargs"`
	Options         Options         `json:"options"`
	RawTolerance    json.RawMessage `json:"tolerance"`
	Expected        Expected        `json:"expected"`
	// Of cases that hold texts to what is made of them: tokenize, parse_boxes, latest_picture.
	TokenizeText string      `json:"text"`
	Output       string      `json:"output"`
	Width        int         `json:"width"`
	Height       int         `json:"height"`
	History      [][2]string `json:"history"` // queries and answers
	Response     string      `json:"response"`
	Image        *string     `json:"image"`
	// Arrays maps a name ("pixel_values") to a key of golden.safetensors ("caption.pixel_values").
	Arrays map[string]string `json:"arrays"`
}

// Message is a chat turn; Content is a list of parts, or a string in some sets.
type Message struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

// Part is one piece of a message.
type Part struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// Options are what a case asks for beside its prompt.
type Options struct {
	EXIF *bool `json:"exif"` // nil means true
}

// Expected is what upstream computed. Nil slices and pointers were not recorded.
type Expected struct {
	PromptText *string `json:"prompt_text"`
	// InputIDs are the prompt's; where a case has texts, PaddedInputIDs are them instead.
	InputIDs       TokenIDs `json:"input_ids"`
	NumImageTokens *Counts  `json:"num_image_tokens"`
	// SegmentIDs are the ids of the texts between media, in place of InputIDs.
	SegmentIDs [][]int32 `json:"segment_ids"`
	// ImageTokenIndex is the id that stands for a whole picture in InputIDs; nil or positive where each token has one.
	ImageTokenIndex *int32  `json:"image_token_index"`
	GeneratedIDs    []int32 `json:"generated_ids"`
	Text            *string `json:"text"`
	Finish          string  `json:"finish"`
	IDsStable       bool    `json:"ids_stable"`
	// MinMargin is the smallest distance between the two largest logits of a step; nil where the case does not say.
	MinMargin *float64 `json:"min_margin"`

	TextRaw       *string `json:"text_raw"` // of all generated ids, where Text is cut
	IDsOfText     []int32 `json:"ids_allowed_all"`
	IDs           []int32 `json:"ids"`     // of a text, special tokens around it included
	Decoded       *string `json:"decoded"` // the text of IDs, without special tokens
	IDsOfUserText []int32 `json:"ids_allowed_image_st_only"`
	Boxes         []Box   `json:"boxes"`
	Error         string  `json:"error"`

	DecoderStartToken *int    `json:"decoder_start_token_id"`
	QFormerInputIDs   []int32 `json:"qformer_input_ids"`

	// Of videos and sounds.
	FrameIndices  []int   `json:"frame_indices"`
	VideoFrames   int     `json:"video_frames"`
	FPS           float64 `json:"fps"`
	SampleRate    int     `json:"sample_rate"`
	Channels      int     `json:"channels"`
	SamplesNative int     `json:"samples_native"`
	Samples16k    int     `json:"samples_16k"`
	Clips         int     `json:"clips"`
	StoredClips   []int   `json:"fbank_clips_stored"`
	Table         []struct {
		Frames  int   `json:"frames"`
		Count   int   `json:"n_frms"`
		Indices []int `json:"indices"`
	} `json:"table"`
	Items []struct {
		Text  string  `json:"text"`
		First []int32 `json:"ids_first"`
		Rest  []int32 `json:"ids_rest"`
	} `json:"items"`

	TextInputIDs        [][]int32   `json:"text_input_ids"`
	PaddedInputIDs      [][]int64   `json:"padded_input_ids"`
	PaddedAttentionMask [][]int64   `json:"padded_attention_mask"`
	ITC                 [][]float64 `json:"itc"`
	ITMProb             [][]float64 `json:"itm_prob"`
}

// TokenIDs are a prompt's ids; rows of several texts are left to paddedRows.
type TokenIDs []int32

// UnmarshalJSON implements json.Unmarshaler.
func (t *TokenIDs) UnmarshalJSON(raw []byte) error {
	var rows [][]int32
	if json.Unmarshal(raw, &rows) == nil && len(rows) > 0 {
		return nil
	}
	return json.Unmarshal(raw, (*[]int32)(t))
}

// paddedRows takes input_ids of cases with texts for padded_input_ids.
func paddedRows(raw []byte, cases []Case) {
	var file struct {
		Cases []struct {
			Expected struct {
				InputIDs json.RawMessage `json:"input_ids"`
			} `json:"expected"`
		} `json:"cases"`
	}
	if json.Unmarshal(raw, &file) != nil || len(file.Cases) != len(cases) {
		return // the same text has been read before, so this does not happen
	}
	for i, c := range file.Cases {
		var rows [][]int64
		if json.Unmarshal(c.Expected.InputIDs, &rows) == nil && len(rows) > 0 && cases[i].Expected.PaddedInputIDs == nil {
			cases[i].Expected.PaddedInputIDs = rows
		}
	}
}

// Counts are the tokens of each medium, or of all of them in one number.
type Counts []int

// UnmarshalJSON takes a number or a list of numbers.
func (c *Counts) UnmarshalJSON(raw []byte) error {
	var one int
	if json.Unmarshal(raw, &one) == nil {
		*c = Counts{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]int)(c))
}

// Total is the tokens of all.
func (c Counts) Total() int {
	total := 0
	for _, n := range c {
		total += n
	}
	return total
}

// Box is a box as upstream draws it.
type Box struct {
	Label  *string `json:"label"`
	Pixels [4]int  `json:"box_pixels"`
}

// Parts returns the message's content as parts.
func (m Message) Parts() ([]Part, error) {
	var text string
	if json.Unmarshal(m.Content, &text) == nil {
		return []Part{{Type: "text", Text: text}}, nil
	}
	var parts []Part
	if err := json.Unmarshal(m.Content, &parts); err != nil {
		return nil, fmt.Errorf("content of a %s message: %w", m.Role, err)
	}
	return parts, nil
}

// PixelTolerance returns the largest allowed difference of pixel_values that the case states, 0 when it states none.
func (c Case) PixelTolerance() float64 {
	var t struct {
		PixelValues float64 `json:"pixel_values"`
	}
	if json.Unmarshal(c.RawTolerance, &t) != nil { // some sets have a sentence here
		return 0
	}
	return t.PixelValues
}

// Read reads folder/cases.json and opens folder/golden.safetensors. The caller closes the set.
func Read(folder string) (*Set, error) {
	raw, err := readBounded(filepath.Join(folder, "cases.json"), maxCasesBytes)
	if err != nil {
		return nil, fmt.Errorf("read golden set: %w", err)
	}
	set, err := parseCases(raw)
	if err != nil {
		return nil, fmt.Errorf("read golden set %s: cases.json: %w", folder, err)
	}
	set.Folder = folder
	if set.Name == "" {
		set.Name = filepath.Base(folder)
	}
	set.Arrays, err = OpenArrays(filepath.Join(folder, "golden.safetensors"))
	if err != nil {
		return nil, fmt.Errorf("read golden set %s: %w", folder, err)
	}
	return set, nil
}

func parseCases(raw []byte) (*Set, error) {
	var file struct {
		Name  string `json:"name"`
		Cases []Case `json:"cases"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	if len(file.Cases) == 0 {
		return nil, errors.New("it holds no cases")
	}
	paddedRows(raw, file.Cases)
	seen := map[string]bool{}
	for i, c := range file.Cases {
		if c.ID == "" {
			return nil, fmt.Errorf("case %d has no id", i)
		}
		if seen[c.ID] {
			return nil, fmt.Errorf("two cases have the id %q", c.ID)
		}
		seen[c.ID] = true
		for _, name := range slices.Concat(c.Images, c.Videos, c.Audios, []string{c.File, c.AudioFile}) {
			if name != "" && !filepath.IsLocal(name) {
				return nil, fmt.Errorf("case %s: %q is not in the media folder", c.ID, name)
			}
		}
	}
	return &Set{Name: file.Name, Cases: file.Cases}, nil
}

// Media returns the path of one of the case's pictures; they lie beside the golden sets.
func (s *Set) Media(name string) string { return filepath.Join(s.Folder, "..", "media", name) }

// Close closes the arrays.
func (s *Set) Close() error { return s.Arrays.Close() }

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes; at most %d are read", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}

// Golden sets that come from authors' own code write some things in another way than those of transformers: a picture's
// place in the text of a message, one id outside of the vocabulary for a whole picture, the prompt after the expansion,
// every so-many rows of pixel_values, an answer without the spaces around it. Here each is brought into the common form;
// what is compared stays exact.

package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
)

// kindSquash is the kind of cases that squashed runs.
const kindSquash = "preprocess_retrieval"

// pixelRows is the name of every step-th row of pixel_values, stored where the whole would be large.
const pixelRows = "pixel_values_rows"

// writtenPictures turns placeholders in the texts of messages into parts. Parts that are pictures then only say with which
// turn a picture was sent, and are dropped. Messages without placeholders in texts stay as they are.
func (k *checker) writtenPictures() ([]golden.Message, error) {
	placeholder := k.engine.Manifest().Prompt.Placeholder
	written := 0
	parts := make([][]golden.Part, len(k.c.Messages))
	for i, m := range k.c.Messages {
		own, err := m.Parts()
		if err != nil {
			return nil, err
		}
		for _, p := range own {
			if p.Type != "text" {
				continue
			}
			for j, text := range splitNonempty(p.Text, placeholder) {
				if j > 0 {
					parts[i] = append(parts[i], golden.Part{Type: "image"})
					written++
				}
				if text != "" {
					parts[i] = append(parts[i], golden.Part{Type: "text", Text: text})
				}
			}
		}
	}
	if written == 0 {
		return k.c.Messages, nil
	}
	if written != len(k.c.Images) {
		return nil, fmt.Errorf("the texts of the messages have %d places of pictures and the case %d pictures", written, len(k.c.Images))
	}
	out := slices.Clone(k.c.Messages)
	for i := range out {
		raw, err := json.Marshal(parts[i])
		if err != nil {
			return nil, err
		}
		out[i].Content = raw
	}
	return out, nil
}

// splitNonempty is strings.Split that does not split at nothing.
func splitNonempty(text, at string) []string {
	if at == "" {
		return []string{text}
	}
	return strings.Split(text, at)
}

// samePrompt compares prompts: before the pictures' expansion, or after it where the set stores that.
func (k *checker) samePrompt(have, want string) bool {
	p := k.engine.Manifest().Prompt
	have = oneMark(have, want, p)
	if have == want || p.Placeholder == "" || p.ImageToken == "" || strings.Contains(want, p.Placeholder) {
		return have == want
	}
	pieces := strings.Split(have, p.Placeholder)
	for i, piece := range pieces {
		rest, ok := strings.CutPrefix(want, piece)
		if !ok {
			return false
		}
		if i == len(pieces)-1 {
			return rest == ""
		}
		if rest, ok = strings.CutPrefix(rest, p.Prefix); !ok {
			return false
		}
		for strings.HasPrefix(rest, p.ImageToken) {
			rest = rest[len(p.ImageToken):]
		}
		if want, ok = strings.CutPrefix(rest, p.Suffix); !ok {
			return false
		}
	}
	return false
}

// inputIDs returns the ids that are expected. Where one id outside of the vocabulary stands for a picture, it becomes the
// picture's tokens.
func (k *checker) inputIDs() []int32 {
	m := k.engine.Manifest()
	if k.c.Expected.SegmentIDs != nil {
		return k.joinedSegments()
	}
	if n := k.c.Expected.NumImageTokens; n != nil && m.Picture != nil && m.Prompt.Expansion == "prepend" && !slices.Contains(k.c.Expected.InputIDs, int32(m.Tokens.Image)) {
		// Rows before the text that have no ids in the authors' code.
		return append(slices.Repeat([]int32{int32(m.Tokens.Image)}, n.Total()), k.c.Expected.InputIDs...)
	}
	mark := k.c.Expected.ImageTokenIndex
	if mark == nil || *mark >= 0 || k.c.Expected.NumImageTokens == nil || len(k.c.Images) == 0 {
		return k.c.Expected.InputIDs
	}
	each := k.c.Expected.NumImageTokens.Total() / len(k.c.Images)
	var ids []int32
	for _, id := range k.c.Expected.InputIDs {
		if id == *mark {
			ids = append(ids, slices.Repeat([]int32{int32(k.engine.Manifest().Tokens.Image)}, each)...)
		} else {
			ids = append(ids, id)
		}
	}
	return ids
}

// sampledPixels compares stored rows of pixel_values; the graphs then run on the pixels from the file.
func (k *checker) sampledPixels(arrays map[string]engine.Array) bool {
	want, err := k.set.Arrays.Read(k.c.Arrays[pixelRows])
	if err != nil {
		k.fail(pixelRows, "%v", err)
		return false
	}
	have := arrays[pixelValues]
	if len(have.Shape) != 4 || len(want.Shape) != 4 || want.Shape[2] == 0 || have.Shape[2]%want.Shape[2] != 0 {
		k.fail(pixelRows, "pixel_values have shape %v and the stored rows %v", have.Shape, want.Shape)
		return false
	}
	height, width, step := int(have.Shape[2]), int(have.Shape[3]), int(have.Shape[2]/want.Shape[2])
	rows := engine.Array{Shape: []int64{have.Shape[0], have.Shape[1], want.Shape[2], have.Shape[3]}}
	for plane := range int(have.Shape[0] * have.Shape[1]) {
		for y := 0; y < height; y += step {
			at := (plane*height + y) * width
			rows.Data = append(rows.Data, have.Data[at:at+width]...)
		}
	}
	r := k.comparePixels(rows, want)
	r.Array = pixelRows
	k.row(r)
	return true
}

// squashed compares pixel_values of a picture that is stretched to the tower's square, as authors evaluate models whose
// processor crops.
func (k *checker) squashed(ctx context.Context) {
	pictures, err := k.read(k.c.Images)
	if err != nil {
		k.fail("case", "%v", err)
		return
	}
	p, err := k.engine.Prepare(ctx, engine.Request{Raw: true, Pictures: pictures, PictureOptions: engine.PictureOptions{Tiling: engine.TilingStretch}})
	if err != nil {
		k.fail(pixelValues, "%v", err)
		return
	}
	k.storedPixels(p.Tensors, p.Pictures)
}

// sameText compares answers. Authors' code strips the spaces around an answer. And where bytes together are no text,
// tokenizer.json's decoder shows each as U+FFFD, while SentencePiece shows the characters that some of them make: these
// must then be as many bytes.
func sameText(have, want string) bool {
	if have == want {
		return true
	}
	have, want = strings.TrimSpace(have), strings.TrimSpace(want)
	for have != "" {
		r, size := utf8.DecodeRuneInString(have)
		if r != utf8.RuneError {
			if !strings.HasPrefix(want, have[:size]) {
				return false
			}
			have, want = have[size:], want[size:]
			continue
		}
		run := 0
		for r == utf8.RuneError && have != "" {
			run++
			have = have[size:]
			r, size = utf8.DecodeRuneInString(have)
		}
		for run > 0 && want != "" {
			r, size := utf8.DecodeRuneInString(want)
			want = want[size:]
			if r == utf8.RuneError {
				size = 1
			}
			run -= size
		}
		if run != 0 {
			return false
		}
	}
	return want == ""
}

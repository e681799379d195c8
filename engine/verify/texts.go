// Cases about texts alone: ids of a text, boxes in an answer, the picture that boxes lie in.

package verify

import (
	"slices"
	"strings"

	"glimpse/engine"
)

// textKinds are the kinds of cases that run no graph.
var textKinds = map[string]func(*checker){"tokenize": (*checker).tokenize, "parse_boxes": (*checker).parseBoxes, "latest_picture": (*checker).latestPicture}

// tokenize compares the ids of a raw prompt. Ids of a user's text, where special tokens are none, are compared by way of
// messages in other cases.
func (k *checker) tokenize() {
	if k.c.Expected.Items != nil {
		k.segments()
		return
	}
	if k.c.Expected.IDs != nil {
		k.textAndBack()
		return
	}
	ids, err := k.engine.Tokenize(k.c.TokenizeText)
	if err != nil {
		k.fail("ids_allowed_all", "%v", err)
		return
	}
	want := k.c.Expected.IDsOfText
	k.equal("ids_allowed_all", slices.Equal(ids, want), "%s", firstDifference(ids, want))
	if strings.Contains(k.c.TokenizeText, "<img>") {
		return // a user's text with a picture in it is refused here: pictures are parts of their own
	}
	ids, err = k.engine.TokenizeUser(k.c.TokenizeText)
	if err != nil {
		k.fail("ids_allowed_image_st_only", "%v", err)
		return
	}
	want = k.c.Expected.IDsOfUserText
	k.equal("ids_allowed_image_st_only", slices.Equal(ids, want), "%s", firstDifference(ids, want))
}

// textAndBack compares the ids of a text and the text of the ids.
func (k *checker) textAndBack() {
	want := k.c.Expected.IDs
	ids, err := k.engine.Tokenize(k.c.TokenizeText)
	if err != nil {
		k.fail("ids", "%v", err)
		return
	}
	k.equal("ids", slices.Equal(ids, want), "%s", firstDifference(ids, want))
	if text := k.c.Expected.Decoded; text != nil {
		have := k.engine.DecodeText(want)
		// Upstream's slow tokenizers take a second leading space away; a text that comes back as it was is right as well.
		k.equal("decoded", have == *text || have == k.c.TokenizeText, "have %q, want %q", have, *text)
	}
}

// parseBoxes compares the boxes of an answer. Upstream fails on the first box that is none; quadrangles it does not draw.
func (k *checker) parseBoxes() {
	spec := k.engine.Manifest().Boxes
	if spec == nil {
		k.fail("boxes", "the model's answers hold no boxes")
		return
	}
	boxes, err := engine.ParseBoxes(*spec, k.c.Output, engine.BoxFrame{Width: k.c.Width, Height: k.c.Height})
	if wrong := k.c.Expected.Error; wrong != "" {
		k.equal("error", err != nil && len(boxes) == 0, "have %v and %d boxes, upstream fails with %s", err, len(boxes), wrong)
		return
	}
	if err != nil {
		k.fail("boxes", "%v", err)
		return
	}
	boxes = slices.DeleteFunc(boxes, func(b engine.Box) bool { return b.Points != nil })
	want := k.c.Expected.Boxes
	same := len(boxes) == len(want)
	for i := 0; same && i < len(want); i++ {
		label := ""
		if want[i].Label != nil {
			label = *want[i].Label
		}
		same = boxes[i].Label == label && [4]int{boxes[i].X1, boxes[i].Y1, boxes[i].X2, boxes[i].Y2} == want[i].Pixels
	}
	k.equal("boxes", same, "have %+v, want %+v", boxes, want)
}

// latestPicture compares which picture of a conversation boxes are taken to lie in.
func (k *checker) latestPicture() {
	var prompt strings.Builder
	for _, turn := range k.c.History {
		prompt.WriteString(turn[0] + "\n" + turn[1] + "\n")
	}
	name := k.engine.LastPicture(prompt.String())
	want := ""
	if k.c.Image != nil {
		want = *k.c.Image
	}
	k.equal("image", name == want, "have %q, want %q", name, want)
}

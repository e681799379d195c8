// BPE merges: SentencePiece stores scored pieces, tokenizer.json an ordered list of pairs.

package sentencepiece

import (
	"cmp"
	"slices"
	"unicode/utf8"
)

// merge is a pair of pieces that join into a third.
type merge struct {
	left, right string
	score       float32 // of what they join into
	runes       [2]int  // lengths of left and right
}

// merges lists every way in which a piece is made of two others, the best score first: SentencePiece joins the
// neighbours whose union has the best score, so a pair's rank is its union's. Among equals longer left parts come first,
// then longer right parts, then the order of the vocabulary (transformers' generate_merges).
//
// Control, unknown and byte pieces take no part: text never becomes them.
func (m *model) merges() [][2]string {
	var all []merge
	joins := func(text string) (int, bool) {
		at, ok := m.byText[text]
		if !ok {
			return 0, false
		}
		k := m.pieces[at].kind
		return at, k == normal || k == userDefined || k == unused
	}
	for _, p := range m.pieces {
		if _, ok := joins(p.text); !ok {
			continue
		}
		first := len(all)
		for cut := range p.text { // at the start of each character
			left, right := p.text[:cut], p.text[cut:]
			_, okLeft := joins(left)
			_, okRight := joins(right)
			if okLeft && okRight {
				all = append(all, merge{left, right, p.score, [2]int{utf8.RuneCountInString(left), utf8.RuneCountInString(right)}})
			}
		}
		slices.SortStableFunc(all[first:], func(a, b merge) int {
			return cmp.Or(cmp.Compare(m.byText[a.left], m.byText[b.left]), cmp.Compare(m.byText[a.right], m.byText[b.right]))
		})
	}
	slices.SortStableFunc(all, func(a, b merge) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(b.runes[0], a.runes[0]), cmp.Compare(b.runes[1], a.runes[1]))
	})
	pairs := make([][2]string, len(all))
	for i, x := range all {
		pairs[i] = [2]string{x.left, x.right}
	}
	return pairs
}

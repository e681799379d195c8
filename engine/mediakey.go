// What a picture, a video or a sound of a prompt is, by content: the key of its feature rows, and what tells two prompts
// apart whose image tokens have the same ids.

package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
)

// mediaKey is the SHA-256 of all that a medium's feature rows depend on within a model: the encoded bytes, the parameters of
// the recipe, and the user's text where the picture stages read it.
type mediaKey [sha256.Size]byte

// medium's part of a prompt: what goes through the stages and is cached as one.
type mediaUnit struct {
	key    mediaKey
	placed []placed // a picture, a frame, the frames of a video that are seen together, or a sound
	tokens int      // of the prompt
	sound  bool
}

// keyMedia divides the prompt's media into units and names each. scope parts what is not to be shared.
func (e *Engine) keyMedia(p *Prepared, scope string) {
	list := p.order
	if list == nil {
		list = p.placed
	}
	together := e.pictures != nil && e.pictures.alone() // frames of a video are then one unit
	for i := 0; i < len(list); i++ {
		unit := mediaUnit{placed: list[i : i+1], sound: list[i].sound != nil}
		for ; together && list[i].frame > 0 && !list[i].last; i++ {
			unit.placed = unit.placed[:len(unit.placed)+1]
		}
		for _, one := range unit.placed {
			unit.tokens += one.layout.Tokens
		}
		unit.key = e.mediaKey(unit, p.instruction, scope, together)
		p.media = append(p.media, unit)
	}
}

func (e *Engine) mediaKey(unit mediaUnit, instruction []int32, scope string, together bool) (key mediaKey) {
	h := sha256.New()
	text := func(format string, args ...any) { framed(h, []byte(fmt.Sprintf(format, args...))) }
	text("glimpse media 1")
	framed(h, []byte(scope))
	for _, one := range unit.placed {
		if one.sound != nil {
			text("sound")
			framed(h, one.sound.Data)
			continue
		}
		options := one.options
		if !together { // a frame by itself is the same wherever it stands
			options.Index, options.Frames, options.FirstFrame = 0, 0, false
		}
		text("picture %+v %+v %v", options, e.pictures.limits, one.IgnoreEXIF)
		framed(h, one.Data)
	}
	if e.instruction != nil && !unit.sound {
		text("instruction %d", instruction)
	}
	h.Sum(key[:0])
	return key
}

// framed writes a length before the bytes, so that no two lists of texts are the same bytes.
func framed(h hash.Hash, b []byte) {
	var size [8]byte
	binary.LittleEndian.PutUint64(size[:], uint64(len(b)))
	h.Write(size[:])
	h.Write(b)
}

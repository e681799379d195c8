// Which pictures were there before.

package batch

import (
	"strconv"

	"glimpse/batch/journal"
	"glimpse/batch/phash"
	"glimpse/batch/row"
)

// originals remembers the pictures of a run, and of those that it continues, in their order: what counts as a duplicate
// must not depend on where a run was interrupted.
type originals struct {
	kind    string
	content map[row.Key]string // id of the first picture with these bytes
	index   *phash.Index       // nil unless near
	ids     []string           // by number in index
}

func newOriginals(kind string, distance int) originals {
	o := originals{kind: kind}
	if kind != DedupeNone {
		o.content = map[row.Key]string{}
	}
	if kind == DedupeNear {
		o.index = phash.NewIndex(distance)
	}
	return o
}

// judge names the original of a picture, or takes it in as one. Pictures without structure (hash 0), such as a white page
// and a black one, are like each other in the hash alone; they are compared by their bytes.
func (o *originals) judge(r *Row) {
	if o.kind == DedupeNone || r.SHA256 == "" {
		return
	}
	content := r.ContentKey()
	if id, ok := o.content[content]; ok {
		r.DuplicateOf, r.Error = id, nil
		return
	}
	hash, err := strconv.ParseUint(r.PHash, 16, 64)
	known := o.index != nil && err == nil && hash != 0
	if known {
		if n, _, ok := o.index.Find(hash); ok {
			r.DuplicateOf = o.ids[n]
		}
	}
	o.content[content] = r.ID
	if known && r.DuplicateOf == "" {
		o.index.Add(hash)
		o.ids = append(o.ids, r.ID)
	}
}

// restore takes in what an earlier run judged.
func (o *originals) restore(id string, rec journal.Record) {
	if o.kind == DedupeNone || rec.Content == (row.Key{}) {
		return
	}
	if _, ok := o.content[rec.Content]; ok {
		return
	}
	o.content[rec.Content] = id
	if o.index != nil && rec.Flags&journal.FlagPHash != 0 && rec.Flags&journal.FlagDuplicate == 0 && rec.PHash != 0 {
		o.index.Add(rec.PHash)
		o.ids = append(o.ids, id)
	}
}

func (r *runner) visit(id string, rec journal.Record) { r.originals.restore(id, rec) }

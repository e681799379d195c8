// From an item to a picture that a model can be asked about: read, hashed, looked at.

package batch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"glimpse/batch/phash"
	"glimpse/batch/row"
	"glimpse/batch/source"
)

// Reader reads pictures and tells what rows say of them. A coordinator and its workers read alike.
type Reader struct {
	Ask   Ask
	Tools Tools
	PHash bool
	Store source.Store // nil: no objects
	Limit int64        // bytes of a picture
}

// picture is one that was read.
type picture struct {
	data   []byte
	look   Look
	pixels *Pixels
}

// read fills in what a row says of a picture. What is wrong with it is the row's error, and the picture nil.
func (d *Reader) read(ctx context.Context, item *source.Item, data []byte, r *row.Row, keepPixels bool) *picture {
	if item.Err != nil {
		r.Error = row.FileError(item.Err)
		return nil
	}
	if data == nil {
		if data, r.Error = source.Read(ctx, item, d.Store, d.Limit); r.Error != nil {
			return nil
		}
	}
	sum := sha256.Sum256(data)
	r.SHA256 = hex.EncodeToString(sum[:])
	p := &picture{data: data}
	if d.Tools.Inspect != nil {
		// A header that cannot be read is reported by whoever decodes the picture, which says more.
		if look, err := d.Tools.Inspect(data, d.Ask.IgnoreEXIF); err == nil {
			p.look, r.Width, r.Height = look, look.Width, look.Height
		}
	}
	if d.Tools.Decode == nil || !d.PHash && !keepPixels {
		return p
	}
	pixels, err := d.Tools.Decode(ctx, data, d.Ask.IgnoreEXIF)
	if err != nil {
		r.Error = &row.ItemError{Kind: pictureKindOf(err, d.Tools.PictureKind), Message: oneLine(err.Error())}
		return nil
	}
	if d.PHash {
		r.PHash = phash.Format(phash.Of(pixels.Pix, pixels.Width, pixels.Height))
	}
	if keepPixels {
		p.pixels = pixels
	}
	return p
}

// Fetch reads the picture that a task names by reference, for a worker: the task with its bytes, and what reading them
// told. What is wrong with the picture is in the answer.
func (d *Reader) Fetch(ctx context.Context, task row.Task) (row.Task, *row.Read, *row.Answer) {
	start := time.Now()
	var r row.Row
	p := d.read(ctx, &source.Item{ID: task.ID, Path: task.Source, Ref: task.Ref}, nil, &r, false)
	read := &row.Read{SHA256: r.SHA256, Width: r.Width, Height: r.Height, PHash: r.PHash}
	if p == nil {
		return task, read, &row.Answer{Error: r.Error, Read: read, MS: milliseconds(time.Since(start))}
	}
	task.Data = p.data
	return task, read, nil
}

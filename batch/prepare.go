// From an item to a picture that a model can be asked about: read, hashed, looked at.

package batch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
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
	// MaxClip is the most bytes of a video; KeepBytes: videos of this machine are read into memory, too.
	MaxClip   int64
	KeepBytes bool
}

// picture is one that was read.
type picture struct {
	data    []byte
	look    Look
	pixels  *Pixels
	clip    bool   // it is a video
	file    string // of a video on this machine that is not in data
	version uint64 // of file
}

// read fills in what a row says of a picture. What is wrong with it is the row's error, and the picture nil.
func (d *Reader) read(ctx context.Context, item *source.Item, data []byte, r *row.Row, keepPixels bool) *picture {
	if item.Err != nil {
		r.Error = row.FileError(item.Err)
		return nil
	}
	p := d.bytes(ctx, item, data, r)
	if p == nil {
		return nil
	}
	if p.clip && !d.clips() {
		r.Error = d.noClips()
		return nil
	}
	if !p.clip && d.Tools.Inspect != nil {
		// A header that cannot be read is reported by whoever decodes the picture, which says more.
		if look, err := d.Tools.Inspect(p.data, d.Ask.IgnoreEXIF); err == nil {
			p.look = look
			p.clip = look.Animated && d.clips()
		}
	}
	if p.clip {
		if keepPixels {
			p.pixels = d.poster(ctx, item, p)
		}
		return p
	}
	r.Width, r.Height = p.look.Width, p.look.Height
	if d.Tools.Decode == nil || !d.PHash && !keepPixels {
		return p
	}
	pixels, err := d.Tools.Decode(ctx, p.data, d.Ask.IgnoreEXIF)
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

// bytes reads and hashes a picture or a video. A video on this machine stays where it is.
func (d *Reader) bytes(ctx context.Context, item *source.Item, data []byte, r *row.Row) *picture {
	if data == nil && item.Ref == "" && localClip(item.Path) && (d.clips() || !isFolder(item.Path)) {
		if !d.clips() {
			return &picture{clip: true}
		}
		return d.localFile(item.Path, r)
	}
	if data == nil {
		limit := d.Limit
		if d.clips() && source.IsVideoName(item.Path) {
			limit = d.MaxClip
		}
		if data, r.Error = source.Read(ctx, item, d.Store, limit); r.Error != nil {
			return nil
		}
	}
	sum := sha256.Sum256(data)
	r.SHA256 = hex.EncodeToString(sum[:])
	if format := soundFormat(data); format != "" {
		r.Error = refuseSound(format)
		return nil
	}
	return &picture{data: data, clip: isClip(item.Path, data)}
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// poster decodes a video's first frame, for people; what is wrong with a video is said when all of it is read.
func (d *Reader) poster(ctx context.Context, item *source.Item, p *picture) *Pixels {
	ask := d.Ask
	ask.Clips.Frames, ask.Clips.FPS = 1, 0
	clip, err := readClip(ctx, d.Tools, ask, row.Task{Source: item.Path, Data: p.data, File: p.file}, nil)
	if err != nil || len(clip.Frames) == 0 || d.Tools.Decode == nil {
		return nil
	}
	pixels, err := d.Tools.Decode(ctx, clip.Frames[0].Data, true)
	if err != nil {
		return nil
	}
	return pixels
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
	task.Data, task.Clip = p.data, p.clip
	return task, read, nil
}

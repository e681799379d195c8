// Videos: what is read of one before the model sees it, and how a folder of frames becomes one file.
//
// A video on this machine is not held in memory: it is hashed as it streams by, and its frames are decoded when the model
// has a place for them. Elsewhere (in a shard, an object store, on a queue) its bytes travel as those of a picture do.

package batch

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"glimpse/batch/row"
	"glimpse/batch/source"
	"glimpse/engine"
)

// ErrTool marks what keeps this machine from reading any video: FFmpeg is not there. It ends the run.
var ErrTool = errors.New("videos cannot be read here")

// ClipChoice says which frames of videos are seen.
type ClipChoice struct {
	Off    bool    `json:",omitempty"` // videos are no inputs, and of animations the first frame is taken
	Frames int     `json:",omitempty"` // so many, evenly; 0: as FPS says, else the model's own number
	FPS    float64 `json:",omitempty"` // so many a second
	Rate   float64 `json:",omitempty"` // frames a second of folders of frames; 0: not known
}

// ClipFile is where a video is: a file or folder on this machine, or a file's bytes.
type ClipFile struct {
	Path   string
	Data   []byte
	Source string // shown in errors
}

// Clip is what a model is shown of a video.
type Clip struct {
	Frames        []engine.Picture
	Seconds       []float64     // when each is shown; nil where that is not known
	Sound         *engine.Sound // nil: there is none, or the model does not hear
	Seen          row.Clip
	Width, Height int // pixels of the video, as it is shown
}

// Bounds on a folder of frames, as docs/video.md has them.
const (
	maxFrameFiles = 1 << 12
	// DefaultMaxClip is the largest video that is read, in bytes.
	DefaultMaxClip = 1 << 30
)

// clips reports whether videos are inputs.
func (d *Reader) clips() bool { return d.Tools.Clip != nil && !d.Ask.Clips.Off }

// isClip tells a video by its first bytes and, where these say nothing, by its name. head may be the whole file.
func isClip(path string, head []byte) bool {
	return row.ClipExtension(head) != "" || source.IsVideoName(path) && !looksLikePicture(head)
}

// looksLikePicture knows the formats that a mistaken name is most likely to hide.
func looksLikePicture(head []byte) bool {
	for _, magic := range []string{"\xff\xd8\xff", "\x89PNG", "GIF8", "BM", "II*\x00", "MM\x00*"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 12 && string(head[:4]) == "RIFF" && string(head[8:12]) == "WEBP"
}

// localClip looks whether a path is a video or a folder of frames. What cannot be opened is none: reading it says why.
func localClip(path string) bool {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return false
	case info.IsDir():
		return true
	case !info.Mode().IsRegular():
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, row.HeadBytes))
	return err == nil && len(head) > 0 && isClip(path, head)
}

// noClips is the error of a video where there are to be none.
func (d *Reader) noClips() *row.ItemError {
	if d.Ask.Clips.Off {
		return &row.ItemError{Kind: row.KindVideo, Message: "it is a video, and this run takes none"}
	}
	return &row.ItemError{Kind: row.KindVideo, Message: "it is a video, and this model takes none"}
}

// localFile reads a video of this machine: hashed, and with KeepBytes in memory.
func (d *Reader) localFile(path string, r *row.Row) *picture {
	version, err := source.FileVersion(path)
	if err != nil {
		r.Error = row.FileError(err)
		return nil
	}
	p := &picture{clip: true, file: path, version: version}
	sum := sha256.New()
	to := &bounded{w: sum, left: d.MaxClip}
	var kept bytes.Buffer
	if d.KeepBytes {
		to.w = io.MultiWriter(sum, &kept)
	}
	if err := copyClip(to, path); err != nil {
		r.Error = row.FileError(err)
		return nil
	}
	if to.left == d.MaxClip {
		r.Error = &row.ItemError{Kind: row.KindEmpty, Message: "the file is empty"}
		return nil
	}
	r.SHA256 = hex.EncodeToString(sum.Sum(nil))
	if d.KeepBytes {
		p.data = kept.Bytes()
	}
	return p
}

// copyOf writes a video of this machine that is still what was hashed.
func copyOf(path string, version uint64) func(io.Writer) error {
	return func(w io.Writer) error {
		err := copyClip(w, path)
		if errors.As(err, new(*fs.PathError)) {
			return row.FileError(err)
		}
		if err != nil {
			return err // the writer's, perhaps
		}
		return unchanged(path, version)
	}
}

func unchanged(path string, version uint64) error {
	if now, err := source.FileVersion(path); err != nil || now != version {
		return &row.ItemError{Kind: row.KindUnreadable, Message: "the file changed while it was read"}
	}
	return nil
}

// bounded refuses to be written more than a number of bytes.
type bounded struct {
	w    io.Writer
	left int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		return 0, &row.ItemError{Kind: row.KindTooLarge, Message: "the video has more bytes than the limit allows"}
	}
	b.left -= int64(len(p))
	return b.w.Write(p)
}

// copyClip writes a video's bytes: a file as it is, a folder of frames as a tar file.
func copyClip(w io.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return packFrames(w, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// packFrames writes the files of a folder as a tar file, in the order of their names and without what differs between two
// copies of the folder. Anything but files in it is refused, as a reader of frames does.
func packFrames(w io.Writer, folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	if len(entries) == 0 || len(entries) > maxFrameFiles {
		return &row.ItemError{Kind: row.KindBadPicture, Message: fmt.Sprintf("the folder holds %d files; a video has 1 to %d frames", len(entries), maxFrameFiles)}
	}
	out := tar.NewWriter(w)
	for _, e := range entries {
		if err := packFrame(out, filepath.Join(folder, e.Name())); err != nil {
			return err
		}
	}
	return out.Close()
}

func packFrame(out *tar.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &row.ItemError{Kind: row.KindUnreadable, Message: fmt.Sprintf("%s in it is no file", filepath.Base(path))}
	}
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Base(path), Size: info.Size(), Mode: 0o644}); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(out, f, info.Size())
	return err
}

// unpackFrames is the other way round, into a folder that is there.
func unpackFrames(data []byte, folder string) error {
	in := tar.NewReader(bytes.NewReader(data))
	for n := 0; ; n++ {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack frames: %w", err)
		}
		name := header.Name
		if n >= maxFrameFiles || header.Typeflag != tar.TypeReg || name == "" || name == "." || name == ".." || strings.ContainsAny(name, `/\`+"\x00") {
			return fmt.Errorf("unpack frames: member %d (%.80q) is not one of a packed folder", n, name)
		}
		f, err := os.OpenFile(filepath.Join(folder, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("unpack frames: %w", err)
		}
		_, err = io.Copy(f, in)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("unpack frames: %w", err)
		}
	}
}

// readClip decodes what the model is shown of a task's video. A *row.ItemError is the video's fault; others end the run.
func readClip(ctx context.Context, tools Tools, ask Ask, task row.Task, hold func(context.Context, int64) error) (*Clip, error) {
	in := ClipFile{Path: task.File, Data: task.Data, Source: task.Source}
	if in.Path == "" && row.IsPackedFolder(in.Data) {
		folder, err := os.MkdirTemp("", "glimpse-frames-*")
		if err != nil {
			return nil, fmt.Errorf("unpack frames: %w", err)
		}
		defer os.RemoveAll(folder)
		if err := unpackFrames(in.Data, folder); err != nil {
			return nil, &row.ItemError{Kind: row.KindBadPicture, Message: oneLine(err.Error())}
		}
		in.Path, in.Data = folder, nil
	}
	clip, err := tools.Clip(ctx, in, ask.Clips, ask.IgnoreEXIF, hold)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	if task.File != "" && task.Version != 0 {
		if err := unchanged(task.File, task.Version); err != nil {
			return nil, err
		}
	}
	return clip, nil
}

// parts are a clip as a message has it: the video, and its sound behind it.
func (c *Clip) parts() []engine.Part {
	parts := []engine.Part{{Type: engine.PartVideo, Frames: c.Frames, Seconds: c.Seconds}}
	if c.Sound != nil {
		parts = append(parts, engine.Part{Type: engine.PartAudio, Sound: c.Sound})
	}
	return parts
}

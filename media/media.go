// Package media turns files of videos and sounds into what the engine takes: encoded frames with their times, and WAV.
//
// Folders of frames, animated GIF and WebP, and WAV are read in pure Go. Everything else goes through FFmpeg as a child process, whose
// arguments are a list, which may read this one file and nothing else, and which is bounded in time, in what it reads and in
// what it may answer, and ends with the context.
package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"glimpse/manifest"
	"glimpse/preprocess"
)

// Limits bound what a file may ask for. The zero value of a field means its default.
type Limits struct {
	MaxBytes   int64         // of a file; default 1 GiB
	MaxSeconds float64       // of a video or sound; default an hour
	MaxFrames  int           // that are chosen from one video; default 768
	MaxPixels  int64         // of all chosen frames together, and of all that a Reader decodes at once; default 2^28, 768 MiB of RGB
	Timeout    time.Duration // of one child process; default 2 minutes
}

// Bounds on what a folder or an animation may hold, before frames are chosen.
const (
	maxFiles = 1 << 12
	maxTotal = 1 << 20 // frames of a video
)

func (l Limits) withDefaults() Limits {
	set := func(v *int64, value int64) {
		if *v == 0 {
			*v = value
		}
	}
	set(&l.MaxBytes, 1<<30)
	set(&l.MaxPixels, 1<<28)
	set((*int64)(&l.Timeout), int64(2*time.Minute))
	if l.MaxSeconds == 0 {
		l.MaxSeconds = 3600
	}
	if l.MaxFrames == 0 {
		l.MaxFrames = 768
	}
	return l
}

// Options of a Reader.
type Options struct {
	FFmpeg string // the program; empty: found on PATH
	Limits Limits
}

// Reader reads videos and sounds. It is safe for many goroutines.
type Reader struct {
	options Options
	limits  Limits

	gate   chan struct{}       // a place for each child process
	budget *semaphore.Weighted // pixels of all that is being decoded
	mu     sync.Mutex
	tools  *Tools // once found
}

// New returns a reader. Whether FFmpeg is there is seen when something needs it.
func New(o Options) *Reader {
	return &Reader{options: o, limits: o.Limits.withDefaults(), gate: make(chan struct{}, runtime.GOMAXPROCS(0)), budget: semaphore.NewWeighted(o.Limits.withDefaults().MaxPixels)}
}

// reserve waits until so many frames may be decoded beside what is being decoded. The caller has held them to MaxPixels. It
// comes before Hold everywhere: whoever was let through by Hold must not wait for somebody who waits there.
func (r *Reader) reserve(ctx context.Context, frames, width, height int) (release func(), err error) {
	pixels := min(int64(frames)*int64(width)*int64(height), r.limits.MaxPixels)
	if err := r.budget.Acquire(ctx, pixels); err != nil {
		return nil, err
	}
	return func() { r.budget.Release(pixels) }, nil
}

// Input is a file, or a file's bytes.
type Input struct {
	Path   string // of a file or, for videos, of a folder of frames; empty: Data
	Data   []byte
	Source string // shown in errors; Path where empty
}

func (in Input) name() string {
	if in.Source == "" {
		return in.Path
	}
	return in.Source
}

// Choice says which frames are taken, and how large.
type Choice struct {
	Frames int     // so many, evenly from the first one on; 0: as FPS says
	FPS    float64 // so many a second; 0: every frame
	// Width and Height are what FFmpeg resizes frames to, as the decoders of models' authors do (scale=W:H:flags=bilinear); 0:
	// frames keep their size. Frames that come from pictures keep theirs in any case.
	Width, Height int
	// Rate is how many frames of a folder are a second; 0: not known, and frames then have no times.
	Rate float64
	// Hold, where set, is called before frames are decoded with the bytes that they are going to take. It may wait; an error of
	// it ends the reading and is returned as it is.
	Hold func(ctx context.Context, bytes int64) error
}

// hold says what n frames of a size take.
func (c *Choice) hold(ctx context.Context, n, width, height int) error {
	if c.Hold == nil {
		return nil
	}
	return c.Hold(ctx, 3*int64(n)*int64(width)*int64(height))
}

// DefaultFrames are chosen from a video where neither the model nor the user says how many; of a folder all are.
const DefaultFrames = 16

// For completes a choice by what the model was released with. The model takes videos.
func (c Choice) For(pic *manifest.Picture, in Input) Choice {
	if pic.Video.Scaler != "" {
		c.Width, c.Height = pic.Width, pic.Height
	}
	if c.Frames > 0 || c.FPS > 0 {
		return c
	}
	if c.Frames = pic.Video.Frames; c.Frames == 0 {
		if info, err := os.Stat(in.Path); in.Path == "" || err != nil || !info.IsDir() {
			c.Frames = DefaultFrames
		}
	}
	return c
}

// Video is what was chosen.
type Video struct {
	Frames [][]byte // encoded pictures, in their order
	Names  []string // of the frames, for errors
	// Indices are the places of the frames in the video, from 0; Seconds when they are shown, nil where that is not known.
	Indices []int
	Seconds []float64
	Total   int     // frames of the video
	FPS     float64 // of the video, its average; 0: not known
	// Width and Height are pixels of the video as it is shown, whatever size its frames were made.
	Width, Height int
	Duration      float64 // seconds; 0: not known
}

// Kind says in a word what was wrong with a file.
type Kind string

// The kinds of failure. Their values are stable: scripts match on them.
const (
	KindMissing     Kind = "missing"            // there is no such file
	KindUnreadable  Kind = "unreadable"         // permission, I/O, no regular file, or FFmpeg is not here
	KindTooLarge    Kind = "too_large"          // bytes, seconds, frames or pixels exceed Limits
	KindCorrupt     Kind = "corrupt"            // it contradicts its own format, or has none that is known
	KindUnsupported Kind = "unsupported_format" // it is something else: a picture, a sound
	KindChoice      Kind = "rejected"           // the frames that were asked for cannot be chosen
	KindTimeout     Kind = "timeout"            // it took longer than Limits.Timeout
)

// Error is a file that could not be read.
type Error struct {
	Kind   Kind
	Source string
	Detail string
	Err    error // may be nil
}

// What returns what is wrong, without the name of the file.
func (e *Error) What() string {
	if e.Err == nil {
		return e.Detail
	}
	return e.Detail + ": " + e.Err.Error()
}

func (e *Error) Error() string {
	return e.Source + ": " + e.What()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func (in Input) errorf(kind Kind, cause error, format string, args ...any) *Error {
	return &Error{kindOf(kind, cause), in.name(), fmt.Sprintf(format, args...), cause}
}

// kindOf is what a cause says of itself, else the kind given.
func kindOf(kind Kind, cause error) Kind {
	var picture *preprocess.Error
	switch {
	case errors.Is(cause, ErrNoFFmpeg):
		return KindUnreadable
	case errors.Is(cause, fs.ErrNotExist):
		return KindMissing
	case errors.Is(cause, errTime):
		return KindTimeout
	case errors.Is(cause, errOutput):
		return KindTooLarge
	case errors.As(cause, &picture):
		return Kind(picture.Kind)
	}
	return kind
}

// Even returns the places of count frames of a video of total: np.arange(0, total, total/min(count, total)) cut to integers,
// as Video-LLaMA's load_video and transformers' video processors choose. The division's rounding gives one place more for
// some numbers, which may be total itself.
func Even(total, count int) []int {
	if total < 1 || count < 1 {
		return nil
	}
	step := float64(total) / float64(min(count, total))
	out := make([]int, int(math.Ceil(float64(total)/step)))
	for i := range out {
		out[i] = int(float64(i) * step)
	}
	return out
}

// choose returns the places of the frames that are taken from a video of total frames.
func (r *Reader) choose(in Input, c Choice, total int, fps float64) ([]int, error) {
	count := c.Frames
	switch {
	case c.Frames < 0 || c.FPS < 0 || math.IsNaN(c.FPS) || math.IsInf(c.FPS, 0):
		return nil, in.errorf(KindChoice, nil, "%d frames and %v a second were asked for", c.Frames, c.FPS)
	case count > 0:
	case c.FPS > 0 && fps <= 0:
		return nil, in.errorf(KindChoice, nil, "%v frames a second were asked for, and how many it has is not known: choose a number of frames", c.FPS)
	case c.FPS > 0:
		count = max(1, int(min(float64(total), float64(total)/fps*c.FPS)))
	default:
		count = total
	}
	if min(count, total) > r.limits.MaxFrames {
		return nil, in.errorf(KindTooLarge, nil, "%d frames would be taken; the limit is %d", min(count, total), r.limits.MaxFrames)
	}
	places := Even(total, count)
	for len(places) > 0 && places[len(places)-1] >= total {
		places = places[:len(places)-1] // the rule's one too many
	}
	return places, nil
}

// seconds returns when frames are shown, at a steady rate.
func seconds(places []int, fps float64) []float64 {
	if fps <= 0 {
		return nil
	}
	out := make([]float64, len(places))
	for i, p := range places {
		out[i] = float64(p) / fps
	}
	return out
}

// Video chooses frames of a video: a folder of pictures, an animated GIF or WebP, or what FFmpeg reads. Errors are *Error, except
// ctx's own.
func (r *Reader) Video(ctx context.Context, in Input, c Choice) (*Video, error) {
	if in.Path != "" {
		info, err := os.Stat(in.Path)
		if err != nil {
			return nil, in.errorf(KindUnreadable, err, "open video")
		}
		if info.IsDir() {
			return r.folder(ctx, in, c)
		}
	}
	head, err := r.head(in)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("GIF8")):
		return r.gif(ctx, in, c)
	case len(head) >= 12 && string(head[:4]) == "RIFF" && string(head[8:12]) == "WEBP":
		return r.webp(ctx, in, c)
	case isPicture(head):
		return nil, in.errorf(KindUnsupported, nil, "it is a picture; a video is a file of one, an animated GIF, or a folder of frames")
	}
	return r.decodeVideo(ctx, in, c)
}

// Audio returns a sound as WAV: a WAV file as it is, of others what FFmpeg makes of their first sound track, 16 bits. The sound
// track of a video is one.
func (r *Reader) Audio(ctx context.Context, in Input) ([]byte, error) {
	head, err := r.head(in)
	if err != nil {
		return nil, err
	}
	if preprocess.IsWAV(head) {
		return r.bytes(in)
	}
	return r.decodeAudio(ctx, in)
}

func isPicture(head []byte) bool {
	info, err := preprocess.Header(bytes.NewReader(head))
	return err == nil && info.Width > 0 || errors.Is(err, preprocess.ErrTruncated)
}

// head returns the first bytes of a file, after a look at its size.
func (r *Reader) head(in Input) ([]byte, error) {
	if in.Path == "" {
		if int64(len(in.Data)) > r.limits.MaxBytes {
			return nil, in.errorf(KindTooLarge, nil, "%d bytes; the limit is %d", len(in.Data), r.limits.MaxBytes)
		}
		return in.Data[:min(len(in.Data), 1<<12)], nil
	}
	info, err := os.Stat(in.Path)
	switch {
	case err != nil:
		return nil, in.errorf(KindUnreadable, err, "open")
	case !info.Mode().IsRegular():
		return nil, in.errorf(KindUnreadable, nil, "it is no file")
	case info.Size() > r.limits.MaxBytes:
		return nil, in.errorf(KindTooLarge, nil, "%d bytes; the limit is %d", info.Size(), r.limits.MaxBytes)
	}
	f, err := os.Open(in.Path)
	if err != nil {
		return nil, in.errorf(KindUnreadable, err, "open")
	}
	defer f.Close()
	head := make([]byte, 1<<12)
	n, err := f.ReadAt(head, 0)
	if n == 0 {
		return nil, in.errorf(KindUnreadable, err, "read")
	}
	return head[:n], nil
}

// bytes returns the whole file.
func (r *Reader) bytes(in Input) ([]byte, error) {
	if in.Path == "" {
		return in.Data, nil
	}
	data, err := os.ReadFile(in.Path)
	if err != nil {
		return nil, in.errorf(KindUnreadable, err, "read")
	}
	return data, nil
}

// folder chooses among the pictures of a folder, in the order of their names. Other files in it are refused: a frame that
// is left out would be another video.
func (r *Reader) folder(ctx context.Context, in Input, c Choice) (*Video, error) {
	entries, err := os.ReadDir(in.Path)
	if err != nil {
		return nil, in.errorf(KindUnreadable, err, "read folder of frames")
	}
	if len(entries) == 0 || len(entries) > maxFiles {
		return nil, in.errorf(KindTooLarge, nil, "the folder holds %d files; a video has 1 to %d frames", len(entries), maxFiles)
	}
	places, err := r.choose(in, c, len(entries), c.Rate)
	if err != nil {
		return nil, err
	}
	v := &Video{Indices: places, Seconds: seconds(places, c.Rate), Total: len(entries), FPS: c.Rate}
	if c.Rate > 0 {
		v.Duration = float64(len(entries)) / c.Rate
	}
	for _, p := range places {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		path := filepath.Join(in.Path, entries[p].Name())
		info, err := os.Stat(path)
		if err != nil {
			return nil, in.errorf(KindUnreadable, err, "read frame")
		}
		if !info.Mode().IsRegular() || info.Size() > preprocess.DefaultMaxBytes {
			return nil, in.errorf(KindTooLarge, nil, "%s is no picture file of at most %d bytes", entries[p].Name(), preprocess.DefaultMaxBytes)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, in.errorf(KindUnreadable, err, "read frame")
		}
		head, err := preprocess.Header(bytes.NewReader(data))
		if err != nil {
			return nil, in.errorf(KindCorrupt, err, "%s", entries[p].Name())
		}
		if len(v.Frames) == 0 {
			v.Width, v.Height = head.Upright()
			if err := c.hold(ctx, len(places), v.Width, v.Height); err != nil {
				return nil, err
			}
		}
		v.Frames, v.Names = append(v.Frames, data), append(v.Names, path)
	}
	return v, nil
}

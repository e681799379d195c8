package media

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"glimpse/preprocess"
)

// ErrNoFFmpeg: FFmpeg is needed and was not found.
var ErrNoFFmpeg = errors.New("ffmpeg was not found")

// formats are the containers that FFmpeg may take a file for. Playlists are not among them: they name other files.
const formats = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,ogg,mp3,aac,ac3,flac,wav,aiff,caf,asf,gif,ivf,h264,hevc,m4v"

// Tools are the programs of FFmpeg.
type Tools struct {
	FFmpeg, FFprobe string // paths
	Version         string // as ffmpeg tells it
	passthrough     []string
}

// Tools finds FFmpeg: the program that Options name, or the one on PATH, with ffprobe beside it or on PATH.
func (r *Reader) Tools(ctx context.Context) (*Tools, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tools != nil {
		return r.tools, nil
	}
	t, err := r.find(ctx)
	r.tools = t
	return t, err
}

func (r *Reader) find(ctx context.Context) (*Tools, error) {
	name := r.options.FFmpeg
	if name == "" {
		name = "ffmpeg"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("%w (%v): install FFmpeg (apt-get install ffmpeg), or name the program with --ffmpeg; without it, folders of frames, animated GIF and WebP, and WAV are read", ErrNoFFmpeg, err)
	}
	t := &Tools{FFmpeg: path}
	probe := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	beside := filepath.Join(filepath.Dir(path), strings.Replace(probe, "ffmpeg", "ffprobe", 1)+filepath.Ext(path))
	if t.FFprobe, err = exec.LookPath(beside); err != nil || !strings.Contains(probe, "ffmpeg") {
		if t.FFprobe, err = exec.LookPath("ffprobe"); err != nil {
			return nil, fmt.Errorf("%w: there is %s, but no ffprobe beside it or on PATH, which comes with FFmpeg", ErrNoFFmpeg, path)
		}
	}
	var out bytes.Buffer
	if err := r.child(ctx, path, []string{"-version"}, limited(&out, 1<<16)); err != nil {
		return nil, fmt.Errorf("%w: %s does not run: %w", ErrNoFFmpeg, path, err)
	}
	version := regexp.MustCompile(`^ffmpeg version (\S+)`).FindSubmatch(out.Bytes())
	if version == nil {
		return nil, fmt.Errorf("%w: %s is another program: it answers %.80q to -version", ErrNoFFmpeg, path, out.Bytes())
	}
	t.Version = string(version[1])
	t.passthrough = []string{"-fps_mode", "passthrough"}
	if old := regexp.MustCompile(`^(\d+)\.(\d+)`).FindStringSubmatch(t.Version); old != nil {
		major, _ := strconv.Atoi(old[1])
		minor, _ := strconv.Atoi(old[2])
		if major < 5 || major == 5 && minor < 1 {
			t.passthrough = []string{"-vsync", "passthrough"}
		}
	}
	return t, nil
}

var (
	// errOutput ends a child that writes more than it may.
	errOutput = errors.New("it wrote more than the limit")
	// errShort: a video ended before its frames did. FFmpeg's own complaints come in another order each time.
	errShort = errors.New("the file ends before its frames do, or they cannot be decoded")
	// errTime marks a child that took too long.
	errTime = errors.New("it took longer than it may")
)

// limited passes at most n bytes on.
func limited(w io.Writer, n int64) func(io.Reader) error {
	return func(r io.Reader) error {
		written, err := io.Copy(w, io.LimitReader(r, n+1))
		if err == nil && written > n {
			return errOutput
		}
		return err
	}
}

// child runs a program to its end and hands its output to read. It is killed when ctx ends, when its time is up, or when
// read gives up.
func (r *Reader) child(ctx context.Context, program string, args []string, read func(io.Reader) error) error {
	select {
	case r.gate <- struct{}{}:
		defer func() { <-r.gate }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	limit, cancel := context.WithTimeout(ctx, r.limits.Timeout)
	defer cancel()
	cmd := exec.CommandContext(limit, program, args...)
	cmd.WaitDelay = r.limits.Timeout
	complaints := &tail{}
	cmd.Stderr = complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	failed := read(out)
	if failed != nil {
		cancel()
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed == nil && limit.Err() != nil:
		return fmt.Errorf("%w: %s for more than %v", errTime, filepath.Base(program), r.limits.Timeout)
	case errors.Is(failed, errShort):
		return failed
	case err != nil && complaints.about(args) != "" && !errors.Is(failed, errOutput):
		return fmt.Errorf("%s: %s", filepath.Base(program), complaints.about(args))
	case failed != nil:
		return failed
	case err != nil:
		return fmt.Errorf("%s: %w", filepath.Base(program), err)
	}
	return nil
}

// tail keeps the end of what a child complains about.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 1 << 10
	t.text = append(t.text, p...)
	if len(t.text) > most {
		t.text = slices.Clone(t.text[len(t.text)-most:])
	}
	return len(p), nil
}

// address is where FFmpeg has a part of itself in memory, which it says before each complaint.
var address = regexp.MustCompile(` @ 0x[0-9a-f]+`)

// about is the complaints on one line, without what differs between two runs: addresses, and where the file lies.
func (t *tail) about(args []string) string {
	text := address.ReplaceAllString(strings.Join(strings.Fields(string(t.text)), " "), "")
	for _, a := range args {
		if strings.HasPrefix(a, "file:") {
			text = strings.ReplaceAll(text, a, "the file")
		}
	}
	return text
}

// file gives what FFmpeg reads a name. Bytes go to a file of their own: containers with their index behind the data cannot
// be read from a pipe.
func (r *Reader) file(in Input) (name string, remove func(), err error) {
	if in.Path != "" {
		path, err := filepath.Abs(in.Path)
		return "file:" + path, func() {}, err
	}
	f, err := os.CreateTemp("", "glimpse-media-*")
	if err != nil {
		return "", nil, err
	}
	remove = func() { os.Remove(f.Name()) }
	_, err = f.Write(in.Data)
	if err = errors.Join(err, f.Close()); err != nil {
		remove()
		return "", nil, err
	}
	return "file:" + f.Name(), remove, nil
}

// reading are the arguments in front of an input.
func reading() []string {
	return []string{"-v", "error", "-hide_banner", "-protocol_whitelist", "file,pipe", "-format_whitelist", formats}
}

// stream is what ffprobe says of a video.
type stream struct {
	width, height int // as it is shown
	frames        int
	fps           float64
	duration      float64 // seconds; 0: not known
}

func (r *Reader) probe(ctx context.Context, t *Tools, in Input, file string) (*stream, error) {
	args := append(reading(), "-select_streams", "v:0", "-count_packets", "-show_entries",
		"stream=width,height,avg_frame_rate,nb_read_packets:stream_side_data=rotation:format=duration", "-of", "json", file)
	var out bytes.Buffer
	if err := r.child(ctx, t.FFprobe, args, limited(&out, 1<<20)); err != nil {
		return nil, in.errorf(KindCorrupt, err, "read video")
	}
	var answer struct {
		Streams []struct {
			Width   int    `json:"width"`
			Height  int    `json:"height"`
			Rate    string `json:"avg_frame_rate"`
			Packets string `json:"nb_read_packets"`
			Side    []struct {
				Rotation float64 `json:"rotation"`
			} `json:"side_data_list"`
		} `json:"streams"`
		Format struct {
			Duration string `json:"duration"`
		} `json:"format"`
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return nil, in.errorf(KindCorrupt, err, "read what ffprobe says")
	}
	if len(answer.Streams) == 0 {
		return nil, in.errorf(KindUnsupported, nil, "it has no pictures: is it a sound?")
	}
	duration, _ := strconv.ParseFloat(answer.Format.Duration, 64)
	if d := duration; d > r.limits.MaxSeconds {
		return nil, in.errorf(KindTooLarge, nil, "%.1f seconds; the limit is %g", d, r.limits.MaxSeconds)
	}
	first := answer.Streams[0]
	s := &stream{width: first.Width, height: first.Height, fps: ratio(first.Rate), duration: max(0, duration)}
	s.frames, _ = strconv.Atoi(first.Packets)
	for _, side := range first.Side { // FFmpeg turns frames as this says
		if quarters := int(math.Round(side.Rotation / 90)); quarters%2 != 0 {
			s.width, s.height = s.height, s.width
		}
	}
	if s.frames < 1 || s.frames > maxTotal || s.width < 1 || s.height < 1 {
		return nil, in.errorf(KindCorrupt, nil, "%d frames of %d×%d pixels; 1 to %d frames are read", s.frames, s.width, s.height, maxTotal)
	}
	return s, nil
}

// ratio reads "30000/1001"; 0 where it is none.
func ratio(text string) float64 {
	over, under, _ := strings.Cut(text, "/")
	a, err1 := strconv.ParseFloat(over, 64)
	b, err2 := strconv.ParseFloat(under, 64)
	if err1 != nil || err2 != nil || !(a > 0) || !(b > 0) {
		return 0
	}
	return a / b
}

// decodeVideo has FFmpeg decode the chosen frames.
func (r *Reader) decodeVideo(ctx context.Context, in Input, c Choice) (*Video, error) {
	t, err := r.Tools(ctx)
	if err != nil {
		return nil, in.errorf(KindCorrupt, err, "read video")
	}
	file, remove, err := r.file(in)
	if err != nil {
		return nil, in.errorf(KindCorrupt, err, "read video")
	}
	defer remove()
	s, err := r.probe(ctx, t, in, file)
	if err != nil {
		return nil, err
	}
	places, err := r.choose(in, c, s.frames, s.fps)
	if err != nil {
		return nil, err
	}
	width, height := s.width, s.height
	if c.Width > 0 && c.Height > 0 {
		width, height = c.Width, c.Height
	}
	if int64(width) > r.limits.MaxPixels/int64(height)/int64(len(places)) {
		return nil, in.errorf(KindTooLarge, nil, "%d frames of %d×%d pixels are more than the limit of %d pixels: choose fewer", len(places), width, height, r.limits.MaxPixels)
	}
	release, err := r.reserve(ctx, len(places), width, height)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := c.hold(ctx, len(places), width, height); err != nil {
		return nil, err
	}
	v := &Video{Indices: places, Seconds: seconds(places, s.fps), Total: s.frames, FPS: s.fps, Width: s.width, Height: s.height, Duration: s.duration}
	err = r.child(ctx, t.FFmpeg, frameArguments(t, file, places, c), func(out io.Reader) error {
		stream := bufio.NewReaderSize(out, 1<<16)
		for len(v.Frames) < len(places) {
			w, h, rgb, err := readPPM(stream, r.limits.MaxPixels/int64(len(places)))
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("%w: %d of %d", errShort, len(v.Frames), len(places))
			}
			if err != nil {
				return err
			}
			v.Names = append(v.Names, fmt.Sprintf("%s, frame %d", in.name(), places[len(v.Frames)]))
			v.Frames = append(v.Frames, bitmap(w, h, rgb))
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, in.errorf(KindCorrupt, err, "decode video")
	}
	return v, nil
}

// frameArguments choose frames by their places and, where asked for, resize them.
func frameArguments(t *Tools, file string, places []int, c Choice) []string {
	terms := make([]string, len(places))
	for i, p := range places {
		terms[i] = fmt.Sprintf(`eq(n\,%d)`, p)
	}
	filter := "select=" + strings.Join(terms, "+")
	if c.Width > 0 && c.Height > 0 {
		filter += fmt.Sprintf(",scale=%d:%d:flags=bilinear", c.Width, c.Height)
	}
	args := append([]string{"-nostdin", "-threads", "2"}, reading()...)
	args = append(args, "-i", file, "-map", "0:v:0", "-vf", filter)
	args = append(args, t.passthrough...)
	return append(args, "-frames:v", strconv.Itoa(len(places)), "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "pipe:1")
}

// HasSound reports whether a file has a sound track. Errors are *Error, except ctx's own.
func (r *Reader) HasSound(ctx context.Context, in Input) (bool, error) {
	if in.Path != "" {
		if info, err := os.Stat(in.Path); err == nil && info.IsDir() {
			return false, nil // a folder of frames
		}
	}
	head, err := r.head(in)
	if err != nil {
		return false, err
	}
	if isPicture(head) { // an animation
		return false, nil
	}
	t, err := r.Tools(ctx)
	if err != nil {
		return false, in.errorf(KindUnreadable, err, "read video")
	}
	file, remove, err := r.file(in)
	if err != nil {
		return false, in.errorf(KindUnreadable, err, "read video")
	}
	defer remove()
	var out bytes.Buffer
	args := append(reading(), "-select_streams", "a:0", "-show_entries", "stream=index", "-of", "csv=p=0", file)
	if err := r.child(ctx, t.FFprobe, args, limited(&out, 1<<16)); err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		return false, in.errorf(KindCorrupt, err, "read video")
	}
	return len(bytes.TrimSpace(out.Bytes())) > 0, nil
}

// decodeAudio has FFmpeg decode the first sound track.
func (r *Reader) decodeAudio(ctx context.Context, in Input) ([]byte, error) {
	t, err := r.Tools(ctx)
	if err != nil {
		return nil, in.errorf(KindUnreadable, err, "read sound")
	}
	file, remove, err := r.file(in)
	if err != nil {
		return nil, in.errorf(KindUnreadable, err, "read sound")
	}
	defer remove()
	args := append([]string{"-nostdin", "-threads", "2"}, reading()...)
	args = append(args, "-i", file, "-map", "0:a:0", "-vn", "-t", strconv.FormatFloat(r.limits.MaxSeconds+1, 'f', -1, 64), "-c:a", "pcm_s16le", "-bitexact", "-f", "wav", "pipe:1")
	var out bytes.Buffer
	if err := r.child(ctx, t.FFmpeg, args, limited(&out, preprocess.DefaultMaxSoundBytes)); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, in.errorf(KindCorrupt, err, "decode sound")
	}
	if err := r.checkWave(in, out.Bytes()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// checkWave refuses a sound that is longer than the limit, which FFmpeg was told to go a second beyond.
func (r *Reader) checkWave(in Input, wave []byte) error {
	const byteRate = 28 // where FFmpeg's header has it
	if len(wave) < 44 {
		return in.errorf(KindUnsupported, nil, "it has no sound")
	}
	rate := float64(binary.LittleEndian.Uint32(wave[byteRate:]))
	if rate <= 0 || float64(len(wave)-44)/rate > r.limits.MaxSeconds {
		return in.errorf(KindTooLarge, nil, "it has more than the limit of %g seconds", r.limits.MaxSeconds)
	}
	return nil
}

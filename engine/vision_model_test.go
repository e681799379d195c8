package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
)

// frames are the frames of a video of the golden sets, as a part of a message.
func frames(t testing.TB, name string) engine.Part {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(goldens, "media", name, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	slices.Sort(files)
	part := engine.Part{Type: engine.PartVideo}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		part.Frames = append(part.Frames, engine.Picture{Data: data, Source: filepath.Base(file)})
	}
	return part
}

// conversations are requests whose pictures come again, alone and with others, in every form that the set's model takes.
func conversations(t testing.TB, set string) []engine.Request {
	cat, coffee := media(t, "cat.png"), media(t, "coffee.png")
	if set == "instructblip-tiny" {
		return []engine.Request{about("what is this?", cat), about("what is on the table?", cat), about("what is this?", coffee)}
	}
	list := []engine.Request{ask("What is this?", cat), ask("And what else is there?", cat)}
	if set == "videollama-tiny" {
		chirp, err := os.ReadFile(filepath.Join(goldens, "media", "chirp_16k_mono.wav"))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, engine.Request{MaxTokens: 24, Messages: []engine.Message{{Role: "user", Content: []engine.Part{
			{Type: engine.PartAudio, Sound: &engine.Sound{Data: chirp}}, frames(t, "video_pan4"), {Type: engine.PartText, Text: "What is heard?"}}}}})
	} else {
		list = append(list, ask("Which of the two is which?", coffee, cat), ask("And now?", cat, cat))
	}
	if set == "qwen25vl-tiny" || set == "qwen3vl-tiny" || set == "llavaonevision-tiny" || set == "videollama-tiny" {
		for _, text := range []string{"What happens?", "Describe the video."} {
			list = append(list, engine.Request{MaxTokens: 24, Messages: []engine.Message{{Role: "user",
				Content: []engine.Part{frames(t, "video_pan8"), {Type: engine.PartText, Text: text}}}}})
		}
	}
	return list
}

// Answers do not depend on what is in the cache: pictures of every recipe, several at once, videos, deepstack rows,
// instructions. What was seen once is not run again, in this process or, with a folder, in the next.
func TestVisionCacheGivesTheSameAnswers(t *testing.T) {
	for _, set := range []string{"llava15-tiny", "llavanext-tiny", "llavaonevision-tiny", "qwen25vl-tiny", "qwen3vl-tiny", "internvl3-tiny", "smolvlm-tiny", "gemma3-tiny", "instructblip-tiny", "videollama-tiny"} {
		t.Run(set, func(t *testing.T) {
			folder, dir := convertGolden(t, set), t.TempDir()
			open := func(opts engine.Options) *engine.Engine { return openFolder(t, folder, opts) }
			reqs := conversations(t, set)
			want := make([]*engine.Result, len(reqs))
			cold := open(engine.Options{})
			for i, req := range reqs {
				want[i] = generate(t, cold, t.Context(), req)
			}
			answers := func(e *engine.Engine, what string) {
				for i, req := range reqs {
					got := generate(t, e, t.Context(), req)
					if diff := cmp.Diff(want[i].TokenIDs, got.TokenIDs); diff != "" {
						t.Errorf("%s, request %d: %s", what, i, diff)
					}
				}
			}
			warm := open(engine.Options{VisionCache: 64 << 20, VisionCacheDir: dir})
			answers(warm, "first")
			seen, once := engine.StageRuns(warm), engine.StageRuns(cold)
			if seen >= once && set != "instructblip-tiny" { // which reads the question too
				t.Errorf("%d runs of the picture graphs; %d without a cache", seen, once)
			}
			answers(warm, "again")
			if n := engine.StageRuns(warm); n != seen {
				t.Errorf("%d runs of the picture graphs for pictures that were seen before", n-seen)
			}
			s := warm.Stats().Vision
			if s.Hits == 0 || s.Misses == 0 || s.Bytes == 0 || s.Entries != int64(s.Misses) || s.DiskErrors != 0 {
				t.Errorf("counted %+v", s)
			}
			next := open(engine.Options{VisionCacheDir: dir})
			answers(next, "from the disk")
			if n, s := engine.StageRuns(next), next.Stats().Vision; n != 0 || s.DiskHits == 0 || s.Misses != 0 {
				t.Errorf("%d runs of the picture graphs, counted %+v", n, s)
			}
			tiny := open(engine.Options{VisionCache: 1})
			answers(tiny, "where nothing fits")
		})
	}
}

// What a picture's rows depend on is in the key: the way it is cut, EXIF, the question where the stages read it, the scope.
func TestVisionCacheTellsPicturesApart(t *testing.T) {
	e := openTiny(t, engine.Options{VisionCache: 64 << 20})
	exif := media(t, "astronaut_exif6.jpg")
	flat := *exif
	flat.IgnoreEXIF = true
	hd := ask("What?", exif)
	hd.PictureOptions.Tiling = engine.TilingHD
	few := hd
	few.PictureOptions.MaxTiles = 2
	scoped := ask("What?", exif)
	scoped.CacheScope = "somebody"
	for i, req := range []engine.Request{ask("What?", exif), ask("What?", &flat), hd, few, scoped} {
		for range 2 {
			generate(t, e, t.Context(), req)
		}
		if s := e.Stats().Vision; s.Misses != uint64(i+1) || s.Hits != uint64(i+1) {
			t.Fatalf("request %d: %+v", i, s)
		}
	}
}

// A second question about the same picture has no vision time.
func TestSecondQuestionHasNoVisionTime(t *testing.T) {
	e := openTiny(t, engine.Options{VisionCache: 64 << 20})
	first := generate(t, e, t.Context(), ask("What is this?", media(t, "cat.png")))
	second := generate(t, e, t.Context(), ask("Where is it?", media(t, "cat.png")))
	if first.Timings.Vision == 0 || second.Timings.Vision != 0 || second.Timings.Connector != 0 {
		t.Errorf("vision took %v and %v, the connector %v in the second", first.Timings.Vision, second.Timings.Vision, second.Timings.Connector)
	}
}

// Many requests with the same pictures at once, some of them cancelled at any moment: one computes, nobody fails by another.
func TestSamePictureAtOnce(t *testing.T) {
	reqs := []engine.Request{ask("What is this?", media(t, "cat.png")), ask("What are these?", media(t, "coffee.png"), media(t, "cat.png")), ask("And these?", media(t, "cat.png"), media(t, "coffee.png"))}
	e := openTiny(t, engine.Options{Slots: 4})
	var want [][]int32
	for _, req := range reqs {
		want = append(want, generate(t, e, t.Context(), req).TokenIDs)
	}
	for round := range 6 {
		e := openTiny(t, engine.Options{VisionCache: 64 << 20, Slots: 4})
		var wg sync.WaitGroup
		for i := range 12 {
			ctx, cancel := context.WithCancel(t.Context())
			if doomed := i%3 == 1; doomed {
				time.AfterFunc(time.Duration(round*i)*time.Millisecond, cancel)
			}
			wg.Go(func() {
				defer cancel()
				got, err := e.Generate(ctx, reqs[i%len(reqs)])
				switch {
				case err != nil && (i%3 != 1 || !errors.Is(err, context.Canceled)):
					t.Errorf("request %d: %v", i, err)
				case err == nil && !slices.Equal(got.TokenIDs, want[i%len(reqs)]):
					t.Errorf("request %d: another answer", i)
				}
			})
		}
		wg.Wait()
		if s := e.Stats().Vision; s.Misses > 4 { // two pictures; again where their request was cancelled
			t.Errorf("%+v", s)
		}
	}
}

// A picture that cannot be read fails its own request, names itself by its place in it, and leaves nothing behind.
func TestCorruptPictureIsNotCached(t *testing.T) {
	e := openTiny(t, engine.Options{VisionCache: 64 << 20})
	whole := media(t, "coffee.png")
	broken := &engine.Picture{Data: whole.Data[:len(whole.Data)/2]}
	generate(t, e, t.Context(), ask("What?", media(t, "cat.png")))
	for range 2 {
		_, err := e.Generate(t.Context(), ask("What?", media(t, "cat.png"), broken))
		if !errors.Is(err, engine.ErrPicture) {
			t.Fatalf("error %v", err)
		}
		if want := "picture number 2: "; err == nil || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("error %q does not begin with %q", err, want)
		}
	}
	if s := e.Stats().Vision; s.Entries != 1 {
		t.Error(fmt.Sprintf("%+v", s))
	}
}

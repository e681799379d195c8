// Package accuracy measures what each precision costs in right answers: the scenes model converted to fp32, int8 and
// int4 describes 200 scenes that its training never drew, and answers a question about each.
//
//	go test ./bench/accuracy -run xxx -bench . -benchtime 1x
//
// It is a benchmark for its numbers (exact captions and short answers, in per cent), not for its time.
package accuracy

import (
	"archive/zip"
	"context"
	"encoding/json"
	"io"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"glimpse/batch"
	"glimpse/convert"
	"glimpse/engine"
	"glimpse/graphs"
)

const model = "../../testdata/models/scenes-llava"

// scene is a picture with its true caption and one question with its answer.
type scene struct {
	data             []byte
	caption          string
	question, answer string
}

// readScenes reads eval.zip: pictures, and captions.json in the schema of testdata/pictures.
func readScenes(tb testing.TB, name string) (prompt string, scenes []scene) {
	tb.Helper()
	archive, err := zip.OpenReader(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer archive.Close()
	files := map[string][]byte{}
	for _, f := range archive.File {
		r, err := f.Open()
		if err != nil {
			tb.Fatal(err)
		}
		data, err := io.ReadAll(io.LimitReader(r, 1<<20))
		r.Close()
		if err != nil {
			tb.Fatal(err)
		}
		files[path.Base(f.Name)] = data
	}
	var truth struct {
		Prompt   string
		Pictures []struct {
			File, Caption string
			Questions     []struct{ Question, Answer string }
		}
	}
	if err := json.Unmarshal(files["captions.json"], &truth); err != nil {
		tb.Fatal(err)
	}
	for i, p := range truth.Pictures {
		q := p.Questions[i%len(p.Questions)] // every kind of question has its turn
		scenes = append(scenes, scene{files[p.File], p.Caption, q.Question, q.Answer})
	}
	return truth.Prompt, scenes
}

// shares returns the shares of exact captions and exact short answers.
func shares(ctx context.Context, e *engine.Engine, prompt string, scenes []scene) (captions, answers float64, err error) {
	var exact, right atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, s := range scenes {
		group.Go(func() error {
			for _, ask := range []struct {
				prompt, want string
				count        *atomic.Int64
			}{{prompt, s.caption, &exact}, {s.question, s.answer, &right}} {
				res, err := e.Generate(ctx, batch.Request(e.Manifest(), []engine.Picture{{Data: s.data}}, ask.prompt))
				if err != nil {
					return err
				}
				if strings.TrimSpace(res.Text) == ask.want {
					ask.count.Add(1)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, 0, err
	}
	n := float64(len(scenes))
	return 100 * float64(exact.Load()) / n, 100 * float64(right.Load()) / n, nil
}

func open(tb testing.TB, rt *graphs.Runtime, precision string, opts engine.Options) *engine.Engine {
	tb.Helper()
	folder := filepath.Join(tb.TempDir(), "model")
	if _, err := convert.Convert(context.Background(), convert.Options{Checkpoint: model, Out: folder, Precision: precision}); err != nil {
		tb.Fatal(err)
	}
	opts.Runtime, opts.Slots, opts.Capacity = rt, 8, 256
	e, err := engine.Open(context.Background(), folder, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func BenchmarkSceneAccuracy(b *testing.B) {
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer rt.Close()
	prompt, scenes := readScenes(b, filepath.Join(model, "eval.zip"))
	for _, precision := range []string{"fp32", "fp16", "int8", "int4"} {
		b.Run(precision, func(b *testing.B) {
			e := open(b, rt, precision, engine.Options{})
			defer e.Close()
			for b.Loop() {
				captions, answers, err := shares(b.Context(), e, prompt, scenes)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(captions, "exact-captions-%")
				b.ReportMetric(answers, "right-answers-%")
			}
		})
	}
}

// TestScenesAreRead keeps the benchmark's data honest in every test run: 200 scenes, each with its truth.
func TestScenesAreRead(t *testing.T) {
	prompt, scenes := readScenes(t, filepath.Join(model, "eval.zip"))
	if len(scenes) != 200 || prompt == "" {
		t.Fatalf("%d scenes, prompt %q", len(scenes), prompt)
	}
	for i, s := range scenes {
		if len(s.data) == 0 || s.caption == "" || s.question == "" || s.answer == "" {
			t.Fatalf("scene %d lacks something", i)
		}
	}
}

// Command demo shows the sample models at work with a built glimpse, each answer beside the truth: captions, a ranking of
// captions by how well they fit, fine print that only tiles can read, boxes drawn on a picture, clips that are seen and heard.
// `make demo` runs it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
)

// options says where things are.
type options struct {
	Glimpse  string // the binary
	Models   string // folder of checkpoints
	Pictures string // folder of the sample pictures
	Clips    string // folder of the sample clips
	Cache    string // folder that converted models and what is made go to
}

// section is one model of the demonstration. A checkpoint that is not there is left out.
type section struct {
	checkpoint string // below options.Models: a folder, or a .toml of pieces
	title      string
	show       func(ctx context.Context, d *demo, model string) error
}

var sections = []section{
	{"scenes-llava", "LLaVA-1.5 describes pictures", showCaptions},
	{"scenes-blip2", "BLIP-2 captions the same pictures, without a prompt", showCaptions},
	{"scenes-blip2-itm", "BLIP-2 ranks nine captions of each picture, eight of them wrong in one attribute", showRanking},
	{"scenes-internvl", "InternVL reads fine print: with one tile a picture, and with tiles", showTiling},
	{"scenes-qwenvl", "Qwen-VL points at things", showBoxes},
	{"scenes-video/video-llama.toml", "Video-LLaMA describes clips: from the frames, from the sound, from both", showClips},
}

func main() {
	var opts options
	flag.StringVar(&opts.Glimpse, "glimpse", "bin/glimpse", "the `binary`")
	flag.StringVar(&opts.Models, "models", "testdata/models", "`folder` of checkpoints")
	flag.StringVar(&opts.Pictures, "pictures", "testdata/pictures", "`folder` of pictures with their captions.json; pictures of other models lie beside it")
	flag.StringVar(&opts.Clips, "clips", "testdata/clips", "`folder` of clips with their clips.json")
	flag.StringVar(&opts.Cache, "cache", ".cache", "`folder` for converted models and what is made")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, opts, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is a run of the demonstration.
type demo struct {
	options
	out io.Writer
}

func run(ctx context.Context, opts options, out io.Writer) error {
	d := &demo{options: opts, out: out}
	var failed []error
	for _, s := range sections {
		checkpoint := filepath.Join(opts.Models, s.checkpoint)
		needed := checkpoint
		if filepath.Ext(checkpoint) != ".toml" {
			needed = filepath.Join(checkpoint, "config.json")
		}
		if _, err := os.Stat(needed); err != nil {
			continue
		}
		fmt.Fprintf(out, "\n== %s (%s)\n\n", s.title, checkpoint)
		model, err := d.convert(ctx, checkpoint)
		if err == nil {
			err = s.show(ctx, d, model)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.checkpoint, err))
		}
	}
	return errors.Join(failed...)
}

// convert converts a checkpoint anew; the demonstration's models take a fraction of a second.
func (d *demo) convert(ctx context.Context, checkpoint string) (string, error) {
	folder := checkpoint
	if filepath.Ext(checkpoint) == ".toml" {
		folder = filepath.Dir(checkpoint)
	}
	model := filepath.Join(d.Cache, filepath.Base(folder))
	if err := os.MkdirAll(d.Cache, 0o755); err != nil {
		return "", err
	}
	if err := os.RemoveAll(model); err != nil {
		return "", err
	}
	_, err := d.glimpse(ctx, "convert", checkpoint, "-o", model)
	return model, err
}

// glimpse runs the program and returns what it prints.
func (d *demo) glimpse(ctx context.Context, arguments ...string) ([]byte, error) {
	var said bytes.Buffer
	command := exec.CommandContext(ctx, d.Glimpse, arguments...)
	command.Stderr = &said
	printed, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", d.Glimpse, arguments[0], err, bytes.TrimSpace(said.Bytes()))
	}
	return printed, nil
}

// share prints how many were right, and is an error below the least share that the model is known to reach.
func (d *demo) share(what string, right, all int, least float64) error {
	if all == 0 {
		return fmt.Errorf("there is nothing to show of %s", what)
	}
	fmt.Fprintf(d.out, "%d of %d %s (%.0f %%)\n", right, all, what, 100*float64(right)/float64(all))
	if float64(right) < least*float64(all) {
		return fmt.Errorf("%d of %d %s: at least %.0f %% are due", right, all, what, 100*least)
	}
	return nil
}

// truth is captions.json or questions.json beside pictures.
type truth struct {
	Prompt   string
	Pictures []struct {
		File      string
		Width     int
		Height    int
		Caption   string
		Questions []question
	}
}

type question struct {
	Kind, Question, Answer string
	Boxes                  [][4]float64 // left, top, right, bottom in pixels
}

func readTruth(path string) (truth, error) {
	var t truth
	data, err := os.ReadFile(path)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return t, fmt.Errorf("reading %s: %w", path, err)
	}
	if len(t.Pictures) == 0 {
		return t, fmt.Errorf("%s names no pictures", path)
	}
	return t, nil
}

// Command demo captions the sample pictures with a built glimpse and prints each caption beside the true one. `make demo`
// runs it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
)

type options struct {
	Glimpse  string
	Model    string
	Pictures string  // folder with pictures and captions.json
	Output   string  // rows that glimpse caption writes
	Least    float64 // share of captions that must be right
}

func main() {
	var opts options
	flag.StringVar(&opts.Glimpse, "glimpse", "bin/glimpse", "the `binary`")
	flag.StringVar(&opts.Model, "model", ".cache/demo", "a converted model `folder`")
	flag.StringVar(&opts.Pictures, "pictures", "testdata/pictures", "`folder` of pictures with their captions.json")
	flag.StringVar(&opts.Output, "output", ".cache/demo-captions.jsonl", "where the captions go, a JSONL `file`")
	flag.Float64Var(&opts.Least, "least", 0.75, "fail when a smaller `share` of the captions is right")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, opts, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// truth is captions.json.
type truth struct {
	Prompt   string `json:"prompt"`
	Pictures []struct {
		File    string `json:"file"`
		Caption string `json:"caption"`
	} `json:"pictures"`
}

func run(ctx context.Context, opts options, out io.Writer) error {
	var known truth
	data, err := os.ReadFile(filepath.Join(opts.Pictures, "captions.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &known); err != nil {
		return fmt.Errorf("reading captions.json: %w", err)
	}
	if len(known.Pictures) == 0 {
		return fmt.Errorf("captions.json names no pictures")
	}
	captions, err := caption(ctx, opts, known)
	if err != nil {
		return err
	}

	right := 0
	for _, picture := range known.Pictures {
		got := captions[picture.File]
		verdict := "differs"
		if got == picture.Caption {
			right++
			verdict = "same"
		}
		fmt.Fprintf(out, "%s\n  caption  %s\n  truth    %s\n  %s\n", picture.File, got, picture.Caption, verdict)
	}
	share := float64(right) / float64(len(known.Pictures))
	fmt.Fprintf(out, "\n%d of %d captions are the true ones (%.0f %%)\n", right, len(known.Pictures), 100*share)
	if share < opts.Least {
		return fmt.Errorf("that is less than %.0f %%", 100*opts.Least)
	}
	return nil
}

// caption runs `glimpse caption` anew and gives the captions by the pictures' file names.
func caption(ctx context.Context, opts options, known truth) (map[string]string, error) {
	// Rows that are there already would be skipped.
	if err := os.RemoveAll(opts.Output); err != nil {
		return nil, err
	}
	arguments := []string{"caption", opts.Model, "-o", opts.Output, "--prompt", known.Prompt}
	for _, picture := range known.Pictures {
		arguments = append(arguments, filepath.Join(opts.Pictures, picture.File))
	}
	command := exec.CommandContext(ctx, opts.Glimpse, arguments...)
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return nil, fmt.Errorf("captioning with %s: %w", opts.Glimpse, err)
	}
	return readRows(opts.Output)
}

func readRows(path string) (map[string]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	captions := make(map[string]string)
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var row struct {
			Path    string          `json:"path"`
			Caption string          `json:"caption"`
			Error   json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		if len(row.Error) > 0 && string(row.Error) != "null" {
			return nil, fmt.Errorf("%s: %s", row.Path, row.Error)
		}
		captions[filepath.Base(row.Path)] = row.Caption
	}
	return captions, lines.Err()
}

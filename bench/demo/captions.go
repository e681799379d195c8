package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// leastCaptions is the share of right captions below which something is broken; the models reach far more.
const leastCaptions = 0.75

// showCaptions captions the sample pictures with `glimpse caption` and prints each caption beside the true one.
func showCaptions(ctx context.Context, d *demo, model string) error {
	known, err := readTruth(filepath.Join(d.Pictures, "captions.json"))
	if err != nil {
		return err
	}
	rows := model + ".captions.jsonl"
	if err := os.RemoveAll(rows); err != nil { // rows that are there already would be skipped
		return err
	}
	arguments := []string{"caption", model, "-o", rows}
	for _, picture := range known.Pictures {
		arguments = append(arguments, filepath.Join(d.Pictures, picture.File))
	}
	if _, err := d.glimpse(ctx, arguments...); err != nil {
		return err
	}
	captions, err := readRows(rows)
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
		fmt.Fprintf(d.out, "%s\n  caption  %s\n  truth    %s\n  %s\n", picture.File, got, picture.Caption, verdict)
	}
	return d.share("captions are the true ones", right, len(known.Pictures), leastCaptions)
}

// readRows returns the captions by the pictures' file names.
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
			Path    string
			Caption string
			Error   json.RawMessage
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

package main

import (
	"archive/zip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	tiledScenes = 30   // of the evaluation set, to keep the demonstration short
	leastTiled  = 0.75 // share of marks read with tiles, below which something is broken
)

// showTiling asks for the mark on a shape, which one tile a picture is too coarse to show, with and without tiles.
func showTiling(ctx context.Context, d *demo, model string) error {
	scenes, err := d.evaluationScenes(filepath.Join(d.Models, filepath.Base(model), "eval.zip"), model+".scenes")
	if err != nil {
		return err
	}
	right, all := map[string]int{}, 0
	for _, s := range scenes {
		if s.Kind != "mark" {
			continue
		}
		if all == tiledScenes {
			break
		}
		all++
		answers := map[string]string{}
		for _, tiling := range []string{"off", "auto"} {
			printed, err := d.glimpse(ctx, "ask", model, s.Question, "--image", s.path, "--tiling", tiling)
			if err != nil {
				return err
			}
			answers[tiling] = strings.TrimSpace(string(printed))
			if answers[tiling] == s.Answer {
				right[tiling]++
			}
		}
		if all <= 4 {
			fmt.Fprintf(d.out, "%s  %s\n  truth %s · one tile says %s · tiles say %s\n", filepath.Base(s.path), s.Question, s.Answer, answers["off"], answers["auto"])
		}
	}
	if err := d.share("marks are read with one tile a picture", right["off"], all, 0); err != nil {
		return err
	}
	return d.share("marks are read with tiles", right["auto"], all, leastTiled)
}

// asked is one question about a picture on disk.
type asked struct {
	question
	path string
}

// evaluationScenes unpacks a set of pictures and lists its questions.
func (d *demo) evaluationScenes(archive, folder string) ([]asked, error) {
	files, err := zip.OpenReader(archive)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	var known truth
	for _, f := range files.File {
		if !filepath.IsLocal(f.Name) || strings.ContainsRune(f.Name, '/') {
			return nil, fmt.Errorf("%s holds %q, which is no plain name", archive, f.Name)
		}
		data, err := readMember(f)
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(f.Name, ".json") {
			if err := json.Unmarshal(data, &known); err != nil {
				return nil, fmt.Errorf("reading %s of %s: %w", f.Name, archive, err)
			}
			continue
		}
		if err := os.WriteFile(filepath.Join(folder, f.Name), data, 0o644); err != nil {
			return nil, err
		}
	}
	var list []asked
	for _, p := range known.Pictures {
		for _, q := range p.Questions {
			list = append(list, asked{q, filepath.Join(folder, p.File)})
		}
	}
	return list, nil
}

// maxMember bounds a file of a set; pictures have a few kilobytes.
const maxMember = 4 << 20

func readMember(f *zip.File) ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxMember+1))
	if err == nil && len(data) > maxMember {
		err = fmt.Errorf("%s has more than %d bytes", f.Name, maxMember)
	}
	return data, err
}

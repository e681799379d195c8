package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// leastRanked is the share of pictures whose true caption comes first, below which something is broken.
const leastRanked = 0.6

// showRanking scores the captions of each picture with `glimpse score` and prints them by the matching head, best first.
func showRanking(ctx context.Context, d *demo, model string) error {
	var ranking struct {
		Pictures []struct {
			File        string
			Caption     string
			Distractors []string
		}
	}
	path := filepath.Join(d.Models, filepath.Base(model), "ranking.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &ranking); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	first := 0
	for _, picture := range ranking.Pictures {
		texts := append([]string{picture.Caption}, picture.Distractors...)
		arguments := []string{"score", model, "--json", "--image", filepath.Join(d.Pictures, picture.File)}
		for _, text := range texts {
			arguments = append(arguments, "--text", text)
		}
		printed, err := d.glimpse(ctx, arguments...)
		if err != nil {
			return err
		}
		var scores struct{ ITC, ITM [][]float64 }
		if err := json.Unmarshal(printed, &scores); err != nil {
			return fmt.Errorf("reading the scores of %s: %w", picture.File, err)
		}
		if len(scores.ITC) != 1 || len(scores.ITM) != 1 || len(scores.ITM[0]) != len(texts) || len(scores.ITC[0]) != len(texts) {
			return fmt.Errorf("the scores of %s are no row of %d", picture.File, len(texts))
		}
		order := make([]int, len(texts))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch {
			case scores.ITM[0][a] > scores.ITM[0][b]:
				return -1
			case scores.ITM[0][a] < scores.ITM[0][b]:
				return 1
			}
			return 0
		})
		if order[0] == 0 {
			first++
		}
		fmt.Fprintf(d.out, "%s\n     itm    itc\n", picture.File)
		for _, i := range order[:min(3, len(order))] {
			mark := " "
			if i == 0 {
				mark = "*"
			}
			fmt.Fprintf(d.out, "  %s %.3f  %.3f  %s\n", mark, scores.ITM[0][i], scores.ITC[0][i], texts[i])
		}
	}
	return d.share("true captions (*) come first", first, len(ranking.Pictures), leastRanked)
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
)

// leastBoxes is the mean overlap of boxes below which something is broken.
const leastBoxes = 0.8

// showBoxes asks where things are, prints the overlap of the answer's box with the true one, and draws the boxes.
func showBoxes(ctx context.Context, d *demo, model string) error {
	folder := d.Pictures + "-qwenvl"
	known, err := readTruth(filepath.Join(folder, "questions.json"))
	if err != nil {
		return err
	}
	sum, count := 0.0, 0
	for _, picture := range known.Pictures {
		for number, q := range picture.Questions {
			drawn := filepath.Join(d.Cache, fmt.Sprintf("%s-question-%d.png", strings.TrimSuffix(picture.File, ".png"), number+1))
			printed, err := d.glimpse(ctx, "ask", model, q.Question, "--image", filepath.Join(folder, picture.File), "--json", "--draw", drawn)
			if err != nil {
				return err
			}
			var answer struct {
				Text  string
				Boxes []struct {
					Label          string
					X1, Y1, X2, Y2 float64
				}
			}
			if err := json.Unmarshal(printed, &answer); err != nil {
				return fmt.Errorf("reading the answer about %s: %w", picture.File, err)
			}
			for i, want := range q.Boxes {
				overlap := 0.0
				if i < len(answer.Boxes) {
					b := answer.Boxes[i]
					overlap = iou([4]float64{b.X1, b.Y1, b.X2, b.Y2}, want)
				}
				sum += overlap
				count++
			}
			fmt.Fprintf(d.out, "%s  %s\n  %s\n  drawn in %s\n", picture.File, q.Question, answer.Text, drawn)
		}
	}
	mean := sum / float64(max(count, 1))
	fmt.Fprintf(d.out, "%d boxes overlap the true ones by %.2f on average (intersection over union)\n", count, mean)
	if mean < leastBoxes {
		return fmt.Errorf("boxes overlap the true ones by %.2f: at least %.2f is due", mean, leastBoxes)
	}
	return nil
}

// iou is the intersection of two boxes over their union.
func iou(a, b [4]float64) float64 {
	w := min(a[2], b[2]) - max(a[0], b[0])
	h := min(a[3], b[3]) - max(a[1], b[1])
	if w <= 0 || h <= 0 {
		return 0
	}
	area := func(r [4]float64) float64 { return (r[2] - r[0]) * (r[3] - r[1]) }
	return w * h / (area(a) + area(b) - w*h)
}

package main

import (
	"image/color"
	"strings"
	"testing"

	"glimpse/engine"
	"glimpse/preprocess"
)

func TestDrawBoxes(t *testing.T) {
	picture := preprocess.NewRGB(300, 200)
	boxes := []engine.Box{
		{Label: "a cat", X1: 50, Y1: 60, X2: 150, Y2: 160},
		{X1: 200, Y1: 150, X2: 290, Y2: 10}, // corners the wrong way round
		{Label: "far away", X1: -1 << 40, Y1: 1 << 40, X2: 1 << 40, Y2: 1 << 41},
		{Points: [][2]int{{10, 170}, {40, 170}, {40, 190}, {-1 << 40, 190}}},
	}
	got, err := drawBoxes(picture, boxes)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		x, y int
		want color.RGBA
	}{
		{50, 100, boxColors[0]}, {149, 100, boxColors[0]}, {100, 60, boxColors[0]}, {100, 159, boxColors[0]}, {100, 110, color.RGBA{A: 255}},
		{200, 80, boxColors[1]}, {250, 10, boxColors[1]}, {25, 170, boxColors[3]}, {40, 180, boxColors[3]},
	} {
		if have := got.RGBAAt(c.x, c.y); have != c.want {
			t.Errorf("pixel %d, %d is %v, want %v", c.x, c.y, have, c.want)
		}
	}
	// The label's patch stands on the box, and letters on it.
	patch, ink := 0, 0
	for y := 45; y < 60; y++ {
		for x := 50; x < 100; x++ {
			switch got.RGBAAt(x, y) {
			case boxColors[0]:
				patch++
			case color.RGBA{255, 255, 255, 255}, color.RGBA{A: 255}:
				ink++
			}
		}
	}
	if patch < 100 || ink < 10 {
		t.Errorf("the label has %d pixels of its patch and %d of its letters", patch, ink)
	}
}

func TestDrawWantsAPNG(t *testing.T) {
	o := AskOptions{Draw: "boxes.jpg", Temperature: 0, TopP: 1, RepetitionPenalty: 1}
	if err := o.check(true); err == nil || !strings.Contains(err.Error(), ".jpg") {
		t.Errorf("--draw boxes.jpg gives %v", err)
	}
}

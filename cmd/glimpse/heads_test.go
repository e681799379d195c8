package main

import (
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const retrievalSet = "../../testdata/goldens/blip2-itm-tiny"

// others converts further golden checkpoints, once for all tests.
var others sync.Map

func otherModel(t *testing.T, set string) string {
	t.Helper()
	once, _ := others.LoadOrStore(set, sync.OnceValues(func() (string, error) {
		dir := filepath.Join(filepath.Dir(program), set)
		out, err := exec.Command(program, "convert", filepath.Join(goldenSet, "..", set, "checkpoint"), "-o", dir, "--precision", "fp32").CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("convert %s: %w\n%s", set, err, out)
		}
		return dir, nil
	}))
	dir, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestScoreAndEmbed(t *testing.T) {
	t.Parallel()
	m := otherModel(t, "blip2-itm-tiny")
	args := []string{"--image", media + "/cat.png", "--image", media + "/rocket_wide.png", "--text", "a photo of a cat", "--text", "a rocket"}
	scores := decode[map[string][][]float64](t, must(t, append([]string{"score", m, "--json"}, args...)...).stdout)
	if len(scores) != 2 || len(scores["itc"]) != 2 || len(scores["itm"][1]) != 2 {
		t.Fatalf("%v", scores)
	}
	// From the golden set; the picture comes from its file, so a grey level here and there is off.
	if math.Abs(scores["itc"][0][0]+0.136118) > 1e-3 || math.Abs(scores["itm"][0][0]-0.983592) > 1e-3 {
		t.Errorf("cat.png and its caption: %v", scores)
	}
	table := must(t, append([]string{"score", m}, args...)...).stdout
	for _, part := range []string{"1  a photo of a cat", "itc", "itm", "rocket_wide.png", fmt.Sprintf("%.4f", scores["itm"][1][1])} {
		if !strings.Contains(table, part) {
			t.Errorf("the table has no %q:\n%s", part, table)
		}
	}
	type vectors struct {
		Data []struct {
			Kind, Source string
			Embedding    []float64
			Embeddings   [][]float64
		}
	}
	list := decode[vectors](t, must(t, append([]string{"embed", m, "--json"}, args...)...).stdout).Data
	if len(list) != 4 || list[0].Kind != "image" || list[0].Source != media+"/cat.png" || list[2].Kind != "text" || list[3].Source != "a rocket" {
		t.Fatalf("%+v", list)
	}
	best := math.Inf(-1)
	for _, row := range list[0].Embeddings {
		sum := 0.0
		for i, v := range row {
			sum += v * list[2].Embedding[i]
		}
		best = max(best, sum)
	}
	if math.Abs(best-scores["itc"][0][0]) > 1e-5 || len(list[0].Embedding) != 24 || list[2].Embeddings != nil {
		t.Errorf("the embeddings give %v, itc is %v", best, scores["itc"][0][0])
	}
	if text := must(t, append([]string{"embed", m}, args...)...).stdout; !strings.Contains(text, "8 rows") || !strings.Contains(text, "a rocket") {
		t.Errorf("embed prints %s", text)
	}
}

func TestScoresRefuse(t *testing.T) {
	t.Parallel()
	m := otherModel(t, "blip2-itm-tiny")
	cat := media + "/cat.png"
	for _, tc := range []struct {
		args  []string
		parts []string
	}{
		{[]string{"score", m, "--text", "a"}, []string{"no pictures"}},
		{[]string{"score", m, "--image", cat}, []string{"no texts"}},
		{[]string{"embed", m}, []string{"nothing to embed"}},
		{[]string{"score", m, "--image", cat, "--text", strings.Repeat("cat ", 80)}, []string{"texts[0]", "82 tokens", "64"}},
		{[]string{"score", m, "--image", "none.png", "--image", "nil.png", "--text", "a"}, []string{"none.png", "nil.png"}},
		{[]string{"score", m, "--image", retrievalSet + "/NOTES.md", "--text", "a"}, []string{"NOTES.md"}},
		{[]string{"score", m, "--image", cat, "--text", "a", "--max-pixels", "100"}, []string{"cat.png"}},
		{[]string{"score", otherModel(t, "blip2-opt-tiny"), "--image", cat, "--text", "a"}, []string{"blip2-opt-tiny", "no scoring heads"}},
		{[]string{"embed", otherModel(t, "blip2-opt-tiny"), "--text", "a"}, []string{"blip2-opt-tiny", "no embedding heads"}},
		{[]string{"ask", m, "hi", "--image", cat}, []string{"decoder"}},
	} {
		refused(t, glimpse(t, tc.args...), tc.parts...)
	}
}

// Models whose pictures go before the text: verify passes, ask and caption work without a prompt and with one.
func TestModelsWithoutTemplate(t *testing.T) {
	t.Parallel()
	for _, set := range []string{"blip2-opt-tiny", "blip2-t5-tiny", "instructblip-tiny", "blip2-itm-tiny"} {
		must(t, "verify", otherModel(t, set), "--golden", filepath.Join(goldenSet, "..", set))
	}
	for _, set := range []string{"blip2-opt-tiny", "blip2-t5-tiny"} {
		m := otherModel(t, set)
		asked := decode[reply](t, must(t, "ask", m, "--image", media+"/cat.png", "--max-tokens", "24", "--json").stdout)
		if len(asked.PromptTokenIDs) != 9 || asked.Usage.ImageTokens != 8 {
			t.Errorf("%s: %+v", set, asked)
		}
		rows := parseRows(t, []byte(must(t, "caption", m, media+"/cat.png", "-o", "-", "--max-tokens", "24", "--quiet").stdout))
		if len(rows) != 1 || rows[0].Caption != asked.Text {
			t.Errorf("%s: caption gives %+v, ask %q", set, rows, asked.Text)
		}
		question := must(t, "ask", m, "a photo of", "--image", media+"/rocket_wide.png", "--max-tokens", "24").stdout
		if slices.Contains([]string{"", asked.Text + "\n"}, question) {
			t.Errorf("%s: a prompt is answered with %q", set, question)
		}
	}
}

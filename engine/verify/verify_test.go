package verify_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/engine/verify"
	"glimpse/graphs"
)

const goldens = "../../testdata/goldens"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openModel converts llava15-tiny and opens it.
func openModel(t *testing.T) *engine.Engine {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "llava15-tiny")
	_, err := convert.Convert(t.Context(), convert.Options{
		Checkpoint: filepath.Join(goldens, "llava15-tiny", "checkpoint"), Out: folder, Precision: "fp32",
	})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	e, err := engine.Open(t.Context(), folder, engine.Options{Runtime: rt, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestGoldenSet(t *testing.T) {
	e := openModel(t)
	report, err := verify.Run(t.Context(), e, filepath.Join(goldens, "llava15-tiny"), verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK || len(report.Cases) != 10 || report.Set != "llava15-tiny" {
		t.Errorf("%s: ok %v with %d cases", report.Set, report.OK, len(report.Cases))
	}
	want := []string{"prompt_text", "input_ids", "num_image_tokens", "pixel_values", "vision_features", "projected",
		"inputs_embeds", "logits_first", "logits_last", "generated_ids", "text", "finish"}
	for _, c := range report.Cases {
		var names []string
		for _, r := range c.Rows {
			names = append(names, r.Array)
			t.Logf("%-12s %-28s %10.3g of %-10.3g %v %s", c.ID, r.Array, r.MaxAbsDiff, r.Tolerance, r.OK, r.Note)
		}
		for _, w := range want {
			picture := w == "pixel_values" || w == "vision_features" || w == "projected"
			if slices.Contains(names, w) == (picture && c.ID == "text_only") {
				t.Errorf("case %s compares %v", c.ID, names)
			}
		}
	}
	t.Run("differences are found", func(t *testing.T) { findsDifferences(t, e) })
}

// altered is a copy of the golden set with one case, changed by edit.
func altered(t *testing.T, edit func(c map[string]any)) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(goldens, "llava15-tiny", "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	c := file["cases"].([]any)[0].(map[string]any)
	edit(c)
	file["cases"] = []any{c}
	if raw, err = json.Marshal(file); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	folder := filepath.Join(dir, "set")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "cases.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(goldens)
	if err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		filepath.Join(folder, "golden.safetensors"): filepath.Join(root, "llava15-tiny", "golden.safetensors"),
		filepath.Join(dir, "media"):                 filepath.Join(root, "media"),
	} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func findsDifferences(t *testing.T, e *engine.Engine) {
	expected := func(key string, value any) func(map[string]any) {
		return func(c map[string]any) { c["expected"].(map[string]any)[key] = value }
	}
	array := func(name, key string) func(map[string]any) {
		return func(c map[string]any) { c["arrays"].(map[string]any)[name] = key }
	}
	set := func(key string, value any) func(map[string]any) {
		return func(c map[string]any) { c[key] = value }
	}
	for _, c := range []struct {
		name string
		edit func(c map[string]any)
		row  string // the first row that must not be ok
	}{
		{"nothing changed", func(map[string]any) {}, ""},
		{"ids", expected("input_ids", []int{1, 2}), "input_ids"},
		{"prompt", expected("prompt_text", "x"), "prompt_text"},
		{"image tokens", expected("num_image_tokens", 15), "num_image_tokens"},
		{"answer", func(c map[string]any) { c["expected"].(map[string]any)["generated_ids"].([]any)[23] = 1 }, "generated_ids"},
		{"finish", expected("finish", "stop"), "finish"},
		{"text", expected("text", ""), "text"},
		{"another picture", set("images", []string{"coffee.png"}), "pixel_values"},
		{"the pixels of another picture", array("pixel_values", "vqa_short.pixel_values"), "pixel_values"},
		{"another array of the same shape", array("projected", "vqa_short.projected"), "projected"},
		{"another array of another shape", array("inputs_embeds", "vqa_short.inputs_embeds"), "inputs_embeds"},
		{"other logits", array("logits_last", "caption.logits_first"), "logits_last"},
		{"an array that no graph makes", array("qformer", "caption.projected"), "qformer"},
		{"an array that is not stored", array("projected", "nowhere"), "projected"},
		{"an unknown kind", set("kind", "score"), "kind"},
		{"videos", set("videos", []string{"v"}), "case"},
		{"unknown options of the processor", set("processor_kwargs", map[string]any{"max_patches": 3}), "processor_kwargs"},
		{"other sizes", array("image_sizes", "caption.logits_first"), "image_sizes"},
		{"a missing picture", set("images", []string{"nothing.png"}), "case"},
		{"too few pictures", set("images", []string{}), "case"},
		{"no prompt", set("messages", nil), "from the file"},
		{"no pixels", func(c map[string]any) { delete(c["arrays"].(map[string]any), "pixel_values") }, "pixel_values"},
	} {
		report, err := verify.Run(t.Context(), e, altered(t, c.edit), verify.Options{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if report.OK != (c.row == "") {
			t.Errorf("%s: ok is %v", c.name, report.OK)
		}
		if at := slices.IndexFunc(report.Cases[0].Rows, func(r verify.Row) bool { return !r.OK }); c.row != "" &&
			(at < 0 || report.Cases[0].Rows[at].Array != c.row) {
			t.Errorf("%s: the rows are %+v, want %s not ok", c.name, report.Cases[0].Rows, c.row)
		}
	}
}

func TestNothingComparedIsNotOK(t *testing.T) {
	e := openModel(t)
	folder := altered(t, func(c map[string]any) {
		c["expected"] = map[string]any{}
		c["arrays"] = map[string]any{}
		c["images"] = nil
		c["messages"] = nil
		c["prompt"] = "hello"
	})
	report, err := verify.Run(t.Context(), e, folder, verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if report.OK || report.Cases[0].OK {
		t.Error("a case without a comparison is ok")
	}
	if _, err := verify.Run(t.Context(), e, folder, verify.Options{Cases: []string{"capton"}}); err == nil || !strings.Contains(err.Error(), "capton") {
		t.Errorf("an unknown case: %v", err)
	}
	if report, err = verify.Run(t.Context(), e, folder, verify.Options{Cases: []string{}}); err != nil || report.OK {
		t.Errorf("no case at all is ok (%v)", err)
	}
	if _, err := verify.Run(t.Context(), e, t.TempDir(), verify.Options{}); err == nil {
		t.Error("an empty folder is a golden set")
	}
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/convert"
	"glimpse/convert/calibration"
)

const scenesCheckpoint = "../../testdata/models/scenes-llava"

// samplesFolder holds two pictures and three prompts.
func samplesFolder(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	for _, name := range []string{"scene-01.png", "scene-02.png"} {
		data, err := os.ReadFile(filepath.Join("../../testdata/pictures", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	prompts := "Describe the image in one sentence.\n\nWhat colour is the circle? Answer the question using a single word or phrase.\nHow many shapes are there?\n"
	if err := os.WriteFile(filepath.Join(folder, promptsFile), []byte(prompts), 0o600); err != nil {
		t.Fatal(err)
	}
	return folder
}

// policyOf returns what a conversion says about a component.
func policyOf(t *testing.T, s convert.Summary, component string) string {
	t.Helper()
	for _, c := range s.Components {
		if c.Name == component {
			return c.Policy
		}
	}
	t.Fatalf("no component %s", component)
	return ""
}

// Samples make statistics of every decoder layer, which are kept, used, and give the same model when used again.
func TestCalibratedConversion(t *testing.T) {
	folder, samples := t.TempDir(), samplesFolder(t)
	file := filepath.Join(folder, "c.safetensors")
	out := func(name string) string { return filepath.Join(folder, name) }
	first := glimpse(t, "convert", scenesCheckpoint, "-o", out("a"), "--precision", "int4", "--calibrate", samples, "--calibration", file, "--json", "--threads", "1")
	if first.code != 0 || !strings.Contains(first.stderr, "calibrated on 3 samples") {
		t.Fatalf("status %d: %s", first.code, first.stderr)
	}
	policy := policyOf(t, decode[convert.Summary](t, first.stdout), "decoder")
	if !strings.Contains(policy, "4 layers rounded with compensation") || !strings.Contains(policy, "9 layers smoothed") {
		t.Errorf("policy %q", policy)
	}
	s, err := calibration.Read(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if rows := s.Rows("decoder"); rows < 2*64 || s.Rows("vision") < 2*64 { // the pictures' tokens at least
		t.Errorf("%d rows of the decoder, %d of the tower", rows, s.Rows("vision"))
	}
	again := glimpse(t, "convert", scenesCheckpoint, "-o", out("b"), "--precision", "int4", "--calibration", file)
	if again.code != 0 {
		t.Fatal(again.stderr)
	}
	for _, name := range []string{"decoder.onnx", "decoder.onnx.data", "prefill.onnx.data"} {
		a, errA := os.ReadFile(filepath.Join(out("a"), name))
		b, errB := os.ReadFile(filepath.Join(out("b"), name))
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Errorf("%s differs (%v, %v)", name, errA, errB)
		}
	}
	auto := glimpse(t, "convert", scenesCheckpoint, "-o", out("auto"), "--calibrate", samples, "--threads", "1")
	if auto.code != 0 || !strings.Contains(auto.stderr, "int4 KL ") {
		t.Errorf("status %d: %s", auto.code, auto.stderr)
	}
	left, err := filepath.Glob(filepath.Join(folder, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	ask := glimpse(t, "ask", out("a"), "What colour is the circle? Answer the question using a single word or phrase.", "--image", filepath.Join(samples, "scene-01.png"))
	if ask.code != 0 || strings.TrimSpace(ask.stdout) == "" {
		t.Errorf("status %d: %s %s", ask.code, ask.stdout, ask.stderr)
	}
}

func TestBudgetIsKept(t *testing.T) {
	out := filepath.Join(t.TempDir(), "m")
	res := glimpse(t, "convert", scenesCheckpoint, "-o", out, "--precision", "int4", "--budget", "6", "--json")
	if res.code != 0 {
		t.Fatal(res.stderr)
	}
	if policy := policyOf(t, decode[convert.Summary](t, res.stdout), "decoder"); !strings.Contains(policy, "bits a weight: ") {
		t.Errorf("policy %q", policy)
	}
}

func TestBadCalibrationIsBadInput(t *testing.T) {
	folder := t.TempDir()
	broken := filepath.Join(folder, "broken.safetensors")
	if err := os.WriteFile(broken, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(folder, "m")
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"no samples":           {[]string{"--calibrate", t.TempDir()}, "has no pictures and no prompts.txt"},
		"no such folder":       {[]string{"--calibrate", filepath.Join(folder, "none")}, "samples for calibration"},
		"no file":              {[]string{"--calibration", filepath.Join(folder, "none.safetensors")}, "read calibration"},
		"broken file":          {[]string{"--calibration", broken}, "read calibration"},
		"nothing to run":       {[]string{"--calibrate", samplesFolder(t), "--plan"}, "--plan reads no weights"},
		"nothing to judge":     {[]string{"--precision", "int4", "--budget", "4.6", "--plan"}, "--plan reads no weights, and --budget"},
		"budget without int4":  {[]string{"--budget", "6", "--precision", "int8"}, "--precision int4"},
		"budget below 4 bits":  {[]string{"--budget", "3", "--precision", "int4"}, "fewer than"},
		"budget is no number":  {[]string{"--budget", "NaN", "--precision", "int4"}, "budget"},
		"budget is not finite": {[]string{"--budget", "-Inf", "--precision", "int4"}, "budget"},
	} {
		t.Run(name, func(t *testing.T) {
			res := glimpse(t, append([]string{"convert", scenesCheckpoint, "-o", out}, c.args...)...)
			if res.code != exitUsage || !strings.Contains(res.stderr, c.says) {
				t.Errorf("status %d: %s", res.code, res.stderr)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("a model was written")
			}
		})
	}
}

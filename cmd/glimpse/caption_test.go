package main

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"glimpse/batch"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// drawn writes n different pictures, and some files that are none.
func drawn(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("%03d.png", i))
		if i%10 == 7 {
			overwrite(t, path, fmt.Appendf(nil, "not picture %d", i))
			continue
		}
		img := image.NewRGBA(image.Rect(0, 0, 40, 30))
		for y := range 30 {
			for x := range 40 {
				img.SetRGBA(x, y, color.RGBA{uint8(x * i), uint8(y * (i + 3)), uint8(i), 255})
			}
		}
		var b bytes.Buffer
		if err := png.Encode(&b, img); err != nil {
			t.Fatal(err)
		}
		overwrite(t, path, b.Bytes())
	}
	return dir
}

func readRows(t *testing.T, path string) []batch.Row {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseRows(t, raw)
}

func parseRows(t *testing.T, raw []byte) []batch.Row {
	t.Helper()
	var rows []batch.Row
	for line := range bytes.Lines(raw) {
		rows = append(rows, decode[batch.Row](t, string(line)))
	}
	return rows
}

// exact are the flags with which log-probabilities are equal to their last digit too: nothing shares steps, and no prompt is cut
// elsewhere because of what came before it. Pictures are still prepared several at a time.
var exact = []string{"--slots", "1", "--prefix-cache=false"}

func TestCaption(t *testing.T) {
	m := model(t)
	dir := drawn(t, 20)
	out := filepath.Join(t.TempDir(), "out.jsonl")
	args := append([]string{"caption", m, dir, filepath.Join(media, "cat.jpg"), "-o", out, "--max-tokens", "6"}, exact...)
	r := glimpse(t, args...)
	if r.code != exitFound || !strings.Contains(r.stderr, "21 written, 2 with an error (not_a_picture 2)") {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	rows := readRows(t, out)
	if len(rows) != 21 {
		t.Fatalf("%d rows", len(rows))
	}
	for i, row := range rows[:20] {
		if (row.Error != nil) != (i%10 == 7) || filepath.Base(row.Path) != fmt.Sprintf("%03d.png", i) {
			t.Errorf("row %d: %+v", i, row)
		}
		if row.Error == nil && (row.Width != 40 || row.Height != 30 || row.Tokens != 6 || row.MS <= 0 || row.Model != filepath.Base(m)) {
			t.Errorf("row %d: %+v", i, row)
		}
	}
	again := glimpse(t, args...)
	if again.code != exitFound || !strings.Contains(again.stderr, "0 written, 21 there already, 2 with an error") {
		t.Errorf("again: exit %d: %s", again.code, again.stderr)
	}
	// One at a time, to standard output: the same rows.
	piped := glimpse(t, append([]string{"caption", m, dir, filepath.Join(media, "cat.jpg"), "-o", "-", "--max-tokens", "6", "--parallel", "1"}, exact...)...)
	if d := cmp.Diff(rows, parseRows(t, []byte(piped.stdout)), cmpopts.IgnoreFields(batch.Row{}, "MS")); d != "" {
		t.Errorf("standard output differs (-file +stdout):\n%s", d)
	}
	if good := glimpse(t, "caption", m, filepath.Join(media, "cat.jpg"), "-o", filepath.Join(t.TempDir(), "o.jsonl"), "--max-tokens", "2"); good.code != 0 {
		t.Errorf("a run without errors exits %d: %s", good.code, good.stderr)
	}
}

func TestCaptionSurvivesKill(t *testing.T) {
	m := model(t)
	dir := drawn(t, 150)
	folder := t.TempDir()
	whole, out := filepath.Join(folder, "whole.jsonl"), filepath.Join(folder, "out.jsonl")
	glimpse(t, append([]string{"caption", m, dir, "-o", whole, "--max-tokens", "6"}, exact...)...)
	want := readRows(t, whole)
	if len(want) != 150 {
		t.Fatalf("%d rows in the uninterrupted run", len(want))
	}
	args := append([]string{"caption", m, dir, "-o", out, "--max-tokens", "6"}, exact...)
	for round, signal := range []os.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		cmd := command(t, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		before := size(out)
		for deadline := time.Now().Add(20 * time.Second); size(out) == before && time.Now().Before(deadline); {
			time.Sleep(2 * time.Millisecond) // until it writes rows
		}
		time.Sleep(rand.N(40 * time.Millisecond))
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		code := cmd.ProcessState.ExitCode()
		if signal != syscall.SIGKILL && code != exitInterrupted && code != exitFound { // it may have been done just before
			t.Errorf("round %d: exit %d after %v: %s", round, code, signal, stderr.String())
		}
		if round == 0 && size(out) > 0 { // what a power cut adds
			f, err := os.OpenFile(out, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(f, `{"id":"half a r`)
			f.Close()
		}
	}
	if r := glimpse(t, args...); r.code != exitFound {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	if d := cmp.Diff(want, readRows(t, out), cmpopts.IgnoreFields(batch.Row{}, "MS")); d != "" {
		t.Errorf("rows differ from an uninterrupted run (-want +got):\n%s", d)
	}
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// partsOf reads what a folder of parts holds, the journal included.
func partsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, pattern := range []string{"*", ".glimpse/*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				files[strings.TrimPrefix(path, dir)] = string(read(t, path))
			}
		}
	}
	return files
}

// The binary, killed with -9 while it fills folders of parts, and run again.
func TestPartsSurviveKill(t *testing.T) {
	m := model(t)
	pictures := mixedPictures(t, 120)
	for _, format := range []string{"webdataset", "parquet"} {
		t.Run(format, func(t *testing.T) {
			folder := t.TempDir()
			args := func(out string) []string {
				return []string{"caption", m, pictures, "-o", out, "--format", format, "--part-rows", "16", "--reproducible", "--max-tokens", "8", "--dedupe", "near"}
			}
			whole, out := filepath.Join(folder, "whole"), filepath.Join(folder, "out")
			if r := glimpse(t, args(whole)...); r.code != exitFound {
				t.Fatalf("exit %d: %s", r.code, r.stderr)
			}
			kills := 0
			for range 4 {
				cmd := command(t, args(out)...)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				before := len(partsOf(t, out))
				for deadline := time.Now().Add(20 * time.Second); len(partsOf(t, out)) == before && time.Now().Before(deadline); {
					time.Sleep(2 * time.Millisecond)
				}
				time.Sleep(rand.N(60 * time.Millisecond))
				_ = cmd.Process.Signal(syscall.SIGKILL)
				if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() == -1 {
					kills++
				}
			}
			if r := glimpse(t, args(out)...); r.code != exitFound {
				t.Fatalf("exit %d: %s", r.code, r.stderr)
			}
			want, got := partsOf(t, whole), partsOf(t, out)
			for name := range want {
				if !bytes.Equal([]byte(want[name]), []byte(got[name])) {
					t.Errorf("%s differs after %d kills", name, kills)
				}
			}
			if len(got) != len(want) || kills == 0 {
				t.Errorf("%d files, want %d; %d kills", len(got), len(want), kills)
			}
		})
	}
}

// The report is written, an output in a folder that is not ours is refused, and so are wrong words.
func TestCaptionOptionsAreChecked(t *testing.T) {
	m := model(t)
	pictures, folder := drawn(t, 3), t.TempDir()
	page := filepath.Join(folder, "report.html")
	must(t, "caption", m, pictures, "-o", filepath.Join(folder, "o.jsonl"), "--report", page, "--prompt", "a", "--prompt", "b", "--max-tokens", "3")
	if html := string(read(t, page)); strings.Count(html, "<article>") != 3 {
		t.Errorf("%d pictures in the report", strings.Count(html, "<article>"))
	}
	refused(t, glimpse(t, "caption", m, pictures, "-o", filepath.Join(folder, "x.parquet")), "x.parquet", "folder")
	refused(t, glimpse(t, "caption", m, pictures, "-o", folder, "--format", "xml"), "xml", "parquet")
	refused(t, glimpse(t, "caption", m, pictures, "-o", filepath.Join(folder, "o.jsonl"), "--on-existing", "append"), "folder")
	refused(t, glimpse(t, "caption", m, pictures, "-o", "s3://bucket/out"), "--state")
	refused(t, glimpse(t, "caption", m, "https://example.org/a.png", "-o", filepath.Join(folder, "n.jsonl")), "https://example.org/a.png")
	refused(t, glimpse(t, "caption", m, pictures, "-o", filepath.Join(folder, "n.jsonl"), "--itm"), "scoring heads")
	overwrite(t, filepath.Join(folder, "part-00000.csv"), []byte("a stranger's"))
	refused(t, glimpse(t, "caption", m, pictures, "-o", folder), "part-00000.csv")
}

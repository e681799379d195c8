// The queue that every caption run has in its own process.

package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"glimpse/batch/sink"

	"github.com/google/go-cmp/cmp"
)

// fed starts a run that takes its pictures from standard input, and so goes on until that is closed.
func fed(t *testing.T, args ...string) (cmd *exec.Cmd, feed io.WriteCloser, said *bytes.Buffer) {
	t.Helper()
	cmd = command(t, args...)
	said = &bytes.Buffer{}
	cmd.Stderr = said
	feed, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, feed, said
}

func eventually(t *testing.T, what string, there func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !there(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// listening counts the TCP sockets on which a process waits for others.
func listening(t *testing.T, pid int) int {
	t.Helper()
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" { // LISTEN
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	n := 0
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil && inodes[to] {
			n++
		}
	}
	return n
}

// A run has a queue of its own without being asked: no port is open, its status is seen through its output, and nothing is
// left of it at the end. With --queue-listen, others join it.
func TestCaptionHasAQueueOfItsOwn(t *testing.T) {
	m := model(t)
	if _, err := os.Stat("/proc/self/net/tcp"); err != nil {
		t.Skip("wants /proc")
	}
	for _, tc := range []struct {
		name  string
		out   string
		flags []string
		ports int
	}{
		{"file", "out.jsonl", nil, 0},
		{"folder", "out", nil, 0},
		{"a path longer than a socket's address", strings.Repeat("long/", 30) + "out.jsonl", nil, 0},
		{"listening", "out.jsonl", []string{"--queue-listen", "127.0.0.1:0"}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			folder := t.TempDir()
			out := filepath.Join(folder, tc.out)
			if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd, feed, said := fed(t, append([]string{"caption", m, "-", "-o", out, "--max-tokens", "2"}, tc.flags...)...)
			fmt.Fprintln(feed, filepath.Join(media, "cat.jpg"))
			eventually(t, "a row", func() bool { return rowsBelow(t, folder) == 1 })
			if n := listening(t, cmd.Process.Pid); n != tc.ports {
				t.Errorf("%d ports are open, want %d", n, tc.ports)
			}
			status := must(t, "queue", "status", out)
			if !strings.Contains(status.stdout, " running: ") || !strings.Contains(status.stdout, "worker ") {
				t.Errorf("status %s", status.stdout)
			}
			if tc.ports > 0 {
				_, address, _ := strings.Cut(said.String(), "--join ")
				address, _, _ = strings.Cut(address, "`")
				must(t, "queue", "status", address)
			}
			refused(t, glimpse(t, "caption", m, filepath.Join(media, "cat.jpg"), "-o", out), "being written by another run")
			feed.Close()
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v: %s", err, said)
			}
			refused(t, glimpse(t, "queue", "status", out), "no run")
			for _, path := range sink.States(out, "queue") {
				if _, err := os.Stat(path); err == nil {
					t.Errorf("%s is left", path)
				}
			}
		})
	}
}

func rowsBelow(t *testing.T, folder string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && (filepath.Ext(path) == ".jsonl" || strings.HasPrefix(d.Name(), "journal-")) && !d.IsDir() {
			raw, _ := os.ReadFile(path)
			n += bytes.Count(raw, []byte(`"caption":`))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// With a queue and without one, rows and errors are the same; on standard output too, where nothing is kept.
func TestQueueOffIsTheSame(t *testing.T) {
	m := model(t)
	pictures, folder := mixedPictures(t, 30), t.TempDir()
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	var files [][]byte
	for _, flags := range [][]string{{"--queue=off"}, nil, {"--queue", "--queue-listen", "127.0.0.1:0"}} {
		out := filepath.Join(folder, fmt.Sprintf("%d.jsonl", len(files)))
		args := append([]string{"caption", m, pictures, "--reproducible", "--max-tokens", "6"}, flags...)
		r := glimpse(t, append(args, "-o", out)...)
		piped := glimpse(t, append(args, "-o", "-")...)
		if r.code != exitFound || piped.code != exitFound {
			t.Fatalf("%v: exit %d: %s, on standard output %d: %s", flags, r.code, r.stderr, piped.code, piped.stderr)
		}
		if !strings.Contains(r.stderr, "model idle") {
			t.Errorf("%v: nothing is said of the model: %s", flags, r.stderr)
		}
		files = append(files, read(t, out))
		for _, got := range [][]byte{files[len(files)-1], []byte(piped.stdout)} {
			if d := cmp.Diff(string(files[0]), string(got)); d != "" {
				t.Errorf("%v (-off +):\n%s", flags, d)
			}
		}
	}
	for _, name := range entries(t, temporary) {
		if strings.HasPrefix(name, "glimpse") {
			t.Errorf("%s is left of what is temporary", name)
		}
	}
	// Outputs that cannot be written.
	taken := filepath.Join(folder, "0.jsonl")
	for _, out := range []string{filepath.Join(folder, "no", "x.jsonl"), filepath.Join(taken, "x.jsonl"), filepath.Join(taken, "x"), filepath.Join(folder, "x.csv"), "/dev/full", "/proc/x.jsonl"} {
		args := []string{"caption", m, filepath.Join(media, "cat.jpg"), "-o", out, "--max-tokens", "2", "--quiet"}
		with, without := glimpse(t, args...), glimpse(t, append(args, "--queue=off")...)
		if with.code == 0 || with.code != without.code || with.stderr != without.stderr {
			t.Errorf("%s: exit %d: %s; without a queue %d: %s", out, with.code, with.stderr, without.code, without.stderr)
		}
	}
	// What this model has no heads for is said at once, and nothing is written.
	out := filepath.Join(folder, "heads.jsonl")
	refused(t, glimpse(t, "caption", m, pictures, "-o", out, "--embedding"), "embedding heads")
	if _, err := os.Stat(out); err == nil {
		t.Error("an output was begun")
	}
	refused(t, glimpse(t, "caption", m, pictures, "-o", out, "--queue=off", "--queue-listen", "127.0.0.1:0"), "--queue-listen")
	// A run that fails before it has an answer leaves no queue.
	cmd := command(t, "caption", m, "-", "-o", out)
	feed, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the queue", func() bool { _, err := os.Stat(filepath.Join(out+".queue", "socket")); return err == nil })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	feed.Close()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(out + ".queue"); err == nil {
		t.Error("an empty queue is left")
	}
}

// Runs in one folder at the same time do not meet.
func TestRunsBesideEachOther(t *testing.T) {
	m := model(t)
	folder := t.TempDir()
	outs := []string{"a.jsonl", "b.jsonl", "c", "."}
	var feeds []io.Closer
	var runs []*exec.Cmd
	for _, out := range outs {
		cmd, feed, _ := fed(t, "caption", m, "-", "-o", filepath.Join(folder, out), "--max-tokens", "2")
		fmt.Fprintln(feed, filepath.Join(media, "cat.jpg"))
		feeds, runs = append(feeds, feed), append(runs, cmd)
	}
	eventually(t, "a row of each", func() bool { return rowsBelow(t, folder) == len(outs) })
	for i, cmd := range runs {
		feeds[i].Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", outs[i], err)
		}
	}
}

// What is left of a queue must not keep a run from its end, whatever it is: the journal is the truth.
func TestWhatIsLeftOfAQueueDoesNoHarm(t *testing.T) {
	m := model(t)
	interrupt := func(folder string, args []string) {
		cmd, feed, _ := fed(t, args...)
		defer feed.Close()
		fmt.Fprintln(feed, filepath.Join(media, "cat.jpg"))
		eventually(t, "a row", func() bool { return rowsBelow(t, folder) > 0 })
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for name, spoil := range map[string]func(t *testing.T, path string){
		"zeros": func(t *testing.T, path string) { overwrite(t, path, make([]byte, size(path))) },
		"torn":  func(t *testing.T, path string) { overwrite(t, path, read(t, path)[:size(path)/2]) },
		"noise": func(t *testing.T, path string) {
			noise := make([]byte, size(path)+50)
			for i := range noise {
				noise[i] = byte(rand.Uint32())
			}
			overwrite(t, path, noise)
		},
		"gone": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			out := filepath.Join(folder, "out.jsonl")
			args := []string{"caption", m, "-", "-o", out, "--max-tokens", "2"}
			interrupt(folder, args)
			err := filepath.WalkDir(out+".queue", func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() && d.Name() != "job" {
					spoil(t, path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			cmd := command(t, args...)
			cmd.Stdin = strings.NewReader(filepath.Join(media, "cat.jpg") + "\n" + filepath.Join(media, "none.png") + "\n")
			r := runIt(t, cmd)
			if want := exitFound; r.code != want { // none.png is not there
				t.Errorf("exit %d, want %d: %s", r.code, want, r.stderr)
			}
			if n := lines(out); n != 2 {
				t.Errorf("%d rows", n)
			}
			if names := entries(t, folder); len(names) != 2 { // the rows and the errors
				t.Errorf("left: %v", names)
			}
		})
	}
}

// Killed with -9 at random moments and run again, every format ends as it does undisturbed. GLIMPSE_KILLS is how often a
// format is killed (make test-queue: 50).
func TestKilledAtRandomMoments(t *testing.T) {
	m := model(t)
	kills := 3
	if s := os.Getenv("GLIMPSE_KILLS"); s != "" {
		if _, err := fmt.Sscan(s, &kills); err != nil {
			t.Fatal(err)
		}
	}
	pictures := mixedPictures(t, 120)
	for _, format := range append([]string{"file"}, sink.Formats...) {
		t.Run(format, func(t *testing.T) {
			run := func(out string) []string {
				args := []string{"caption", m, pictures, "--reproducible", "--max-tokens", "6", "--quiet"}
				if format == "file" {
					return append(args, "-o", out+".jsonl")
				}
				return append(args, "-o", out, "--format", format, "--part-rows", "37")
			}
			home := t.TempDir()
			begin := time.Now()
			if r := glimpse(t, run(filepath.Join(home, "whole"))...); r.code != exitFound {
				t.Fatalf("exit %d: %s", r.code, r.stderr)
			}
			took := time.Since(begin)
			want := below(t, filepath.Join(home, "whole"))
			texts := sideCars(t, pictures)
			ends := 0
			for killed := 0; killed < kills; ends++ {
				out := filepath.Join(home, fmt.Sprintf("out-%d", ends))
				for path := range texts {
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
				for {
					cmd := command(t, run(out)...)
					if err := cmd.Start(); err != nil {
						t.Fatal(err)
					}
					if killed < kills {
						timer := time.AfterFunc(took/20+rand.N(took*4/5), func() { _ = cmd.Process.Kill() })
						_ = cmd.Wait()
						timer.Stop()
					} else {
						_ = cmd.Wait()
					}
					if code := cmd.ProcessState.ExitCode(); code == exitFound {
						break
					} else if code != -1 {
						t.Fatalf("exit %d", code)
					}
					killed++
				}
				if d := cmp.Diff(want, below(t, out)); d != "" {
					t.Fatalf("after %d kills (-undisturbed +killed):\n%s", killed, d)
				}
				if d := cmp.Diff(texts, sideCars(t, pictures)); d != "" {
					t.Fatalf("side-cars after %d kills:\n%s", killed, d)
				}
			}
			t.Logf("%d kills, %d times to the end", kills, ends)
		})
	}
}

var runNumber = regexp.MustCompile(`"run": \d+,`)

// below is every file of an output, its journal and whatever else is left included.
func below(t *testing.T, out string) map[string]string {
	t.Helper()
	files := map[string]string{}
	matches, err := filepath.Glob(out + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range matches {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && d.Name() != "lock" {
				raw := read(t, path)
				if d.Name() == "run.json" { // killed behind its end, the next run is another, which finds nothing to do
					raw = runNumber.ReplaceAll(raw, nil)
				}
				if !bytes.HasPrefix(raw, []byte("{")) {
					raw = []byte(hex.EncodeToString(raw))
				}
				files[strings.TrimPrefix(path, out)] = string(raw)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func sideCars(t *testing.T, pictures string) map[string]string {
	t.Helper()
	texts := map[string]string{}
	found, err := filepath.Glob(filepath.Join(pictures, "*", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		texts[path] = string(read(t, path))
	}
	return texts
}

// A serve process for tests: started, asked, looked into.

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serving is a serve process.
type serving struct {
	cmd    *exec.Cmd
	base   string
	client *http.Client
	told   bool          // it was told to stop: a second signal would kill it
	ended  chan struct{} // closed at the end of its standard error
	mu     sync.Mutex
	log    strings.Builder
}

func (s *serving) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// startServing starts serve and returns when it has printed its address. It is stopped, and must stop well, with the test.
func startServing(t *testing.T, args ...string) *serving {
	t.Helper()
	s := &serving{cmd: exec.Command(program, append([]string{"serve", "--listen", "127.0.0.1:0", "--threads", "1"}, args...)...)}
	s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512}, Timeout: 2 * time.Minute}
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	read := make(chan struct{})
	s.ended = read
	go func() {
		defer close(read)
		defer close(address)
		where := regexp.MustCompile(`^glimpse: serving .* on (http://[0-9.:]+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			s.mu.Lock()
			s.log.WriteString(lines.Text() + "\n")
			s.mu.Unlock()
			if m := where.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		if !s.told {
			_ = s.cmd.Process.Signal(syscall.SIGTERM) // where it is gone already, Wait says so
		}
		<-read
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("serve ended with %v", err)
		}
		if t.Failed() {
			text := s.text()
			t.Log(text[max(0, len(text)-8000):])
		}
	})
	s.base = <-address
	if s.base == "" {
		t.Fatal("no address on standard error")
	}
	return s
}

func (s *serving) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := s.client.Get(s.base + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

// streamed is what became of a streamed request.
type streamed struct {
	status int
	retry  string // the Retry-After header
	text   string
	code   string // of the error, in the reply or in the stream
	done   bool   // the stream ended with [DONE]
}

// stream asks and reads the stream to its end.
func (s *serving) stream(model, prompt string, tokens int) (streamed, error) {
	return s.streamContent(model, prompt, tokens)
}

// streamContent does the same with a text or parts.
func (s *serving) streamContent(model string, content any, tokens int) (streamed, error) {
	body, err := json.Marshal(map[string]any{"model": model, "stream": true, "max_tokens": tokens,
		"messages": []any{map[string]any{"role": "user", "content": content}}})
	if err != nil {
		return streamed{}, err
	}
	resp, err := s.client.Post(s.base+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return streamed{}, err
	}
	defer resp.Body.Close()
	a := streamed{status: resp.StatusCode, retry: resp.Header.Get("Retry-After")}
	type event struct {
		Error   *struct{ Code string }
		Choices []struct{ Delta struct{ Content string } }
	}
	if resp.StatusCode != http.StatusOK {
		var e event
		err := json.NewDecoder(resp.Body).Decode(&e)
		if err == nil && e.Error != nil {
			a.code = e.Error.Code
		}
		return a, err
	}
	for lines := bufio.NewScanner(resp.Body); ; {
		if !lines.Scan() {
			return a, lines.Err()
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			a.done = true
			continue
		}
		var e event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return a, fmt.Errorf("event %q: %w", data, err)
		}
		if e.Error != nil {
			a.code = e.Error.Code
		}
		for _, c := range e.Choices {
			a.text += c.Delta.Content
		}
	}
}

// workers returns the processes that serve has started, by the model's name.
func (s *serving) workers(t *testing.T) map[string]int {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, path := range entries {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		if fields[1] != strconv.Itoa(s.cmd.Process.Pid) || fields[0] == "Z" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		found[filepath.Base(args[len(args)-1])] = pid
	}
	return found
}

// metric reads a value from /metrics.
func (s *serving) metric(t *testing.T, name string) float64 {
	t.Helper()
	_, page := s.get(t, "/metrics")
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no %s in /metrics", name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func resident(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

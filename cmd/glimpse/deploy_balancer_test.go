// The balancers of docs/deploy at work: a picture comes to the same server again.

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// balancer finds a program, also where Debian keeps those of administrators.
func balancer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Skip(name + " is not here")
		}
	}
	return path
}

// backends are two servers that answer with their number, and see no X-Picture.
func backends(t *testing.T) (addresses [2]string) {
	for i := range addresses {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			if r.Header.Get("X-Picture") != "" || n == 0 && r.Method == http.MethodPost {
				w.WriteHeader(http.StatusBadRequest)
			}
			fmt.Fprint(w, i)
		}))
		t.Cleanup(backend.Close)
		addresses[i] = strings.TrimPrefix(backend.URL, "http://")
	}
	return addresses
}

// balancing runs a balancer until the end of the test; it returns when its address answers.
func balancing(t *testing.T, address string, stop os.Signal, cmd *exec.Cmd) {
	t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		_ = cmd.Process.Signal(stop)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", cmd.Args, err, log.String())
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get("http://" + address + "/healthz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v does not answer: %v", cmd.Args, err)
		}
	}
}

func TestDeployNginx(t *testing.T) {
	nginx, text := balancer(t, "nginx"), deployFile(t, "nginx.conf")
	for i, address := range backends(t) {
		text = strings.ReplaceAll(text, fmt.Sprintf("127.0.0.1:%d", 8081+i), address)
	}
	address, dir := net.JoinHostPort(freeAddress(t)), t.TempDir()
	text = strings.Replace(text, "listen 8080;", "listen "+address+";", 1)
	text = strings.Replace(text, "http {", "http {\n access_log off;\n", 1)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		text = strings.Replace(text, "http {", fmt.Sprintf("http {\n %s_temp_path %s/%s;\n", kind, dir, kind), 1)
	}
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte("daemon off;\npid "+dir+"/pid;\nerror_log stderr;\n"+text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(nginx, "-t", "-q", "-e", "stderr", "-c", path).CombinedOutput(); err != nil {
		t.Fatalf("nginx -t: %v\n%s", err, out)
	}
	balancing(t, address, os.Interrupt, exec.Command(nginx, "-e", "stderr", "-c", path))
	balanced(t, "http://"+address, "small pictures", "large pictures", "addresses", "headers")
}

func TestDeployHAProxy(t *testing.T) {
	haproxy, text := balancer(t, "haproxy"), deployFile(t, "haproxy.cfg")
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	write := func() {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if out, err := exec.Command(haproxy, "-c", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("haproxy -c: %v\n%s", err, out)
	}
	at := strings.Index(text, "    server-template ")
	if at < 0 {
		t.Fatal("no servers")
	}
	text = text[:at] // there is no cluster to ask for names
	for i, address := range backends(t) {
		text += fmt.Sprintf("    server glimpse%d %s\n", i, address)
	}
	address := net.JoinHostPort(freeAddress(t))
	text = strings.Replace(text, "bind :8080", "bind "+address, 1)
	write()
	balancing(t, address, syscall.SIGUSR1, exec.Command(haproxy, "-q", "-db", "-f", path))
	balanced(t, "http://"+address, "headers")
}

// balanced asks for pictures again and again, with other texts around them.
func balanced(t *testing.T, base string, ways ...string) {
	send := func(header, body string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if header != "" {
			req.Header.Set("X-Picture", header)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %q, %v", resp.StatusCode, got, err)
		}
		return string(got)
	}
	chat := func(url, prompt string) string {
		return `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"` + prompt + `"},{"type":"image_url","image_url":{"url":"` + url + `"}},{"type":"text","text":"` + prompt + `"}]}]}`
	}
	data := func(size int) string {
		raw := make([]byte, size)
		_, _ = rand.Read(raw)
		return "data:image/png;base64," + base64.StdEncoding.EncodeToString(raw)
	}
	requests := map[string]func(picture int) func(prompt string) (header, body string){
		"small pictures": func(int) func(string) (string, string) {
			url := data(400)
			return func(prompt string) (string, string) { return "", chat(url, prompt) }
		},
		"large pictures": func(int) func(string) (string, string) {
			url := data(3 << 20)
			return func(prompt string) (string, string) { return "", chat(url, prompt) }
		},
		"addresses": func(i int) func(string) (string, string) {
			return func(prompt string) (string, string) {
				return "", chat(fmt.Sprintf("https://pictures.example/%d.png", i), prompt)
			}
		},
		"headers": func(i int) func(string) (string, string) {
			return func(prompt string) (string, string) { return fmt.Sprintf("hash-%d", i), chat(data(400), prompt) }
		},
	}
	for _, what := range ways {
		seen := map[string]int{}
		for i := range 16 {
			ask := requests[what](i)
			first := send(ask("What is this?"))
			seen[first]++
			for _, prompt := range []string{"And now?", strings.Repeat("A longer question. ", 50)} {
				if got := send(ask(prompt)); got != first {
					t.Errorf("%s: picture %d was at server %s and then at %s", what, i, first, got)
				}
			}
		}
		if len(seen) != 2 {
			t.Errorf("%s: all at one server: %v", what, seen)
		}
	}
	seen := map[string]int{}
	for i := range 8 {
		seen[send("", fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"%d"}]}`, i))]++
	}
	if len(seen) != 2 {
		t.Errorf("texts are all at one server: %v", seen)
	}
}

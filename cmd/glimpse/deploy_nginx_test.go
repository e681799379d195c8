// The balancer of docs/deploy at work: a picture comes to the same server again.

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
	"testing"
	"time"
)

func TestDeployNginx(t *testing.T) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if nginx, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			t.Skip("nginx is not here")
		}
	}
	text := deployFile(t, "nginx.conf")
	for i := range 2 {
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			if r.Header.Get("X-Picture") != "" || n == 0 && r.Method == http.MethodPost {
				w.WriteHeader(http.StatusBadRequest)
			}
			fmt.Fprint(w, i)
		}))
		defer backend.Close()
		text = strings.ReplaceAll(text, fmt.Sprintf("127.0.0.1:%d", 8081+i), strings.TrimPrefix(backend.URL, "http://"))
	}
	// A free port, until nginx takes it.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	_ = ln.Close()
	dir := t.TempDir()
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
	var log bytes.Buffer
	cmd := exec.Command(nginx, "-e", "stderr", "-c", path)
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("nginx: %v\n%s", err, log.String())
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nginx does not listen: %v", err)
		}
	}
	balanced(t, "http://"+address)
}

// balanced asks for pictures again and again, with other texts around them.
func balanced(t *testing.T, base string) {
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
	for what, request := range map[string]func(picture int) func(prompt string) (header, body string){
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
	} {
		seen := map[string]int{}
		for i := range 16 {
			ask := request(i)
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

package hub_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"glimpse/hub"
	"glimpse/hub/hubtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	commit = "0123456789abcdef0123456789abcdef01234567"
	secret = "hf_secret"
)

// standIn is a hub with one release of a small, a nested and two large files.
func standIn(t *testing.T) (*hubtest.Hub, *hubtest.Release) {
	t.Helper()
	large := bytes.Repeat([]byte("weights of a model "), 50_000)
	r := &hubtest.Release{Commit: commit, Refs: []string{"main", "refs/pr/3"}, Files: map[string][]byte{
		"config.json": []byte(`{"model_type": "x"}`), "sub/tokenizer.json": []byte(`{}`), "empty.txt": nil, "README.md": []byte("# not wanted"),
		"model-1.safetensors": large, "model-2.safetensors": append([]byte("other "), large...),
	}}
	h := hubtest.New(map[string]*hubtest.Release{"org/model": r})
	t.Cleanup(h.Close)
	return h, r
}

// wanted is all of the release but its README.
func wanted(names []string, _ func(string) ([]byte, error)) ([]string, error) {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "README.md" }), nil
}

func client(t *testing.T, h *hubtest.Hub, cache string, change func(*hub.Options)) *hub.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	o := hub.Options{Endpoint: h.URL, Cache: cache, Transport: transport, Pause: time.Millisecond, Tries: 3, Idle: 5 * time.Second}
	if change != nil {
		change(&o)
	}
	c, err := hub.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pull(t *testing.T, c *hub.Client, text string) (*hub.Snapshot, error) {
	t.Helper()
	ref, err := hub.ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return c.Pull(t.Context(), ref, wanted)
}

// whole checks that a snapshot has every wanted file.
func whole(t *testing.T, s *hub.Snapshot, r *hubtest.Release) {
	t.Helper()
	for name, content := range r.Files {
		got, err := os.ReadFile(filepath.Join(s.Folder, name))
		if name == "README.md" {
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s was not wanted: %v", name, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %v, %d bytes of %d", name, err, len(got), len(content))
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.Folder, "../../blobs/*.incomplete")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The layout is the one of the hub's own tools, and nothing is fetched twice.
func TestPull(t *testing.T) {
	h, r := standIn(t)
	r.Token = secret
	cache := t.TempDir()
	var last hub.Progress
	var mu sync.Mutex
	c := client(t, h, cache, func(o *hub.Options) {
		o.Token = secret
		o.Progress = func(p hub.Progress) {
			mu.Lock()
			defer mu.Unlock()
			if p.Done > last.Done {
				last = p
			}
		}
	})
	s, err := pull(t, c, "org/model")
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s, r)
	folder := filepath.Join(cache, "models--org--model")
	if s.Folder != filepath.Join(folder, "snapshots", commit) || s.Revision != commit || s.Fetched != s.Bytes || len(s.Files) != 5 {
		t.Errorf("%+v", s)
	}
	if last.Done != s.Bytes || last.Total != s.Bytes || last.Cached != 0 {
		t.Errorf("progress %+v of %d", last, s.Bytes)
	}
	for link, target := range map[string]string{
		"config.json": "../../blobs/" + r.Hash("config.json"), "sub/tokenizer.json": "../../../blobs/" + r.Hash("sub/tokenizer.json"),
		"model-1.safetensors": "../../blobs/" + r.Hash("model-1.safetensors"),
	} {
		if got, err := os.Readlink(filepath.Join(s.Folder, link)); err != nil || got != target {
			t.Errorf("%s links to %q, %v; want %q", link, got, err, target)
		}
	}
	if ref, err := os.ReadFile(filepath.Join(folder, "refs/main")); err != nil || string(ref) != commit {
		t.Errorf("refs/main: %q, %v", ref, err)
	}
	fileHost := 0
	for _, asked := range h.Requests() {
		if asked.FileHost {
			fileHost++
		}
		if asked.FileHost == (asked.Authorization != "") {
			t.Errorf("the token belongs to the endpoint alone: %+v", asked)
		}
	}
	if fileHost != 2 {
		t.Errorf("%d requests to the host of files", fileHost)
	}

	again, err := pull(t, c, "org/model@refs/pr/3")
	if err != nil {
		t.Fatal(err)
	}
	if asked := h.Requests(); len(asked) != 1 || again.Fetched != 0 || again.Bytes != s.Bytes {
		t.Errorf("the second pull asked %+v and fetched %d", asked, again.Fetched)
	}
	if ref, err := os.ReadFile(filepath.Join(folder, "refs/refs/pr/3")); err != nil || string(ref) != commit {
		t.Errorf("refs/refs/pr/3: %q, %v", ref, err)
	}
}

// A new commit fetches what changed; what another tool left is used, blobs without links and files without blobs.
func TestPullReusesTheCache(t *testing.T) {
	h, r := standIn(t)
	cache := t.TempDir()
	folder := filepath.Join(cache, "models--org--model")
	put := func(name string, content []byte) {
		t.Helper()
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("blobs/"+r.Hash("model-1.safetensors"), r.Files["model-1.safetensors"])
	put("snapshots/"+commit+"/model-2.safetensors", r.Files["model-2.safetensors"]) // where links are not to be had
	put("blobs/"+r.Hash("config.json"), []byte("cut"))                              // not of the right size
	s, err := pull(t, client(t, h, cache, nil), "org/model")
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s, r)
	if want := int64(len(r.Files["config.json"]) + len(r.Files["sub/tokenizer.json"])); s.Fetched != want {
		t.Errorf("fetched %d bytes, want %d", s.Fetched, want)
	}
	next := &hubtest.Release{Commit: strings.Repeat("ab", 20), Refs: r.Refs, Files: map[string][]byte{}}
	for name, content := range r.Files {
		next.Files[name] = content
	}
	next.Files["config.json"] = []byte(`{"model_type": "y"}`)
	h.Releases["org/model"] = next
	s2, err := pull(t, client(t, h, cache, nil), "org/model")
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s2, next)
	// model-2 of the first commit is a file of its own, so it has no blob that a second commit could share
	if want := int64(len(next.Files["config.json"]) + len(r.Files["model-2.safetensors"])); s2.Fetched != want {
		t.Errorf("fetched %d bytes for the next commit, want %d", s2.Fetched, want)
	}
}

// Connections end in the middle of a file, again and again; each attempt goes on where the last one ended.
func TestPullThroughCutConnections(t *testing.T) {
	h, r := standIn(t)
	var cuts atomic.Int64
	h.File = func(w http.ResponseWriter, req *http.Request, name string, content []byte) bool {
		if !strings.HasSuffix(name, ".safetensors") {
			return false
		}
		first := 0
		if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &first); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(content)-1, len(content)))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)-first))
		if first > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		if len(content)-first <= 150_000 {
			_, _ = w.Write(content[first:])
			return true
		}
		cuts.Add(1)
		_, _ = w.Write(content[first : first+150_000])
		panic(http.ErrAbortHandler)
	}
	s, err := pull(t, client(t, h, t.TempDir(), nil), "org/model")
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s, r)
	if s.Fetched != s.Bytes || cuts.Load() < 10 {
		t.Errorf("fetched %d of %d bytes over %d cuts", s.Fetched, s.Bytes, cuts.Load())
	}
}

// What an interrupted pull left is the beginning of the next one.
func TestPullResumes(t *testing.T) {
	h, r := standIn(t)
	const name = "model-1.safetensors"
	content := r.Files[name]
	for what, left := range map[string][]byte{
		"half": content[:300_000], "all": content, "too much": append(slices.Clone(content), "more"...), "other bytes": bytes.Repeat([]byte("x"), 300_000),
	} {
		t.Run(what, func(t *testing.T) {
			cache := t.TempDir()
			blobs := filepath.Join(cache, "models--org--model/blobs")
			if err := os.MkdirAll(blobs, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(blobs, r.Hash(name)+".incomplete"), left, 0o644); err != nil {
				t.Fatal(err)
			}
			h.Requests()
			s, err := pull(t, client(t, h, cache, nil), "org/model")
			if err != nil {
				t.Fatal(err)
			}
			whole(t, s, r)
			var ranges []string
			for _, asked := range h.Requests() {
				if asked.FileHost && strings.Contains(asked.Path, name) {
					ranges = append(ranges, asked.Range)
				}
			}
			want := map[string][]string{"half": {"bytes=300000-"}, "all": nil, "too much": {""}, "other bytes": {"bytes=300000-", ""}}[what]
			if diff := cmp.Diff(want, ranges); diff != "" {
				t.Errorf("ranges (-want +got):\n%s", diff)
			}
		})
	}
}

// A mirror that tells no sizes and knows no ranges will do.
func TestPullFromAPlainMirror(t *testing.T) {
	h, r := standIn(t)
	r.BareList = true
	broken := false
	h.File = func(w http.ResponseWriter, req *http.Request, name string, content []byte) bool {
		if name != "model-1.safetensors" {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		if !broken {
			broken = true
			_, _ = w.Write(content[:100_000])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(content)
		return true
	}
	s, err := pull(t, client(t, h, t.TempDir(), nil), "org/model")
	if err != nil {
		t.Fatal(err)
	}
	whole(t, s, r)
}

func TestPullFailures(t *testing.T) {
	spoil := func(with func(w http.ResponseWriter, content []byte)) func(*hubtest.Hub, *hubtest.Release) {
		return func(h *hubtest.Hub, _ *hubtest.Release) {
			h.File = func(w http.ResponseWriter, _ *http.Request, name string, content []byte) bool {
				if name != "model-1.safetensors" {
					return false
				}
				with(w, content)
				return true
			}
		}
	}
	cases := []struct {
		name   string
		change func(*hubtest.Hub, *hubtest.Release)
		token  string
		ask    string
		kind   error
		words  []string
	}{
		{"no such model", nil, "", "org/other", hub.ErrNotFound, []string{"org/other", "check its name", "HF_TOKEN"}},
		{"private", func(_ *hubtest.Hub, r *hubtest.Release) { r.Token = secret }, "", "org/model", hub.ErrNotFound, []string{"private", "HF_TOKEN"}},
		{"wrong token", func(_ *hubtest.Hub, r *hubtest.Release) { r.Token = secret }, "hf_wrong", "org/model", hub.ErrAccess, []string{"account that has access"}},
		{"gated", func(_ *hubtest.Hub, r *hubtest.Release) { r.Gated = true }, "", "org/model", hub.ErrAccess, []string{"accept its terms", "HF_TOKEN (none is set)"}},
		{"gated, with a token", func(_ *hubtest.Hub, r *hubtest.Release) { r.Gated, r.Token = true, secret }, secret, "org/model", hub.ErrAccess, []string{"accept its terms"}},
		{"no such revision", nil, "", "org/model@v9", hub.ErrNotFound, []string{"no such revision", "v9"}},
		{"no such commit", nil, "", "org/model@" + strings.Repeat("9", 40), hub.ErrNotFound, []string{"no such revision"}},
		{"leads out", func(_ *hubtest.Hub, r *hubtest.Release) { r.Traversal = "../../../evil" }, "", "org/model", hub.ErrHub, []string{"../../../evil"}},
		{"absolute", func(_ *hubtest.Hub, r *hubtest.Release) { r.Traversal = "/etc/passwd" }, "", "org/model", hub.ErrHub, []string{"/etc/passwd"}},
		{"backslash", func(_ *hubtest.Hub, r *hubtest.Release) { r.Traversal = `a\..\b` }, "", "org/model", hub.ErrHub, nil},
		{"a file and a folder", func(_ *hubtest.Hub, r *hubtest.Release) { r.Traversal = "config.json/x" }, "", "org/model", hub.ErrHub, []string{"config.json"}},
		{"no commit", func(_ *hubtest.Hub, r *hubtest.Release) { r.Commit = "../../x" }, "", "org/model", hub.ErrHub, []string{"no commit"}},
		{"wrong bytes", spoil(func(w http.ResponseWriter, content []byte) { _, _ = w.Write(bytes.ToUpper(content)) }), "", "org/model", hub.ErrHash, []string{"model-1.safetensors", "twice"}},
		{"shrunk", spoil(func(w http.ResponseWriter, content []byte) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(content[:1000])
		}), "", "org/model", hub.ErrHub, []string{"1000 bytes", "950000"}},
		{"grown", spoil(func(w http.ResponseWriter, content []byte) {
			_, _ = w.Write(content)
			w.(http.Flusher).Flush()
			_, _ = w.Write(content)
		}), "", "org/model", hub.ErrHub, []string{"more than the 950000"}},
		{"down", spoil(func(w http.ResponseWriter, _ []byte) { http.Error(w, "down", http.StatusBadGateway) }), "", "org/model", hub.ErrHub, []string{"502", "3 attempts", "pull again"}},
		{"lying ranges", func(h *hubtest.Hub, _ *hubtest.Release) {
			h.File = func(w http.ResponseWriter, req *http.Request, name string, content []byte) bool {
				if name != "model-1.safetensors" {
					return false
				}
				if req.Header.Get("Range") != "" {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(content)-1, len(content)))
					w.WriteHeader(http.StatusPartialContent)
				}
				_, _ = w.Write(content[:1000])
				return true
			}
		}, "", "org/model", hub.ErrHub, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h, r := standIn(t)
			if c.change != nil {
				c.change(h, r)
			}
			cache := t.TempDir()
			_, err := pull(t, client(t, h, cache, func(o *hub.Options) { o.Token = c.token }), c.ask)
			if !errors.Is(err, c.kind) {
				t.Fatalf("%v is not %v", err, c.kind)
			}
			for _, word := range append(c.words, c.ask) {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
			if c.token != "" && strings.Contains(err.Error(), c.token) {
				t.Errorf("%q tells the token", err)
			}
			if _, err := os.Stat(filepath.Join(cache, "models--org--model/refs")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a ref was written: %v", err)
			}
			if _, err := os.Stat(filepath.Join(cache, "models--org--model/blobs", r.Hash("model-1.safetensors"))); c.kind != hub.ErrNotFound && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a bad blob is there: %v", err)
			}
		})
	}
}

// A connection that says nothing is given up; the whole pull can be stopped.
func TestPullDoesNotHang(t *testing.T) {
	h, _ := standIn(t)
	gone := make(chan struct{})
	defer close(gone)
	h.File = func(w http.ResponseWriter, r *http.Request, name string, content []byte) bool {
		if name == "model-1.safetensors" {
			_, _ = w.Write(content[:10])
			w.(http.Flusher).Flush()
			select {
			case <-gone:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		}
		return false
	}
	_, err := pull(t, client(t, h, t.TempDir(), func(o *hub.Options) { o.Idle, o.Tries = 50*time.Millisecond, 1 }), "org/model")
	if !errors.Is(err, hub.ErrHub) || !strings.Contains(err.Error(), "nothing came for 50ms") {
		t.Errorf("a silent hub: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = client(t, h, t.TempDir(), nil).Pull(ctx, hub.Reference{Repository: "org/model", Revision: "main"}, wanted)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stopped: %v", err)
	}
}

// Two processes, here two clients, at once: each byte comes once.
func TestPullsAtOnce(t *testing.T) {
	h, r := standIn(t)
	h.File = func(http.ResponseWriter, *http.Request, string, []byte) bool {
		time.Sleep(20 * time.Millisecond)
		return false
	}
	cache := t.TempDir()
	var fetched, bytes atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		c := client(t, h, cache, nil)
		all.Go(func() {
			s, err := pull(t, c, "org/model")
			if err != nil {
				t.Error(err)
				return
			}
			fetched.Add(s.Fetched)
			bytes.Store(s.Bytes)
			whole(t, s, r)
		})
	}
	all.Wait()
	if fetched.Load() != bytes.Load() {
		t.Errorf("%d bytes came, want %d", fetched.Load(), bytes.Load())
	}
}

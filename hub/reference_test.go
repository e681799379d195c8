package hub

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	for text, want := range map[string]Reference{
		"llava-hf/llava-1.5-7b-hf":                {"llava-hf/llava-1.5-7b-hf", "main"},
		"org/name@v1.0":                           {"org/name", "v1.0"},
		"org/name@refs/pr/12":                     {"org/name", "refs/pr/12"},
		"_o/n@" + strings.Repeat("0123456789", 4): {"_o/n", strings.Repeat("0123456789", 4)},
	} {
		if got, err := ParseReference(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "name", "org/", "/name", "../name", "org/..", "org/na me", "org/name/more", "org/name@", "org/name@../x", "org/name@a//b",
		"org/name@-x", "org/.name", "o--x/name", "org/name@/x", "org/name@x/", "https://hub/org/name", "org/name@" + strings.Repeat("x", 300)} {
		if got, err := ParseReference(text); !errors.Is(err, ErrInput) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".cache/huggingface"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".cache/huggingface/token"), []byte("hf_login\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env  map[string]string
		want Options
	}{
		{map[string]string{"HOME": home}, Options{Token: "hf_login", Cache: filepath.Join(home, ".cache/huggingface/hub")}},
		{map[string]string{"HOME": home, "HF_TOKEN": " hf_x ", "HF_ENDPOINT": "https://hub.example"}, Options{Endpoint: "https://hub.example", Token: "hf_x", Cache: filepath.Join(home, ".cache/huggingface/hub")}},
		{map[string]string{"HOME": home, "XDG_CACHE_HOME": "/x"}, Options{Cache: "/x/huggingface/hub"}},
		{map[string]string{"HF_HOME": "/hf", "HF_HUB_OFFLINE": "1"}, Options{Cache: "/hf/hub", Offline: true}},
		{map[string]string{"HF_HOME": "/hf", "HF_HUB_CACHE": "/c"}, Options{Cache: "/c"}},
	} {
		got, err := FromEnvironment(func(name string) string { return c.env[name] })
		if err != nil || got.Endpoint != c.want.Endpoint || got.Token != c.want.Token || got.Cache != c.want.Cache || got.Offline != c.want.Offline {
			t.Errorf("%v: %+v, %v", c.env, got, err)
		}
	}
	if _, err := FromEnvironment(func(string) string { return "" }); !errors.Is(err, ErrInput) {
		t.Errorf("without a home: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{
		{Cache: "/c", Endpoint: "hub.example"}, {Cache: "/c", Endpoint: "ftp://hub.example"}, {Cache: "/c", Endpoint: "https://user:pw@hub.example"},
		{Cache: "/c", Endpoint: "https://hub.example?x=1"}, {Endpoint: "https://hub.example"}, {Cache: "/c", Token: "hf_a\nX-Evil: 1"},
	} {
		if _, err := New(o); !errors.Is(err, ErrInput) || strings.Contains(err.Error(), "pw@") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// The token stays with the endpoint: not to another port, not to a subdomain, and nothing leaves https.
func TestRedirects(t *testing.T) {
	c, err := New(Options{Endpoint: "https://hub.example/prefix", Cache: t.TempDir(), Token: "hf_x"})
	if err != nil {
		t.Fatal(err)
	}
	first := httptest.NewRequest(http.MethodGet, "https://hub.example/a", nil)
	for to, keeps := range map[string]bool{
		"https://hub.example/b": true, "https://HUB.example/b": true, "https://hub.example:8443/b": false, "https://files.hub.example/b": false, "https://other.example/b": false,
	} {
		req := httptest.NewRequest(http.MethodGet, to, nil)
		req.Header.Set("Authorization", "Bearer hf_x")
		if err := c.redirect(req, []*http.Request{first}); err != nil || (req.Header.Get("Authorization") != "") != keeps {
			t.Errorf("%s: %v, %v", to, err, req.Header)
		}
	}
	if err := c.redirect(httptest.NewRequest(http.MethodGet, "http://hub.example/b", nil), []*http.Request{first}); !errors.Is(err, errRedirect) {
		t.Errorf("to http: %v", err)
	}
	if got := c.url("org", "name", "resolve", "a b", "x/y%").String(); got != "https://hub.example/prefix/org/name/resolve/a%20b/x%2Fy%25" {
		t.Error(got)
	}
	var round http.Client
	round.CheckRedirect = c.redirect
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }))
	defer loop.Close()
	if resp, err := round.Get(loop.URL); !errors.Is(err, errRedirect) {
		t.Errorf("in circles: %v, %v", resp, err)
	}
	round.CloseIdleConnections()
}

// A disk that is too small is found before anything is fetched.
func TestSpaceIsCheckedFirst(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		_, _ = io.WriteString(w, `{"sha": "`+strings.Repeat("a", 40)+`", "siblings": [{"rfilename": "x.bin", "size": 5000000, "lfs": {"sha256": "`+strings.Repeat("b", 64)+`", "size": 5000000}}]}`)
	}))
	defer server.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c, err := New(Options{Endpoint: server.URL, Cache: t.TempDir(), Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	c.free = func(string) (int64, bool) { return 1 << 20, true }
	_, err = c.Pull(t.Context(), Reference{"org/name", "main"}, func(names []string, _ func(string) ([]byte, error)) ([]string, error) { return names, nil })
	if !errors.Is(err, ErrSpace) || !strings.Contains(err.Error(), "4 MiB are to come") || asked != 1 {
		t.Errorf("%v after %d requests", err, asked)
	}
	if n, known := freeSpace(t.TempDir()); known && n <= 0 {
		t.Errorf("free space %d", n)
	}
}

// A disk that fills up while a file comes is an error of its own, and no reason to try again.
func TestDiskFullOnTheWay(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	defer full.Close()
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		_, _ = io.WriteString(w, strings.Repeat("x", 5000))
	}))
	defer server.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	c, err := New(Options{Endpoint: server.URL, Cache: t.TempDir(), Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	p := &partial{file: full, want: file{path: "x.bin", size: 5000, hash: strings.Repeat("b", 64)}, came: func(int64) {}}
	p.resetHash()
	if err := c.complete(t.Context(), p, c.base, "org/name: x.bin"); !errors.Is(err, ErrSpace) || !strings.Contains(err.Error(), "HF_HUB_CACHE") || asked != 1 {
		t.Errorf("%v after %d requests", err, asked)
	}
}

// Whatever the hub says, names stay in the folder, and nothing panics.
func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "a/b.json", "size": 3, "blobId": "0123456789abcdef0123456789abcdef01234567"}]}`))
	f.Add([]byte(`{"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "../x"}, {"rfilename": "m.bin", "lfs": {"oid": "ff", "size": -1}}]}`))
	f.Add([]byte(`{"siblings": null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := parseListing(raw)
		if err != nil {
			return
		}
		for name, file := range l.files {
			if !filepath.IsLocal(name) || strings.Contains(name, "..") && filepath.Clean(name) != name {
				t.Errorf("%q leads out", name)
			}
			if file.size >= 0 && !goodHash(file.hash) {
				t.Errorf("%q has the size %d and the hash %q", name, file.size, file.hash)
			}
			if u, err := url.Parse((&Client{base: &url.URL{Scheme: "https", Host: "h"}}).fileURL(Reference{"o/n", "main"}, l.commit, name).String()); err != nil || u.Path != "/o/n/resolve/"+l.commit+"/"+name {
				t.Errorf("%q has the address %v, %v", name, u, err)
			}
		}
	})
}

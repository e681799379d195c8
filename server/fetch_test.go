package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

const outside = "93.184.216.34" // stands for the test's server

// fetcher reaches an httptest server under the address outside; names says what each host resolves to, one answer after
// the other. Every address that is dialled is noted, and only outside's can be.
type fetcher struct {
	*HTTPFetcher
	mu     sync.Mutex
	names  map[string][]string // "a,b" for two addresses in one answer
	dialed []string
}

func newFetcher(t *testing.T, backend http.Handler, names map[string][]string, o FetcherOptions) *fetcher {
	t.Helper()
	server := httptest.NewServer(backend)
	t.Cleanup(server.Close)
	f, err := NewFetcher(o)
	if err != nil {
		t.Fatal(err)
	}
	out := &fetcher{HTTPFetcher: f, names: names}
	f.lookup = out.resolve
	f.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		out.mu.Lock()
		out.dialed = append(out.dialed, address)
		out.mu.Unlock()
		host, _, err := net.SplitHostPort(address)
		if err != nil || host != outside {
			return nil, errors.New("nobody there")
		}
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
	return out
}

func (f *fetcher) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	answers := f.names[host]
	if len(answers) == 0 {
		return nil, errors.New("no such host")
	}
	if len(answers) > 1 {
		f.names[host] = answers[1:]
	}
	var out []netip.Addr
	for _, a := range strings.Split(answers[0], ",") {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

// pages is what the outside serves: pictures, and every trick.
func pages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/cat.png", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != "" || r.Header.Get("Authorization") != "" {
			http.Error(w, "credentials", http.StatusTeapot)
			return
		}
		_, _ = io.WriteString(w, "cat")
	})
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("u"), http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 101)) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64)); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	})
	mux.HandleFunc("/gzip", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, "bomb")
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	return mux
}

func TestFetcher(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, url string
		status    int // 0: the picture comes
	}{
		{"picture", "http://good.example/cat.png", 0},
		{"upper case and dot", "http://GOOD.example./cat.png", 0},
		{"below a domain", "http://a.b.wide.example/cat.png", 0},
		{"listed port", "http://port.example:8080/cat.png", 0},
		{"redirect within", "http://good.example/to?u=http://a.wide.example/cat.png", 0},

		{"host not listed", "http://bad.example/cat.png", 403},
		{"suffix without a dot", "http://evilwide.example/cat.png", 403},
		{"domain itself", "http://wide.example/cat.png", 403},
		{"other port", "http://good.example:8080/cat.png", 403},
		{"https port of http", "http://good.example:443/cat.png", 403},
		{"user", "http://good.example@bad.example/cat.png", 403},
		{"password", "http://u:p@good.example/cat.png", 403},
		{"backslash", `http://good.example\@bad.example/cat.png`, 400},
		{"no host", "http:///cat.png", 403},
		{"loopback", "http://127.0.0.1/cat.png", 403},
		{"loopback in hex", "http://0x7f.1/cat.png", 403},
		{"loopback as a number", "http://2130706433/cat.png", 403},
		{"loopback v6", "http://[::1]/cat.png", 403},
		{"metadata", "http://169.254.169.254/latest/meta-data", 403},
		{"mapped", "http://[::ffff:127.0.0.1]/cat.png", 403},

		{"name of loopback", "http://loop.wide.example/cat.png", 403},
		{"name of a private address", "http://private.wide.example/cat.png", 403},
		{"name of metadata", "http://meta.wide.example/cat.png", 403},
		{"name of a mapped address", "http://mapped.wide.example/cat.png", 403},
		{"name of NAT64", "http://nat64.wide.example/cat.png", 403},
		{"name of 6to4", "http://6to4.wide.example/cat.png", 403},
		{"name of Teredo", "http://teredo.wide.example/cat.png", 403},
		{"name of a compatible address", "http://compatible.wide.example/cat.png", 403},
		{"public and private", "http://both.wide.example/cat.png", 403},
		{"redirect to loopback", "http://good.example/to?u=http://127.0.0.1/cat.png", 403},
		{"redirect to another host", "http://good.example/to?u=http://bad.example/cat.png", 403},
		{"redirect to an inner name", "http://good.example/to?u=http://loop.wide.example/cat.png", 403},
		{"redirect to a file", "http://good.example/to?u=file:///etc/passwd", 403},
		{"changes its mind", "http://rebind.wide.example/to?u=http://rebind.wide.example/cat.png", 403},

		{"redirects for ever", "http://good.example/loop", 400},
		{"unknown name", "http://none.wide.example/cat.png", 400},
		{"nobody there", "http://away.wide.example/cat.png", 400},
		{"404", "http://good.example/none", 400},
		{"too large", "http://good.example/large", 400},
		{"endless", "http://good.example/endless", 400},
		{"compressed", "http://good.example/gzip", 400},
		{"slow", "http://good.example/slow", 400},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			timeout := 10 * time.Second
			if tc.name == "slow" {
				timeout = 200 * time.Millisecond
			}
			f := newFetcher(t, pages(), map[string][]string{
				"good.example": {outside}, "GOOD.example.": {outside}, "bad.example": {outside}, "port.example": {outside}, "a.wide.example": {outside}, "a.b.wide.example": {outside},
				"loop.wide.example": {"127.0.0.1"}, "private.wide.example": {"10.1.2.3"}, "meta.wide.example": {"169.254.169.254"}, "mapped.wide.example": {"::ffff:192.168.0.1"},
				"nat64.wide.example": {"64:ff9b::7f00:1"}, "6to4.wide.example": {"2002:7f00:1::1"}, "teredo.wide.example": {"2001:0:4136:e378:8000:63bf:3fff:fdd2"}, "compatible.wide.example": {"::127.0.0.1"}, "both.wide.example": {outside + ",127.0.0.1"}, "rebind.wide.example": {outside, "127.0.0.1"}, "away.wide.example": {"8.8.8.8"},
			}, FetcherOptions{Hosts: []string{"good.example", "*.wide.example", "port.example:8080"}, Timeout: timeout})
			data, err := f.Fetch(t.Context(), tc.url, 100)
			if tc.status == 0 {
				if err != nil || string(data) != "cat" {
					t.Fatalf("got %q, %v", data, err)
				}
			} else {
				var e *Error
				if !errors.As(err, &e) || e.Status != tc.status || e.Message == "" {
					t.Fatalf("got %v, want %d", err, tc.status)
				}
				for _, secret := range []string{"127.0.0.1", "10.1.2.3", "nobody", "no such host"} {
					if strings.Contains(e.Message, secret) && !strings.Contains(tc.url, secret) {
						t.Errorf("the message tells %q: %s", secret, e.Message)
					}
				}
			}
			for _, address := range f.dialed {
				if a := netip.MustParseAddrPort(address).Addr(); !public(a) {
					t.Errorf("%s was dialled", address)
				}
			}
		})
	}
}

// Even with every host allowed, inner addresses are out of reach, and so are odd ports.
func TestFetcherAnyHost(t *testing.T) {
	f := newFetcher(t, pages(), map[string][]string{"x.example": {outside}, "0x7f.1": {"127.0.0.1"}, "0": {"0.0.0.0"}, "localhost": {"127.0.0.1"}}, FetcherOptions{Hosts: []string{"*"}})
	if data, err := f.Fetch(t.Context(), "http://x.example/cat.png", 100); err != nil || string(data) != "cat" {
		t.Errorf("%q, %v", data, err)
	}
	for _, u := range []string{"http://localhost/", "http://0x7f.1/", "http://127.0.0.1/", "http://[::1]/", "http://[fe80::1%25eth0]/", "http://169.254.169.254/",
		"http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::ffff:169.254.169.254]/", "http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::1]/", "http://[64:ff9b::127.0.0.1]/",
		"http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b:1::7f00:1]/", "http://[::127.0.0.1]/", "http://0/", "http://x.example:22/", "gopher://x.example/"} {
		var e *Error
		if _, err := f.Fetch(t.Context(), u, 100); !errors.As(err, &e) || e.Status != 403 {
			t.Errorf("%s: %v", u, err)
		}
	}
}

// The dialer looks at the address again: without the injected one, nothing inner is reached.
func TestFetcherDialsPublicAddressesOnly(t *testing.T) {
	reached := false
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer inner.Close()
	f, err := NewFetcher(FetcherOptions{Hosts: []string{strings.TrimPrefix(inner.URL, "http://")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Fetch(t.Context(), inner.URL, 100); err == nil {
		t.Error("an inner address was fetched")
	}
	if conn, err := f.dial(t.Context(), "tcp", inner.Listener.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the dialer reaches an inner address")
	}
	if reached {
		t.Error("the inner server was asked")
	}
}

func TestPublicAddresses(t *testing.T) {
	for a, want := range map[string]bool{
		"8.8.8.8": true, "93.184.216.34": true, "2606:2800:220:1::1": true, "::ffff:8.8.8.8": true,
		"0.0.0.0": false, "10.0.0.1": false, "100.64.0.1": false, "127.255.255.255": false, "169.254.169.254": false, "172.31.0.1": false, "192.0.0.1": false, "192.168.1.1": false,
		"198.19.0.1": false, "224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false, "::": false, "::1": false, "::127.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:a9fe:a9fe": false,
		"64:ff9b::7f00:1": false, "2001::1": false, "2001:db8::1": false, "2002:7f00:1::": false, "fc00::1": false, "fd00:ec2::254": false, "fe80::1": false, "ff02::1": false,
	} {
		if got := public(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: public %v", a, got)
		}
	}
	if public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

func TestFetcherRefusesLists(t *testing.T) {
	for _, hosts := range [][]string{nil, {""}, {"*."}, {"*x"}, {"a.*.b"}, {"http://x"}, {"x/y"}, {"u@x"}} {
		if _, err := NewFetcher(FetcherOptions{Hosts: hosts}); err == nil {
			t.Errorf("%q accepted", hosts)
		}
	}
}

// The whole way: a chat request with a picture by URL.
func TestChatWithPictureURL(t *testing.T) {
	f := newFetcher(t, pages(), map[string][]string{"good.example": {outside}}, FetcherOptions{Hosts: []string{"good.example"}})
	fake := newFake("tiny")
	h := handler(t, Options{Models: []Model{fake}, Fetcher: f})
	body := func(u string) string {
		return `{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"` + u + `"}}]}]}`
	}
	w := post(h, "/v1/chat/completions", "application/json", body("http://good.example/cat.png"))
	if w.Code != 200 || string(fake.last(t).Messages[0].Content[0].Picture.Data) != "cat" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = post(h, "/v1/chat/completions", "application/json", body("http://other.example/cat.png"))
	if e := failure(t, w.Code, w.Body); w.Code != 403 || text(e.Param) != "messages[0].content[0].image_url.url" {
		t.Errorf("%d %+v", w.Code, e)
	}
}

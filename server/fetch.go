// Media by http and https URL, from hosts that the operator allows. The URLs come from strangers, who must not be able to
// use this server to reach what only it can reach: each hop's host is checked against the list, its name is resolved here,
// and only an address that was checked is dialled, so that neither a redirect nor a name that answers differently the
// second time leads inside.

package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// FetcherOptions says what an HTTPFetcher may reach. Zero values are the defaults in the comments.
type FetcherOptions struct {
	// Hosts are the allowed hosts: "images.example.com", "*.example.com" for all below it, "*" for every public host. A
	// port other than the scheme's own is only allowed where the entry has it: "images.example.com:8443".
	Hosts     []string
	Timeout   time.Duration // of a whole fetch, redirects included; 10 s
	Redirects int           // how many are followed; 3
}

// HTTPFetcher is the Fetcher for public hosts. It sends no cookies or credentials, uses no proxy and keeps no connections.
type HTTPFetcher struct {
	exact    map[string]bool
	suffixes []string // ".example.com", or "" for every host; with a port at the end where the entry had one
	timeout  time.Duration
	client   *http.Client

	// What tests replace.
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

// NewFetcher checks the list of hosts.
func NewFetcher(o FetcherOptions) (*HTTPFetcher, error) {
	set(&o.Timeout, 10*time.Second)
	set(&o.Redirects, 3)
	f := &HTTPFetcher{exact: map[string]bool{}, timeout: o.Timeout}
	if len(o.Hosts) == 0 {
		return nil, errors.New("media hosts: the list is empty")
	}
	for _, entry := range o.Hosts {
		host := strings.ToLower(strings.TrimSpace(entry))
		name := strings.TrimPrefix(strings.TrimPrefix(host, "*"), ".")
		switch {
		case host == "*":
			f.suffixes = append(f.suffixes, "")
		case name == "" || strings.ContainsAny(name, "*/@ ?#"), strings.HasPrefix(host, "*") && !strings.HasPrefix(host, "*."):
			return nil, fmt.Errorf(`media hosts: %q is not "host", "host:port", "*.domain" or "*"`, entry)
		case strings.HasPrefix(host, "*."):
			f.suffixes = append(f.suffixes, host[1:])
		default:
			f.exact[host] = true
		}
	}
	f.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	f.dial = (&net.Dialer{Timeout: o.Timeout, Control: controlPublic}).DialContext
	f.client = &http.Client{
		Transport: &http.Transport{
			DialContext: f.dialChecked, Proxy: nil, DisableKeepAlives: true, DisableCompression: true,
			MaxResponseHeaderBytes: maxHeaderBytes, TLSHandshakeTimeout: o.Timeout, ForceAttemptHTTP2: false,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > o.Redirects {
				return fetchFailed("it redirects more than %d times", o.Redirects)
			}
			return f.check(r.URL)
		},
	}
	return f, nil
}

func fetchFailed(format string, args ...any) *Error {
	return invalid("", codeInvalidMedia, "the picture cannot be fetched: "+fmt.Sprintf(format, args...))
}

func fetchRefused(message string) *Error {
	return &Error{Status: http.StatusForbidden, Type: typePermission, Code: codeMediaRefused, Message: message}
}

// Fetch gets one picture.
func (f *HTTPFetcher) Fetch(ctx context.Context, address string, maxBytes int64) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fetchFailed("it is not a URL")
	}
	if err := f.check(u); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(limited, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fetchFailed("it is not a URL")
	}
	r.Header.Set("User-Agent", "glimpse")
	r.Header.Set("Accept", "image/*")
	data, err := f.get(r, maxBytes)
	var own *Error
	switch {
	case err == nil:
		return data, nil
	case errors.As(err, &own):
		return nil, own
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case limited.Err() != nil:
		err = fmt.Errorf("no answer within %s", f.timeout)
		fallthrough
	default:
		// Strangers are told that it failed, not how: the reasons would map the network for them.
		failed := fetchFailed("its host does not deliver it")
		failed.cause = err
		return nil, failed
	}
}

func (f *HTTPFetcher) get(r *http.Request, maxBytes int64) ([]byte, error) {
	resp, err := f.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode != http.StatusOK:
		return nil, fetchFailed("its host answers with status %d", resp.StatusCode)
	case resp.Header.Get("Content-Encoding") != "":
		return nil, fetchFailed("its host sends it with a Content-Encoding")
	case resp.ContentLength > maxBytes:
		return nil, fetchFailed("it has more than the %d bytes this server accepts", maxBytes)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBytes+1))
	if err == nil && int64(len(data)) > maxBytes {
		return nil, fetchFailed("it has more than the %d bytes this server accepts", maxBytes)
	}
	return data, err
}

// check says whether a URL may be fetched, as far as its text tells.
func (f *HTTPFetcher) check(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" {
		return fetchRefused("only http and https URLs are fetched")
	}
	if u.User != nil {
		return fetchRefused("URLs with a user name or a password are not fetched")
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if port := u.Port(); port != "" && !(u.Scheme == "http" && port == "80") && !(u.Scheme == "https" && port == "443") {
		host = net.JoinHostPort(host, port)
	}
	if host == "" || !f.allowed(host) {
		return fetchRefused("this server does not fetch pictures from the host " + clipped(host))
	}
	return nil
}

func (f *HTTPFetcher) allowed(host string) bool {
	if f.exact[host] {
		return true
	}
	_, port, _ := net.SplitHostPort(host)
	for _, suffix := range f.suffixes {
		if suffix == "" && port == "" || suffix != "" && strings.HasSuffix(host, suffix) {
			return true
		}
	}
	return false
}

// dialChecked resolves a host and dials one of its addresses, if all of them are public: a name that has an inner address
// beside a public one is up to something.
func (f *HTTPFetcher) dialChecked(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := f.lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", clipped(host), err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolve %s: no address", clipped(host))
	}
	for _, a := range addrs {
		if !public(a) {
			refused := fetchRefused("the host " + clipped(host) + " is not a public one")
			refused.cause = fmt.Errorf("%s has the address %s", clipped(host), a)
			return nil, refused
		}
	}
	for _, a := range addrs {
		var conn net.Conn
		if conn, err = f.dial(ctx, network, net.JoinHostPort(a.Unmap().String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// controlPublic looks once more at the address that is really dialled.
func controlPublic(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !public(at.Addr()) {
		return fetchRefused("the host is not a public one")
	}
	return nil
}

// Addresses that are not, or not reliably, on the public internet: IANA's special-purpose registries. Of IPv6 only
// 2000::/3 is public at all, which leaves out mapped, NAT64, unique local, link-local and multicast addresses.
var (
	specialIPv4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")
	publicIPv6  = netip.MustParsePrefix("2000::/3")
	specialIPv6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = netip.MustParsePrefix(p)
	}
	return out
}

func public(a netip.Addr) bool {
	a = a.Unmap()
	special := specialIPv4
	if !a.Is4() {
		if !a.IsValid() || a.Zone() != "" || !publicIPv6.Contains(a) {
			return false
		}
		special = specialIPv6
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

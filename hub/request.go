package hub

// One request to the hub: where the token goes, what a refusal means, and what is worth another attempt.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxRedirects is enough for a renamed repository and a chain of hosts that serve files.
const maxRedirects = 8

// errRedirect marks redirects that are not followed.
var errRedirect = errors.New("redirect refused")

// redirect takes the token off requests that leave the endpoint. net/http would keep it for other ports and for subdomains.
func (c *Client) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: from https to %s://%s", errRedirect, req.URL.Scheme, req.URL.Host)
	}
	if !c.home(req.URL) {
		req.Header.Del("Authorization")
	}
	return nil
}

// home reports whether a URL is of the endpoint's own scheme, host and port.
func (c *Client) home(u *url.URL) bool {
	return u.Scheme == c.base.Scheme && strings.EqualFold(u.Host, c.base.Host)
}

// url joins path elements to the endpoint, each escaped as one element.
func (c *Client) url(elements ...string) *url.URL {
	u := *c.base
	escaped := make([]string, len(elements))
	for i, e := range elements {
		escaped[i] = url.PathEscape(e)
	}
	u.Path = c.base.Path + "/" + strings.Join(elements, "/")
	u.RawPath = c.base.EscapedPath() + "/" + strings.Join(escaped, "/")
	return &u
}

// temporary marks what another attempt may mend.
type temporary struct {
	err   error
	after time.Duration // as Retry-After asks; 0: no wish
}

func (e *temporary) Error() string { return e.err.Error() }
func (e *temporary) Unwrap() error { return e.err }

// get makes one attempt. A reply that is no success is an error, and its body closed.
func (c *Client) get(ctx context.Context, u *url.URL, header http.Header, asked string) (*http.Response, error) {
	resp, err := c.send(ctx, c.http, http.MethodGet, u, header, asked)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	_ = resp.Body.Close()
	return nil, c.refusal(resp, asked)
}

// headers asks for the endpoint's own headers of a file, which it sends with a redirect to where the file is.
func (c *Client) headers(ctx context.Context, u *url.URL, asked string) (http.Header, error) {
	stays := *c.http
	stays.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if !c.home(req.URL) || req.Response.Header.Get("X-Linked-Etag") != "" {
			return http.ErrUseLastResponse
		}
		return c.redirect(req, via)
	}
	resp, err := c.send(ctx, &stays, http.MethodHead, u, nil, asked)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return nil, c.refusal(resp, asked)
	}
	return resp.Header, nil
}

// send sends a request, with the token.
func (c *Client) send(ctx context.Context, by *http.Client, method string, u *url.URL, header http.Header, asked string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", asked, err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	req.Header.Set("Accept-Encoding", "identity") // sizes and ranges are those of the file
	if c.o.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.o.Token)
	}
	resp, err := by.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err, asked)
	}
	return resp, nil
}

// transportError judges why there is no reply.
func (c *Client) transportError(ctx context.Context, err error, asked string) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errIdle) {
		return fmt.Errorf("%s: %w", asked, cause)
	}
	var (
		dns    *net.DNSError
		cert   *tls.CertificateVerificationError
		wrong  *url.Error
		notTLS tls.RecordHeaderError
	)
	if errors.As(err, &wrong) {
		err = fmt.Errorf("%s: %w", hostOf(wrong.URL), wrong.Err) // the URL of a file's host may hold a signature
	}
	switch {
	case errors.Is(err, errRedirect), errors.As(err, &cert), errors.As(err, &notTLS):
		return kindf(ErrHub, "%s: %w", asked, err)
	case errors.As(err, &dns) && dns.IsNotFound:
		return kindf(ErrHub, "%s: %w; is the machine on the net? HF_ENDPOINT names another hub, and with HF_HUB_OFFLINE=1 the cache is enough", asked, err)
	}
	return &temporary{err: kindf(ErrHub, "%s: %w", asked, err)}
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "the hub"
	}
	return u.Host
}

// refusal says what a reply means and what to do about it. The hub names its reason in X-Error-Code.
func (c *Client) refusal(resp *http.Response, asked string) error {
	said := ""
	if text := resp.Header.Get("X-Error-Message"); text != "" {
		said = fmt.Sprintf(" (the hub says %q)", shorten(text))
	}
	code := resp.Header.Get("X-Error-Code")
	if resp.Request != nil && !c.home(resp.Request.URL) { // of a host of files, whose links lapse
		return &temporary{err: kindf(ErrHub, "%s: %s answers %s%s", asked, resp.Request.URL.Host, resp.Status, said)}
	}
	status := resp.StatusCode
	switch {
	case code == "GatedRepo":
		return kindf(ErrAccess, "%s: the model is gated: accept its terms on its page at %s, %s%s", asked, c.base, c.tokenAdvice("and then pull it with"), said)
	case code == "RevisionNotFound":
		return kindf(ErrNotFound, "%s: the model has no such revision%s", asked, said)
	case code == "EntryNotFound":
		return kindf(ErrNotFound, "%s: the release has no such file%s", asked, said)
	case code == "DisabledRepo":
		return kindf(ErrAccess, "%s: the hub has disabled the model%s", asked, said)
	case code == "RepoNotFound" || status == http.StatusNotFound || status == http.StatusUnauthorized:
		kind := ErrNotFound
		if status == http.StatusUnauthorized && (code == "" || c.o.Token != "") {
			kind = ErrAccess
		}
		return kindf(kind, "%s: there is no such model at %s, or it is private: check its name, %s%s", asked, c.base, c.tokenAdvice("and for a private model use"), said)
	case status == http.StatusForbidden:
		return kindf(ErrAccess, "%s: the hub does not allow it: %s%s", asked, c.tokenAdvice("use"), said)
	case status == http.StatusTooManyRequests || status >= 500 || status == http.StatusRequestTimeout:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return &temporary{err: kindf(ErrHub, "%s: %s answers %s%s", asked, c.base.Host, resp.Status, said), after: time.Duration(max(0, seconds)) * time.Second}
	}
	return kindf(ErrHub, "%s: %s answers %s%s", asked, c.base.Host, resp.Status, said)
}

// tokenAdvice tells what about the token is to be done.
func (c *Client) tokenAdvice(verb string) string {
	if c.o.Token == "" {
		return verb + " a token of your account in HF_TOKEN (none is set)"
	}
	return verb + " a token of an account that has access (the one that is set in HF_TOKEN or by the log-in has not, or is wrong)"
}

// maxPause bounds what a Retry-After may ask.
const maxPause = 2 * time.Minute

// again makes attempts until one ends well, an error is not temporary, or Tries in a row brought nothing new.
func (c *Client) again(ctx context.Context, try func() (news bool, err error)) error {
	for fruitless := 0; ; {
		news, err := try()
		var later *temporary
		if err == nil || !errors.As(err, &later) {
			return err
		}
		if news {
			fruitless = 0
		}
		if fruitless++; fruitless >= c.o.Tries {
			return fmt.Errorf("%w; given up after %d attempts, but what has come is kept: pull again to go on", later.err, fruitless)
		}
		pause := min(maxPause, max(later.after, c.o.Pause<<(fruitless-1)))
		c.log.Warn("trying again", "after", pause, "error", later.err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// errIdle ends an attempt that brings nothing.
var errIdle = errors.New("nothing came")

// watch returns a context that ends when alive is not called for the idle time.
func (c *Client) watch(ctx context.Context) (_ context.Context, alive, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.o.Idle, func() { cancel(fmt.Errorf("%w for %s", errIdle, c.o.Idle)) })
	return ctx, func() { timer.Reset(c.o.Idle) }, func() {
		timer.Stop()
		cancel(nil)
	}
}

// reading calls alive for whatever comes.
func reading(r io.Reader, alive func()) io.Reader { return &aliveReader{r, alive} }

type aliveReader struct {
	r     io.Reader
	alive func()
}

func (a *aliveReader) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.alive()
	}
	return n, err
}

// Package hub fetches releases of models from a hub that speaks the Hugging Face protocol, into the cache that the
// hub's own tools use, so that neither fetches what the other has.
//
// The protocol: GET api/models/ORG/NAME/revision/REV tells the commit and its files, with the hash of each;
// GET ORG/NAME/resolve/COMMIT/FILE is the file, often by a redirect to another host, which must not see the token. A large
// file's hash is the SHA-256 of its bytes, a small one's that of git's blob.
//
// The cache: models--ORG--NAME/blobs/HASH are the bytes, snapshots/COMMIT/FILE links to them and refs/REV holds the commit.
// A blob appears under its name when it is whole and its hash was right; until then it is HASH.incomplete, which another
// attempt continues. A lock file for each blob keeps two processes from writing it at once; it is where the hub's Python
// library has it, and of the same kind.
package hub

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultEndpoint is the hub that is asked when HF_ENDPOINT names no other.
const DefaultEndpoint = "https://huggingface.co"

// Errors that errors.Is tells apart. All but ErrHub are for the user to mend.
var (
	ErrInput    = errors.New("bad input")                    // a name or a setting that cannot be right
	ErrNotFound = errors.New("not on the hub")               // repository, revision or file
	ErrAccess   = errors.New("access refused")               // no token, a wrong one, or terms that were not accepted
	ErrHub      = errors.New("the hub does not do its part") // after all attempts
	ErrHash     = errors.New("wrong hash")
	ErrSpace    = errors.New("not enough space")
	ErrInUse    = errors.New("in use")
	ErrAbsent   = errors.New("not in the cache")
)

// kindError gives an error a kind without changing its text.
type kindError struct {
	kind error
	err  error
}

func (e *kindError) Error() string        { return e.err.Error() }
func (e *kindError) Unwrap() error        { return e.err }
func (e *kindError) Is(target error) bool { return target == e.kind }

func kindf(kind error, format string, args ...any) error {
	return &kindError{kind, fmt.Errorf(format, args...)}
}

// Options say which hub and which cache.
type Options struct {
	Endpoint  string            // empty: DefaultEndpoint. A path in it is kept
	Token     string            // sent to the endpoint and nowhere else; empty: none
	Cache     string            // the folder that holds models--ORG--NAME
	Offline   bool              // take what the cache has and ask nobody
	Parallel  int               // files at once; 0: 4
	UserAgent string            // empty: glimpse
	Transport http.RoundTripper // nil: http.DefaultTransport, which takes proxies from the environment
	Logger    *slog.Logger      // nil: silent
	Progress  func(Progress)    // may be called from several goroutines; nil: nobody is told

	Tries int           // attempts in a row that bring nothing; 0: 5
	Pause time.Duration // after the first of them, then twice as long each; 0: 1s
	Idle  time.Duration // an attempt that brings nothing for so long is given up; 0: 30s
}

// Progress is how far a pull has come, in bytes; what was in the cache already counts as done.
type Progress struct {
	Done, Total, Cached int64
	File                string // the one that moved last
}

// maxToken bounds the file of the token.
const maxToken = 4096

// FromEnvironment reads the variables that the hub's own tools read: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME,
// HF_HUB_CACHE, HF_HUB_OFFLINE and XDG_CACHE_HOME. Without HF_TOKEN the token is that of the file which their log-in writes.
func FromEnvironment(getenv func(string) string) (Options, error) {
	home := getenv("HF_HOME")
	if home == "" {
		cache := getenv("XDG_CACHE_HOME")
		if cache == "" {
			user := getenv("HOME")
			if user == "" {
				return Options{}, kindf(ErrInput, "where is the hub's cache? set HF_HUB_CACHE, HF_HOME or HOME")
			}
			cache = filepath.Join(user, ".cache")
		}
		home = filepath.Join(cache, "huggingface")
	}
	o := Options{Endpoint: getenv("HF_ENDPOINT"), Token: strings.TrimSpace(getenv("HF_TOKEN")), Cache: getenv("HF_HUB_CACHE")}
	if o.Cache == "" {
		o.Cache = filepath.Join(home, "hub")
	}
	switch strings.ToUpper(getenv("HF_HUB_OFFLINE")) {
	case "1", "ON", "YES", "TRUE":
		o.Offline = true
	}
	if o.Token == "" {
		path := getenv("HF_TOKEN_PATH")
		if path == "" {
			path = filepath.Join(home, "token")
		}
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return Options{}, kindf(ErrInput, "read the hub's token: %w", err)
		}
		o.Token = strings.TrimSpace(string(raw))
	}
	return o, nil
}

// Client pulls from one hub into one cache. It may be used from several goroutines.
type Client struct {
	o    Options
	base *url.URL
	http *http.Client
	log  *slog.Logger
	free func(folder string) (int64, bool) // bytes; false: not known
}

// New checks the options. Nothing is asked of the hub yet.
func New(o Options) (*Client, error) {
	if o.Endpoint == "" {
		o.Endpoint = DefaultEndpoint
	}
	base, err := url.Parse(strings.TrimRight(o.Endpoint, "/"))
	switch {
	case err != nil:
		return nil, kindf(ErrInput, "HF_ENDPOINT: %w", err)
	case base.Scheme != "https" && base.Scheme != "http", base.Host == "", base.RawQuery != "", base.Fragment != "", base.User != nil:
		return nil, kindf(ErrInput, "HF_ENDPOINT is %q: it must be http(s)://HOST, perhaps with a path", base.Redacted())
	case o.Cache == "":
		return nil, kindf(ErrInput, "the hub's cache is not named (HF_HUB_CACHE)")
	case len(o.Token) > maxToken || strings.ContainsFunc(o.Token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, kindf(ErrInput, "the hub's token (HF_TOKEN, or the file of the log-in) is no token: it has spaces, line ends or other odd characters")
	}
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		return nil, fmt.Errorf("the hub's cache: %w", err)
	}
	setDefault(&o.Parallel, 4)
	setDefault(&o.Tries, 5)
	setDefault(&o.Pause, time.Second)
	setDefault(&o.Idle, 30*time.Second)
	setDefault(&o.UserAgent, "glimpse")
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Transport == nil {
		o.Transport = http.DefaultTransport
	}
	c := &Client{o: o, base: base, log: o.Logger, free: freeSpace}
	c.http = &http.Client{Transport: o.Transport, CheckRedirect: c.redirect}
	return c, nil
}

func setDefault[T comparable](value *T, to T) {
	if *value == *new(T) {
		*value = to
	}
}

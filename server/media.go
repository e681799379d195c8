// Pictures and other media of a request: data: URLs, files under the local media folder, and URLs for the Fetcher.

package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.opentelemetry.io/otel/trace"

	"glimpse/engine"
)

// mediaError is a picture that cannot be had.
func mediaError(param, format string, args ...any) *Error {
	return invalid(param, codeInvalidMedia, param+": "+fmt.Sprintf(format, args...))
}

func mediaRefused(param, message string) *Error {
	return &Error{Status: http.StatusForbidden, Type: typePermission, Code: codeMediaRefused, Param: param, Message: param + ": " + message}
}

// picture gets the picture that a URL names; param is where in the request the URL stands.
func (s *Server) picture(ctx context.Context, param, address string) (*engine.Picture, error) {
	data, source, err := s.mediaOf(ctx, param, address, "image/")
	if err != nil {
		return nil, err
	}
	return &engine.Picture{Data: data, Source: source}, nil
}

// mediaOf gets the bytes that a URL names, and what to call them in errors. Media types of data: URLs begin with one of kinds.
func (s *Server) mediaOf(ctx context.Context, param, address string, kinds ...string) (data []byte, source string, err error) {
	scheme, rest, ok := strings.Cut(address, ":")
	if !ok {
		return nil, "", mediaError(param, "not a URL: use data:%s…;base64,…", kinds[0])
	}
	source = param
	scheme = strings.ToLower(scheme)
	var read func(context.Context) ([]byte, error)
	switch scheme {
	case "data":
		read = func(context.Context) ([]byte, error) { return decodeDataURL(param, rest, s.limits.MediaBytes, kinds) }
	case "file":
		read = func(context.Context) ([]byte, error) { return s.readLocal(param, address) }
	case "http", "https":
		source = clipped(address)
		read = func(ctx context.Context) ([]byte, error) { return s.fetch(ctx, param, address) }
	default:
		return nil, "", mediaError(param, "the URL scheme %q is not supported: use data:, or what this server allows of http, https and file", clipped(scheme))
	}
	err = s.step(ctx, "media", func(ctx context.Context, span trace.Span) (err error) {
		data, err = read(ctx)
		span.SetAttributes(keyMediaScheme.String(scheme), keyMediaBytes.Int(len(data)))
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(data) == 0 {
		return nil, "", mediaError(param, "the file is empty")
	}
	if scheme != "data" { // what came in the body is in the budget of bodies
		if err := s.hold(ctx, param, int64(len(data))); err != nil {
			return nil, "", err
		}
	}
	return data, source, nil
}

// decodeDataURL decodes what follows "data:" (RFC 2397). Only base64 is taken, and only media types that begin with
// one of kinds.
func decodeDataURL(param, rest string, most int64, kinds []string) ([]byte, error) {
	head, payload, ok := strings.Cut(rest, ",")
	if !ok {
		return nil, mediaError(param, "a data: URL needs a comma before its data")
	}
	head, isBase64 := strings.CutSuffix(head, ";base64")
	if !isBase64 {
		return nil, mediaError(param, "a data: URL must be base64, as in data:image/png;base64,…")
	}
	if head != "" {
		kind, _, err := mime.ParseMediaType(head)
		if err != nil || !slices.ContainsFunc(kinds, func(k string) bool { return strings.HasPrefix(kind, k) }) {
			return nil, mediaError(param, "the media type %q is none of %s", clipped(head), strings.Join(kinds, ", "))
		}
	}
	if int64(base64.RawStdEncoding.DecodedLen(len(payload))) > most+2 { // two bytes of slack for padding
		return nil, mediaTooLarge(param, most)
	}
	if strings.Contains(payload, "%") {
		unescaped, err := url.PathUnescape(payload)
		if err != nil {
			return nil, mediaError(param, "the data: URL has a broken %% escape")
		}
		payload = unescaped
	}
	data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(payload, "="))
	if err != nil {
		return nil, mediaError(param, "the data: URL is not base64: %v", err)
	}
	if int64(len(data)) > most {
		return nil, mediaTooLarge(param, most)
	}
	return data, nil
}

func mediaTooLarge(param string, most int64) *Error {
	return mediaError(param, "it has more than the %d bytes this server accepts", most)
}

func (s *Server) fetch(ctx context.Context, param, address string) ([]byte, error) {
	if s.fetcher == nil {
		return nil, mediaRefused(param, "this server does not fetch pictures by http(s) URL: send them as data: URLs")
	}
	data, err := s.fetcher.Fetch(ctx, address, s.limits.MediaBytes)
	var refused *Error
	if errors.As(err, &refused) {
		named := *refused
		named.Param, named.Message = param, param+": "+refused.Message
		return nil, &named
	}
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", param, err)
	}
	if int64(len(data)) > s.limits.MediaBytes {
		return nil, mediaTooLarge(param, s.limits.MediaBytes)
	}
	return data, nil
}

// localMedia is the folder that file:// URLs may reach into. os.Root keeps every access inside it, symbolic links that
// change under our hands included.
type localMedia struct {
	root    *os.Root
	folders []string // absolute names of the folder: as given, and with its own links resolved
}

func openLocalMedia(folder string) (*localMedia, error) {
	given, err := filepath.Abs(folder)
	if err != nil {
		return nil, fmt.Errorf("open local media folder %s: %w", folder, err)
	}
	resolved, err := filepath.EvalSymlinks(given)
	if err != nil {
		return nil, fmt.Errorf("open local media folder: %w", err)
	}
	root, err := os.OpenRoot(resolved)
	if err != nil {
		return nil, fmt.Errorf("open local media folder: %w", err)
	}
	return &localMedia{root: root, folders: []string{given, resolved}}, nil
}

// Close closes the folder; again does nothing.
func (l *localMedia) Close() error { return l.root.Close() }

// relative is the path inside the folder of an absolute path, which is cleaned first.
func (l *localMedia) relative(path string) (string, bool) {
	for _, folder := range l.folders {
		rel, err := filepath.Rel(folder, path)
		if err == nil && filepath.IsLocal(rel) && rel != "." {
			return rel, true
		}
	}
	return "", false
}

func (s *Server) readLocal(param, address string) ([]byte, error) {
	if s.local == nil {
		return nil, mediaRefused(param, "this server does not read local files: send pictures as data: URLs")
	}
	u, err := url.Parse(address)
	if err != nil || u.Path == "" || u.Host != "" && u.Host != "localhost" || u.RawQuery != "" || u.Fragment != "" || strings.ContainsRune(u.Path, 0) {
		return nil, mediaError(param, "not a file URL: use file:///path/of/picture.png")
	}
	rel, ok := s.local.relative(filepath.FromSlash(u.Path))
	if !ok {
		return nil, mediaRefused(param, "the file is outside the folder that this server reads pictures from")
	}
	data, err := s.local.read(rel, s.limits.MediaBytes)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, mediaTooLarge(param, s.limits.MediaBytes)
	case err != nil:
		// One answer for what is missing, unreadable, no regular file or behind a link that leads out: the reply must not
		// tell strangers what there is on this machine.
		refused := mediaError(param, "no readable picture of this name in the folder that this server reads pictures from")
		refused.cause = err
		return nil, refused
	}
	return data, nil
}

var errTooLarge = errors.New("too large")

func (l *localMedia) read(rel string, most int64) ([]byte, error) {
	f, err := l.root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not block the open
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", rel)
	}
	if info.Size() > most {
		return nil, errTooLarge
	}
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		return nil, errTooLarge
	}
	return data, err
}

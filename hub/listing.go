package hub

// What a release consists of.

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// file is one file of a release.
type file struct {
	path string
	size int64
	hash string // lower-case hex: 64 digits for SHA-256 of the bytes, 40 for git's SHA-1 of a blob
}

// listing is a release at one commit.
type listing struct {
	commit string
	files  map[string]file // size -1: the list does not tell, ask for the file
}

func (l *listing) names() []string {
	names := make([]string, 0, len(l.files))
	for name := range l.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// maxListing bounds the hub's reply; a release with thousands of files has a megabyte.
const maxListing = 64 << 20

// list asks for the files of a release.
func (c *Client) list(ctx context.Context, ref Reference) (*listing, error) {
	u := c.url(append(append([]string{"api", "models"}, strings.Split(ref.Repository, "/")...), "revision", ref.Revision)...)
	u.RawQuery = "blobs=true"
	var raw []byte
	err := c.again(ctx, func() (bool, error) {
		attempt, alive, stop := c.watch(ctx)
		defer stop()
		resp, err := c.get(attempt, u, nil, ref.String())
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		raw, err = io.ReadAll(io.LimitReader(reading(resp.Body, alive), maxListing+1))
		if err != nil {
			return false, c.transportError(attempt, fmt.Errorf("read the list of files: %w", err), ref.String())
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	if len(raw) > maxListing {
		return nil, kindf(ErrHub, "%s: the list of files has more than %d bytes", ref, maxListing)
	}
	l, err := parseListing(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	if commitPattern.MatchString(ref.Revision) && l.commit != ref.Revision {
		return nil, kindf(ErrHub, "%s: the hub answers with another commit, %s", ref, l.commit)
	}
	return l, nil
}

// parseListing reads the hub's reply and believes nothing of it.
func parseListing(raw []byte) (*listing, error) {
	var reply struct {
		SHA      string `json:"sha"`
		Siblings []struct {
			Name string `json:"rfilename"`
			Size *int64 `json:"size"`
			Blob string `json:"blobId"`
			LFS  *struct {
				SHA256 string `json:"sha256"`
				OID    string `json:"oid"` // as the tree has it
				Size   *int64 `json:"size"`
			} `json:"lfs"`
		} `json:"siblings"`
	}
	if err := json.Unmarshal(raw, &reply); err != nil {
		return nil, kindf(ErrHub, "the hub's list of files cannot be read: %w", err)
	}
	if !commitPattern.MatchString(reply.SHA) {
		return nil, kindf(ErrHub, "the hub names no commit but %q", shorten(reply.SHA))
	}
	if len(reply.Siblings) > maxFiles {
		return nil, kindf(ErrHub, "the release has %d files, more than %d", len(reply.Siblings), maxFiles)
	}
	l := &listing{commit: reply.SHA, files: make(map[string]file, len(reply.Siblings))}
	for _, s := range reply.Siblings {
		if err := checkPath(s.Name); err != nil {
			return nil, err
		}
		f := file{path: s.Name, size: -1, hash: s.Blob}
		if s.LFS != nil {
			f.hash = s.LFS.SHA256
			if f.hash == "" {
				f.hash = s.LFS.OID
			}
			if s.LFS.Size != nil {
				s.Size = s.LFS.Size
			}
		}
		if s.Size != nil && goodHash(f.hash) {
			f.size = *s.Size
		}
		if _, twice := l.files[f.path]; twice || s.Size != nil && *s.Size < 0 {
			return nil, kindf(ErrHub, "the hub's list has %q twice, or with a size below nothing", f.path)
		}
		l.files[f.path] = f
	}
	for name := range l.files { // a file cannot be a folder too
		for dir := name; strings.Contains(dir, "/"); {
			dir = dir[:strings.LastIndex(dir, "/")]
			if _, both := l.files[dir]; both {
				return nil, kindf(ErrHub, "the hub's list has %q as a file and as a folder", dir)
			}
		}
	}
	return l, nil
}

func goodHash(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && (len(raw) == 32 || len(raw) == 20) && s == strings.ToLower(s)
}

// describe asks for the size and the hash of a file that the list does not tell them of, as mirrors' lists do not.
func (c *Client) describe(ctx context.Context, ref Reference, commit, name string) (file, error) {
	f := file{path: name}
	asked := ref.String() + ": " + name
	return f, c.again(ctx, func() (bool, error) {
		attempt, _, stop := c.watch(ctx)
		defer stop()
		header, err := c.headers(attempt, c.fileURL(ref, commit, name), asked)
		if err != nil {
			return false, err
		}
		f.hash = etag(header.Get("X-Linked-Etag"))
		if f.hash == "" {
			f.hash = etag(header.Get("ETag"))
		}
		size := header.Get("X-Linked-Size")
		if size == "" {
			size = header.Get("Content-Length")
		}
		if _, err := fmt.Sscan(size, &f.size); err != nil || f.size < 0 || !goodHash(f.hash) {
			return false, kindf(ErrHub, "%s: the hub tells no size and hash that it could be checked by (size %q, hash %q)", asked, shorten(size), shorten(f.hash))
		}
		return false, nil
	})
}

func etag(s string) string { return strings.Trim(strings.TrimPrefix(s, "W/"), `"`) }

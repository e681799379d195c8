package hub

// One file: from the hub into the cache's blob, over cut connections and over attempts of other days.

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// fileURL is where a file of a commit is.
func (c *Client) fileURL(ref Reference, commit, name string) *url.URL {
	elements := append(strings.Split(ref.Repository, "/"), "resolve", commit)
	return c.url(append(elements, strings.Split(name, "/")...)...)
}

// download brings a file into the blobs. came is told of every byte, and of those that must come again as a negative number.
func (c *Client) download(ctx context.Context, r *repository, ref Reference, commit string, f file, came func(int64)) error {
	asked := ref.String() + ": " + f.path
	unlock, err := r.lockBlob(ctx, f.hash, c.log)
	if err != nil {
		return fmt.Errorf("%s: %w", asked, err)
	}
	defer unlock()
	if r.hasBlob(f) { // another process was faster
		came(f.size)
		return nil
	}
	p, err := openPartial(r.incomplete(f.hash), f)
	if err != nil {
		return fmt.Errorf("%s: %w", asked, err)
	}
	defer p.Close()
	p.came = came
	came(p.have)
	for again := false; ; again = true {
		if err := c.complete(ctx, p, c.fileURL(ref, commit, f.path), asked); err != nil {
			return err
		}
		if p.right() {
			break
		}
		got := p.sum()
		if err := p.restart(); err != nil {
			return fmt.Errorf("%s: %w", asked, err)
		}
		if again {
			return errors.Join(kindf(ErrHash, "%s: what comes has the hash %s, and by the hub's list it should be %s: twice, so it is changed on its way, or the hub is wrong", asked, got, f.hash),
				os.Remove(p.file.Name()))
		}
		c.log.Warn("wrong hash, fetching the file anew", "file", asked, "want", f.hash, "got", got)
	}
	if err := p.file.Sync(); err != nil {
		return fmt.Errorf("%s: %w", asked, err)
	}
	if err := os.Rename(p.file.Name(), r.blob(f.hash)); err != nil {
		return fmt.Errorf("%s: %w", asked, err)
	}
	return nil
}

// complete fetches what the partial file lacks, in as many attempts as bring something.
func (c *Client) complete(ctx context.Context, p *partial, u *url.URL, asked string) error {
	return c.again(ctx, func() (bool, error) {
		before := p.have
		if before == p.want.size {
			return false, nil
		}
		attempt, alive, stop := c.watch(ctx)
		defer stop()
		err := c.continuePartial(attempt, p, u, asked, alive)
		return p.have > before, err
	})
}

func (c *Client) continuePartial(ctx context.Context, p *partial, u *url.URL, asked string, alive func()) error {
	header := http.Header{}
	if p.have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", p.have))
	}
	resp, err := c.get(ctx, u, header, asked)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if p.have > 0 {
		if err := p.agree(resp); err != nil {
			return fmt.Errorf("%s: %w", asked, err)
		}
	}
	if n := resp.ContentLength; n >= 0 && p.have+n != p.want.size {
		return kindf(ErrHub, "%s: the hub sends a file of %d bytes, and its list says %d: it has changed, or is damaged there; try again later", asked, p.have+n, p.want.size)
	}
	_, err = io.Copy(p, reading(io.LimitReader(resp.Body, p.want.size-p.have+1), alive))
	var writing *writeError
	switch {
	case errors.As(err, &writing):
		return fmt.Errorf("%s: %w", asked, writing.err)
	case p.have > p.want.size:
		return errors.Join(kindf(ErrHub, "%s: the hub sends more than the %d bytes that its list says", asked, p.want.size), p.restart())
	case err != nil:
		if cause := context.Cause(ctx); cause != nil {
			err = cause // the body only says that the context was cancelled
		}
		return c.transportError(ctx, fmt.Errorf("after %d of %d bytes: %w", p.have, p.want.size, err), asked)
	case p.have < p.want.size:
		return &temporary{err: kindf(ErrHub, "%s: the connection ended after %d of %d bytes", asked, p.have, p.want.size)}
	}
	return nil
}

// partial is a blob that is not whole yet. Its hash follows what is written.
type partial struct {
	file *os.File
	want file
	have int64
	hash hash.Hash
	came func(int64)
}

// writeError keeps a full disk apart from a cut connection.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// openPartial opens what earlier attempts left. Whoever holds the blob's lock may.
func openPartial(path string, want file) (*partial, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	p := &partial{file: f, want: want, came: func(int64) {}}
	p.resetHash()
	p.have, err = io.Copy(p.hash, io.LimitReader(f, want.size+1))
	if err == nil && p.have > want.size { // of another file, or by a hub that sent too much
		err = p.restart()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

func (p *partial) Close() error { return p.file.Close() }

func (p *partial) resetHash() {
	if len(p.want.hash) == 2*sha1.Size {
		p.hash = sha1.New()
		fmt.Fprintf(p.hash, "blob %d\x00", p.want.size)
		return
	}
	p.hash = sha256.New()
}

// restart throws away what is there.
func (p *partial) restart() error {
	p.came(-p.have)
	p.have = 0
	p.resetHash()
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	_, err := p.file.Seek(0, io.SeekStart)
	return err
}

// agree checks that a reply continues where the file ends; a server that knows no ranges sends it from its beginning.
func (p *partial) agree(resp *http.Response) error {
	if resp.StatusCode != http.StatusPartialContent {
		return p.restart()
	}
	var first, last int64
	var total string
	_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%s", &first, &last, &total)
	if err != nil || first != p.have || total != "*" && total != fmt.Sprint(p.want.size) {
		err = kindf(ErrHub, "asked for bytes from %d of %d the hub sends %q", p.have, p.want.size, shorten(resp.Header.Get("Content-Range")))
		if restartErr := p.restart(); restartErr != nil {
			return restartErr
		}
		return &temporary{err: err}
	}
	return nil
}

func (p *partial) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	p.hash.Write(b[:n])
	p.have += int64(n)
	p.came(int64(n))
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = kindf(ErrSpace, "%w: free some space, or name a cache elsewhere in HF_HUB_CACHE; what has come is kept", err)
		}
		return n, &writeError{err}
	}
	return n, nil
}

func (p *partial) sum() string { return hex.EncodeToString(p.hash.Sum(nil)) }

func (p *partial) right() bool { return p.sum() == p.want.hash }

func (r *repository) hasBlob(f file) bool {
	info, err := os.Stat(r.blob(f.hash))
	return err == nil && info.Mode().IsRegular() && info.Size() == f.size
}

func (r *repository) blob(hash string) string       { return filepath.Join(r.folder, "blobs", hash) }
func (r *repository) incomplete(hash string) string { return r.blob(hash) + ".incomplete" }

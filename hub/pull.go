package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Choose picks what is wanted of a release from the names of its files; read returns the bytes of one of them.
type Choose func(names []string, read func(name string) ([]byte, error)) ([]string, error)

// Snapshot is a release at one commit, as it lies in the cache.
type Snapshot struct {
	Repository string
	Revision   string // the commit
	Folder     string
	Files      []string // those that were chosen
	Bytes      int64
	Fetched    int64 // of them, those that came from the hub in this call
}

// maxRead bounds what Choose reads.
const maxRead = 64 << 20

// Pull brings the chosen files of a release into the cache, as far as they are not there. Interrupted, it leaves what has
// come for the next call.
func (c *Client) Pull(ctx context.Context, ref Reference, choose Choose) (*Snapshot, error) {
	r := c.repository(ref.Repository)
	if c.o.Offline {
		return r.local(ref, choose)
	}
	l, err := c.list(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(r.folder, "blobs"), 0o755); err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	unlock, err := r.lock(wholeLock, syscall.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("pull %s: it is being removed from the cache: %w", ref, err)
	}
	defer unlock()
	p := &pull{c: c, r: r, ref: ref, l: l}
	names, err := choose(l.names(), func(name string) ([]byte, error) { return p.read(ctx, name) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	s := &Snapshot{Repository: ref.Repository, Revision: l.commit, Folder: r.snapshot(l.commit), Files: names}
	if s.Bytes, err = p.all(ctx, names); err != nil {
		return nil, err
	}
	s.Fetched = p.fetched
	return s, r.setRef(ref.Revision, l.commit)
}

// pull is one call of Pull.
type pull struct {
	c   *Client
	r   *repository
	ref Reference
	l   *listing

	mu       sync.Mutex
	progress Progress
	fetched  int64
}

// read fetches a file, and returns its bytes.
func (p *pull) read(ctx context.Context, name string) ([]byte, error) {
	f, ok := p.l.files[name]
	if !ok {
		return nil, fmt.Errorf("the release has no %s", name)
	}
	f, err := p.described(ctx, f)
	if err != nil {
		return nil, err
	}
	if f.size > maxRead {
		return nil, kindf(ErrHub, "%s has %d bytes, more than such a file may have", name, f.size)
	}
	if err := p.fetch(ctx, f); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(p.r.snapshot(p.l.commit), filepath.FromSlash(name)))
}

// described is the file with its size and hash.
func (p *pull) described(ctx context.Context, f file) (file, error) {
	if f.size >= 0 {
		return f, nil
	}
	return p.c.describe(ctx, p.ref, p.l.commit, f.path)
}

// all fetches the files, a few at once, and returns their size.
func (p *pull) all(ctx context.Context, names []string) (int64, error) {
	files, err := p.describeAll(ctx, names)
	if err != nil {
		return 0, err
	}
	var total, missing int64
	for _, f := range files {
		total += f.size
		if !p.r.has(p.l.commit, f) && !p.r.hasBlob(f) {
			missing += f.size
			if info, err := os.Stat(p.r.incomplete(f.hash)); err == nil {
				missing -= min(f.size, info.Size())
			}
		}
	}
	if free, known := p.c.free(p.r.folder); known && missing > free {
		return 0, kindf(ErrSpace, "%s: %d MiB are to come and %s has %d MiB free: free some space, or name a cache elsewhere in HF_HUB_CACHE",
			p.ref, missing>>20, p.c.o.Cache, free>>20)
	}
	p.mu.Lock()
	p.progress = Progress{Total: total}
	p.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(p.c.o.Parallel)
	for _, f := range files {
		group.Go(func() error { return p.fetch(ctx, f) })
	}
	return total, group.Wait()
}

func (p *pull) describeAll(ctx context.Context, names []string) ([]file, error) {
	files := make([]file, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(p.c.o.Parallel)
	for i, name := range names {
		f, ok := p.l.files[name]
		if !ok {
			return nil, kindf(ErrNotFound, "%s: the release has no %s", p.ref, name)
		}
		group.Go(func() (err error) {
			files[i], err = p.described(ctx, f)
			return err
		})
	}
	return files, group.Wait()
}

// fetch brings one file into the snapshot.
func (p *pull) fetch(ctx context.Context, f file) error {
	if p.r.has(p.l.commit, f) {
		p.moved(f, f.size, f.size, 0)
		return nil
	}
	if p.r.hasBlob(f) {
		p.moved(f, f.size, f.size, 0)
	} else {
		first := true // the first report is of what was there already
		err := p.c.download(ctx, p.r, p.ref, p.l.commit, f, func(n int64) {
			if first {
				first = false
				p.moved(f, n, n, 0)
				return
			}
			p.moved(f, n, 0, n)
		})
		if err != nil {
			return err
		}
	}
	return p.r.link(p.l.commit, f)
}

// moved counts and tells.
func (p *pull) moved(f file, done, cached, fetched int64) {
	p.mu.Lock()
	p.progress.Done += done
	p.progress.Cached += cached
	p.progress.File = f.path
	p.fetched += max(0, fetched) // what is thrown away has come all the same
	now := p.progress
	p.mu.Unlock()
	if now.Total > 0 { // not while Choose reads
		p.c.o.Progress(now)
	}
}

// local finds a release in the cache alone.
func (r *repository) local(ref Reference, choose Choose) (*Snapshot, error) {
	absent := func(err error) error {
		return kindf(ErrAbsent, "%s is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub: %w", ref, err)
	}
	commit, err := r.resolve(ref.Revision)
	if err != nil {
		return nil, absent(err)
	}
	s := &Snapshot{Repository: ref.Repository, Revision: commit, Folder: r.snapshot(commit)}
	sizes := map[string]int64{}
	var names []string
	err = walk(s.Folder, func(path string, _ fs.DirEntry) error {
		name, err := filepath.Rel(s.Folder, path)
		if err != nil {
			return err
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a link whose blob is gone
		}
		if err == nil {
			name = filepath.ToSlash(name)
			names, sizes[name] = append(names, name), info.Size()
		}
		return err
	})
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("%s holds nothing", s.Folder)
	}
	if err != nil {
		return nil, absent(err)
	}
	s.Files, err = choose(names, func(name string) ([]byte, error) {
		if sizes[name] > maxRead {
			return nil, kindf(ErrHub, "%s has %d bytes, more than such a file may have", name, sizes[name])
		}
		return os.ReadFile(filepath.Join(s.Folder, filepath.FromSlash(name)))
	})
	if err != nil {
		return nil, absent(err)
	}
	for _, name := range s.Files {
		s.Bytes += sizes[name]
	}
	return s, nil
}

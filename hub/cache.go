package hub

// The cache's layout.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// repository is a release's part of the cache.
type repository struct {
	folder string // models--ORG--NAME
	locks  string // where the locks of its blobs are
}

func (c *Client) repository(name string) *repository {
	folder := "models--" + strings.ReplaceAll(name, "/", "--")
	return &repository{filepath.Join(c.o.Cache, folder), filepath.Join(c.o.Cache, ".locks", folder)}
}

func (r *repository) snapshot(commit string) string {
	return filepath.Join(r.folder, "snapshots", commit)
}

// has reports whether a file of a snapshot is there, however it came.
func (r *repository) has(commit string, f file) bool {
	info, err := os.Stat(filepath.Join(r.snapshot(commit), filepath.FromSlash(f.path)))
	return err == nil && info.Mode().IsRegular() && info.Size() == f.size
}

// link puts a blob into a snapshot.
func (r *repository) link(commit string, f file) error {
	path := filepath.Join(r.snapshot(commit), filepath.FromSlash(f.path))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("link %s into the snapshot: %w", f.path, err)
	}
	target := strings.Repeat("../", 2+strings.Count(f.path, "/")) + "blobs/" + f.hash
	temp := besides(path)
	if err := os.Symlink(target, temp); err != nil {
		return fmt.Errorf("link %s into the snapshot: %w", f.path, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return errors.Join(fmt.Errorf("link %s into the snapshot: %w", f.path, err), os.Remove(temp))
	}
	return nil
}

// besides is a name that nobody else uses at the same time, not even in another container.
func besides(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text())
}

// setRef remembers which commit a branch or tag is.
func (r *repository) setRef(revision, commit string) error {
	if commitPattern.MatchString(revision) {
		return nil
	}
	path := filepath.Join(r.folder, "refs", filepath.FromSlash(revision))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("remember the revision %s: %w", revision, err)
	}
	temp := besides(path)
	if err := os.WriteFile(temp, []byte(commit), 0o644); err != nil {
		return fmt.Errorf("remember the revision %s: %w", revision, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("remember the revision %s: %w", revision, err)
	}
	return nil
}

// resolve is the commit that a revision was when it was last pulled.
func (r *repository) resolve(revision string) (string, error) {
	if commitPattern.MatchString(revision) {
		return revision, nil
	}
	raw, err := os.ReadFile(filepath.Join(r.folder, "refs", filepath.FromSlash(revision)))
	if err != nil {
		return "", err
	}
	commit := strings.TrimSpace(string(raw))
	if !commitPattern.MatchString(commit) {
		return "", fmt.Errorf("the cache's ref %s holds no commit", revision)
	}
	return commit, nil
}

// lockEvery is how often a lock that another process holds is tried.
const lockEvery = 100 * time.Millisecond

// lockBlob waits until no other process writes the blob.
func (r *repository) lockBlob(ctx context.Context, hash string, log *slog.Logger) (unlock func(), err error) {
	for told := false; ; told = true {
		unlock, err = r.lock(hash+".lock", syscall.LOCK_EX)
		if err == nil || !errors.Is(err, ErrInUse) {
			return unlock, err
		}
		if !told {
			log.Info("another process is fetching this file; waiting for it", "lock", filepath.Join(r.locks, hash+".lock"))
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockEvery):
		}
	}
}

// lock takes a lock, or fails with ErrInUse. The file stays: removing it would let two processes lock two files of one name.
func (r *repository) lock(name string, how int) (unlock func(), err error) {
	if err := os.MkdirAll(r.locks, 0o755); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(r.locks, name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, kindf(ErrInUse, "lock %s: another process has it", f.Name())
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

// wholeLock is held, shared, while a release is pulled: what Remove finds without a link may be about to get one.
const wholeLock = "glimpse-pull.lock"

// Remove takes one commit of a release out of the cache: its snapshot, the refs that name it, and the blobs that no other
// snapshot links to. It returns the bytes that this freed. ErrAbsent says that the cache does not have it.
func (c *Client) Remove(name, commit string) (freed int64, err error) {
	ref, err := ParseReference(name + "@" + commit)
	if err != nil {
		return 0, err
	}
	if !commitPattern.MatchString(commit) {
		return 0, kindf(ErrInput, "remove %s from the cache: a commit is due", ref)
	}
	r := c.repository(ref.Repository)
	if _, err := os.Stat(r.snapshot(commit)); err != nil {
		return 0, kindf(ErrAbsent, "remove %s from the cache: %w", ref, err)
	}
	unlock, err := r.lock(wholeLock, syscall.LOCK_EX)
	if err != nil {
		return 0, fmt.Errorf("remove %s from the cache: it is being pulled: %w", ref, err)
	}
	defer unlock()
	if err := os.RemoveAll(r.snapshot(commit)); err != nil {
		return 0, fmt.Errorf("remove %s from the cache: %w", ref, err)
	}
	if err := r.forget(commit); err != nil {
		return 0, fmt.Errorf("remove %s from the cache: %w", ref, err)
	}
	if freed, err = r.sweep(); err != nil {
		return freed, fmt.Errorf("remove %s from the cache: %w", ref, err)
	}
	return freed, nil
}

// forget removes the refs that name a commit.
func (r *repository) forget(commit string) error {
	return walk(filepath.Join(r.folder, "refs"), func(path string, _ fs.DirEntry) error {
		raw, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(raw)) == commit {
			err = os.Remove(path)
		}
		return err
	})
}

// sweep removes the blobs that no snapshot links to, and the whole folder when no snapshot is left.
func (r *repository) sweep() (freed int64, err error) {
	linked, snapshots := map[string]bool{}, 0
	err = walk(filepath.Join(r.folder, "snapshots"), func(path string, d fs.DirEntry) error {
		snapshots++
		target, err := os.Readlink(path)
		if err == nil {
			linked[filepath.Base(target)] = true
		}
		return nil // a file that is no link needs no blob
	})
	if err != nil {
		return 0, err
	}
	err = walk(filepath.Join(r.folder, "blobs"), func(path string, d fs.DirEntry) error {
		name := d.Name()
		if linked[name] || snapshots > 0 && strings.HasSuffix(name, ".incomplete") {
			return nil
		}
		info, err := d.Info()
		if err == nil {
			err = os.Remove(path)
		}
		if err == nil {
			freed += info.Size()
		}
		return err
	})
	if err == nil && snapshots == 0 {
		err = os.RemoveAll(r.folder)
	}
	return freed, err
}

// walk calls f for everything below a folder that is no folder; a folder that is not there is an empty one.
func walk(folder string, f func(path string, d fs.DirEntry) error) error {
	return filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		return f(path, d)
	})
}

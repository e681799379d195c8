// Package store reads and writes object stores: S3 (s3://), Google Cloud Storage (gs://), Azure Blob Storage (azblob://) and
// folders (file://), through gocloud.dev/blob. Credentials are those that each cloud's own tools use; the part of an address
// after a question mark is gocloud.dev's, such as s3://bucket/key?region=eu-west-1&endpoint=….
//
// It is a package of its own because the clouds' libraries are large: only the command line links it.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"glimpse/batch/source"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	_ "gocloud.dev/blob/fileblob"  // file://
	_ "gocloud.dev/blob/gcsblob"   // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://
	"gocloud.dev/gcerrors"
)

// Schemes are those of the addresses that a Store reads.
var Schemes = []string{"s3", "gs", "azblob", "file"}

// Store keeps the buckets that it opened. It is safe for many goroutines.
type Store struct {
	mu      sync.Mutex
	buckets map[string]*blob.Bucket
}

// New returns a store without open buckets.
func New() *Store { return &Store{buckets: map[string]*blob.Bucket{}} }

// Handles reports whether addresses of this scheme are the store's.
func (s *Store) Handles(scheme string) bool { return slices.Contains(Schemes, scheme) }

// place is an address taken apart.
type place struct {
	bucket string // the address of the bucket, with what is after the question mark
	key    string
	prefix string // what stands before a key in addresses
	query  string // what stands after it
}

// split takes an address apart. The bucket of file:// is a folder: that of the key's.
func split(address string) (place, error) {
	u, err := url.Parse(address)
	if err != nil {
		return place{}, fmt.Errorf("address %s: %w", address, err)
	}
	query := ""
	if u.RawQuery != "" {
		query = "?" + u.RawQuery
	}
	if u.Scheme == "file" {
		at := strings.LastIndex(u.Path, "/")
		if u.Host != "" || at < 0 {
			return place{}, fmt.Errorf("address %s: a file has the form file:///folder/name", address)
		}
		folder := u.Path[:at+1]
		if folder == "/" && u.Path == "/" {
			return place{}, fmt.Errorf("address %s: name a folder", address)
		}
		// Metadata files beside the objects would be strangers among somebody's pictures.
		bucket := url.URL{Scheme: "file", Path: folder, RawQuery: "metadata=skip&no_tmp_dir=true"}
		return place{bucket: bucket.String(), key: u.Path[at+1:], prefix: "file://" + folder, query: query}, nil
	}
	if u.Host == "" {
		return place{}, fmt.Errorf("address %s names no bucket", address)
	}
	return place{bucket: u.Scheme + "://" + u.Host + query, key: strings.TrimPrefix(u.Path, "/"), prefix: u.Scheme + "://" + u.Host + "/", query: query}, nil
}

// address is that of another key of the same bucket.
func (p place) address(key string) string {
	return p.prefix + (&url.URL{Path: key}).EscapedPath() + p.query
}

func (s *Store) open(ctx context.Context, address string) (*blob.Bucket, place, error) {
	p, err := split(address)
	if err != nil {
		return nil, p, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.buckets[p.bucket]; b != nil {
		return b, p, nil
	}
	b, err := blob.OpenBucket(ctx, p.bucket)
	if err != nil {
		return nil, p, fmt.Errorf("open the object store of %s: %w", address, found(err))
	}
	s.buckets[p.bucket] = b
	return b, p, nil
}

// found makes what is not there fs.ErrNotExist.
func found(err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// List yields the objects below an address, by name.
func (s *Store) List(ctx context.Context, address string) iter.Seq2[source.Object, error] {
	return func(yield func(source.Object, error) bool) {
		b, p, err := s.open(ctx, address)
		if err != nil {
			yield(source.Object{}, err)
			return
		}
		list := b.List(&blob.ListOptions{Prefix: p.key})
		for {
			o, err := list.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(source.Object{}, fmt.Errorf("list %s: %w", address, found(err)))
				return
			}
			if o.IsDir {
				continue
			}
			object := source.Object{Address: p.address(o.Key), Version: source.VersionOf(o.Size, o.ModTime.UnixNano()), Size: o.Size}
			if !yield(object, nil) {
				return
			}
		}
	}
}

// Open reads an object from its beginning. A missing one is fs.ErrNotExist.
func (s *Store) Open(ctx context.Context, address string) (io.ReadCloser, error) {
	b, p, err := s.open(ctx, address)
	if err != nil {
		return nil, err
	}
	r, err := b.NewReader(ctx, p.key, nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", address, found(err))
	}
	return r, nil
}

// readerAt reads ranges of an object.
type readerAt struct {
	ctx     context.Context
	bucket  *blob.Bucket
	key     string
	address string
}

func (r *readerAt) ReadAt(p []byte, off int64) (int, error) {
	in, err := r.bucket.NewRangeReader(r.ctx, r.key, off, int64(len(p)), nil)
	if err != nil {
		return 0, fmt.Errorf("read %s at byte %d: %w", r.address, off, found(err))
	}
	defer in.Close()
	n, err := io.ReadFull(in, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// ReaderAt reads an object at any place, while ctx lasts.
func (s *Store) ReaderAt(ctx context.Context, address string) (io.ReaderAt, int64, error) {
	b, p, err := s.open(ctx, address)
	if err != nil {
		return nil, 0, err
	}
	a, err := b.Attributes(ctx, p.key)
	if err != nil {
		return nil, 0, fmt.Errorf("look at %s: %w", address, found(err))
	}
	return &readerAt{ctx, b, p.key, address}, a.Size, nil
}

// Upload returns how files go below an address. An object is there whole or not at all.
func (s *Store) Upload(below string) func(ctx context.Context, name, path string) error {
	base, query, asked := strings.Cut(below, "?")
	address := func(name string) string {
		a := strings.TrimSuffix(base, "/") + "/" + name
		if asked {
			a += "?" + query
		}
		return a
	}
	return func(ctx context.Context, name, path string) error {
		b, p, err := s.open(ctx, address(name))
		if err != nil {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		// A writer whose context ends before Close leaves nothing.
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		w, err := b.NewWriter(ctx, p.key, nil)
		if err != nil {
			return fmt.Errorf("write %s: %w", address(name), err)
		}
		if _, err := io.Copy(w, in); err != nil {
			cancel()
			return errors.Join(fmt.Errorf("write %s: %w", address(name), err), w.Close())
		}
		if err := w.Close(); err != nil {
			return fmt.Errorf("write %s: %w", address(name), err)
		}
		return nil
	}
}

// Close closes the buckets; closing again is harmless.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for name, b := range s.buckets {
		err = errors.Join(err, b.Close())
		delete(s.buckets, name)
	}
	return err
}

// Package source lists the pictures of a batch: files, folders, globs, lists and tables of paths, tables and tar shards
// that hold the pictures themselves, standard input, and object stores.
//
// What must stay true: the order depends on the inputs alone, never on the machine; memory does not grow with the number of
// pictures (but for the names of one folder); and what is wrong with one line, member or file is an Item with an error, so
// that the rest is still listed.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/batch/row"
)

// ErrInput marks inputs that do not exist or cannot be what they are said to be.
var ErrInput = errors.New("bad batch input")

// Item is one input.
type Item struct {
	ID   string // names the row; unique for a picture
	Path string // what to open, or where in its container the picture is; for people
	Err  error  // set when the input could not be listed, such as a folder without permission
	// Version changes when the file does: a hash of its size and time of change. 0: not known.
	Version uint64
	// Load returns the bytes of a picture that lies in a container. It is valid until the iteration goes on. nil: read Path.
	Load func() ([]byte, error)
	Ref  string // the address of an object; "" for everything else
	Size int64  // of an object, in bytes; 0: not known
}

// Local reports whether the picture is a file of its own.
func (i *Item) Local() bool { return i.Load == nil && i.Ref == "" && i.Err == nil }

// Kinds of inputs.
const (
	Auto       = "auto"       // by the name: the extensions below, else a picture
	Picture    = "picture"    // a picture, a folder of pictures, or a glob
	List       = "list"       // .txt, .lst: a path a line
	JSONL      = "jsonl"      // .jsonl, .ndjson: an object a line
	CSV        = "csv"        // .csv, .tsv: a header, then records
	Parquet    = "parquet"    // .parquet
	WebDataset = "webdataset" // .tar, .tar.gz, .tgz, .tar.zst: members with a picture's extension
)

// Kinds lists them.
var Kinds = []string{Auto, Picture, List, JSONL, CSV, Parquet, WebDataset}

// Extensions are the file names that are taken from folders; files named one by one are taken whatever they are called.
var Extensions = []string{".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"}

// VideoExtensions are taken from folders too, where Options.Videos says so.
var VideoExtensions = []string{".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".flv", ".wmv", ".3gp"}

// Store reads objects of a cloud's object store by address (scheme://bucket/key).
type Store interface {
	// Handles reports whether addresses of this scheme are the store's.
	Handles(scheme string) bool
	// List yields the objects below an address, by name.
	List(ctx context.Context, address string) iter.Seq2[Object, error]
	// Open reads an object from its beginning. A missing one is fs.ErrNotExist.
	Open(ctx context.Context, address string) (io.ReadCloser, error)
	// ReaderAt reads an object at any place.
	ReaderAt(ctx context.Context, address string) (io.ReaderAt, int64, error)
}

// Object is one thing in a Store.
type Object struct {
	Address string
	Version uint64
	Size    int64 // bytes
}

// Options say how inputs are read. Zero values are the defaults.
type Options struct {
	Kind        string    // "": Auto
	Column      string    // of a table: the column with a path or an address; "": the first of PathColumns that is there
	BytesColumn string    // of a table: the column with the bytes (base64 in text); "": the first of BytesColumns
	IDColumn    string    // of a table: names the rows; "": the path, or table and line number
	Root        string    // folder of relative paths; "": the working directory for lists, the table's folder for tables
	MaxBytes    int64     // largest picture; required
	Videos      bool      // videos are inputs too, and paths that lists and tables name may be folders of frames
	MaxClip     int64     // largest video; required with Videos
	Stdin       io.Reader // for the input "-"; nil: refused
	Store       Store     // nil: addresses are refused by name
}

// Source lists the items of a run. It holds no files open and reads folders while it is iterated.
type Source struct {
	o     Options
	roots []root
}

type root struct {
	name string // a path, an address or "-"
	kind string // never Auto
}

// New checks that every input exists and expands globs. All inputs that are wrong are in the one error, an ErrInput.
func New(inputs []string, o Options) (*Source, error) {
	if len(inputs) == 0 {
		return nil, fmt.Errorf("%w: no pictures named", ErrInput)
	}
	if o.Kind == "" {
		o.Kind = Auto
	}
	if !slices.Contains(Kinds, o.Kind) {
		return nil, fmt.Errorf("%w: the kind of inputs must be one of %s, not %q", ErrInput, strings.Join(Kinds, ", "), o.Kind)
	}
	s := &Source{o: o}
	var wrong []error
	for _, in := range inputs {
		roots, err := s.expand(in)
		if err != nil {
			wrong = append(wrong, err)
		}
		s.roots = append(s.roots, roots...)
	}
	stdins := 0
	for _, r := range s.roots {
		if r.name == "-" {
			stdins++
		}
	}
	if stdins > 1 {
		wrong = append(wrong, errors.New("standard input can be read once only"))
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrInput, errors.Join(wrong...))
	}
	return s, nil
}

// expand returns the path itself when there is such a file, whatever characters its name has, and otherwise the
// matches of the glob.
func (s *Source) expand(in string) ([]root, error) {
	if in == "-" {
		if s.o.Stdin == nil {
			return nil, errors.New("there is no standard input to read")
		}
		kind := s.o.Kind
		switch kind {
		case Auto:
			kind = List
		case Parquet:
			return nil, errors.New("a Parquet file cannot be read from standard input; name the file")
		case Picture:
			return nil, errors.New("standard input is a list, a table or a tar shard, not a picture")
		}
		return []root{{"-", kind}}, nil
	}
	if scheme, ok := Scheme(in); ok {
		if err := s.refuseAddress(scheme, in); err != nil {
			return nil, err
		}
		return []root{{in, s.kindOf(in)}}, nil
	}
	_, err := os.Stat(in)
	if err == nil {
		return []root{{in, s.kindOf(in)}}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) || !strings.ContainsAny(in, `*?[`) {
		return nil, err // names the path
	}
	matches, err := glob(in)
	if err != nil {
		return nil, fmt.Errorf("pattern %s: %w", in, err)
	}
	if len(matches) == 0 {
		return nil, fmt.Errorf("pattern %s matches no files", in)
	}
	roots := make([]root, len(matches))
	for i, m := range matches {
		roots[i] = root{m, s.kindOf(m)}
	}
	return roots, nil
}

// kindOf tells by the name; a folder is one of pictures whatever it is called.
func (s *Source) kindOf(name string) string {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return Picture
	}
	if s.o.Kind != Auto {
		return s.o.Kind
	}
	lower := strings.ToLower(withoutQuery(name))
	for _, by := range []struct {
		kind     string
		suffixes []string
	}{
		{WebDataset, []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"}},
		{JSONL, []string{".jsonl", ".ndjson"}},
		{CSV, []string{".csv", ".tsv"}},
		{Parquet, []string{".parquet"}},
		{List, []string{".txt", ".lst"}},
	} {
		if slices.ContainsFunc(by.suffixes, func(x string) bool { return strings.HasSuffix(lower, x) }) {
			return by.kind
		}
	}
	return Picture
}

// Scheme returns the scheme of an address. Windows drive letters and names with a colon are none.
func Scheme(name string) (string, bool) {
	scheme, _, ok := strings.Cut(name, "://")
	if !ok || scheme == "" || strings.ContainsAny(scheme, "/\\ ") {
		return "", false
	}
	return strings.ToLower(scheme), true
}

func (s *Source) refuseAddress(scheme, address string) error {
	if s.o.Store != nil && s.o.Store.Handles(scheme) {
		return nil
	}
	if scheme == "http" || scheme == "https" {
		return &row.ItemError{Kind: row.KindURL, Message: address + ": a batch does not fetch from web servers; fetch the pictures into a folder or an object store first"}
	}
	return &row.ItemError{Kind: row.KindURL, Message: fmt.Sprintf("%s: no object store is set up for %s://", address, scheme)}
}

// yielder is how items leave; it returns false when the iteration is over.
type yielder func(Item) bool

// Items yields the inputs: roots in the order given, folders depth first by name. A path that is reached twice is
// yielded twice; the runner drops the second. Standard input can be iterated once.
func (s *Source) Items(ctx context.Context) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		for _, r := range s.roots {
			checked := func(i Item) bool { return ctx.Err() == nil && yield(i) }
			if !s.walkRoot(ctx, r, checked) {
				return
			}
		}
	}
}

// walkRoot reports whether the iteration goes on.
func (s *Source) walkRoot(ctx context.Context, r root, yield yielder) bool {
	switch r.kind {
	case Picture:
		if _, ok := Scheme(r.name); ok {
			return s.objects(ctx, r.name, yield)
		}
		return s.walk(ctx, r.name, yield)
	case List:
		return s.list(ctx, r, yield)
	case JSONL:
		return s.jsonl(ctx, r, yield)
	case CSV:
		return s.csv(ctx, r, yield)
	case Parquet:
		return s.parquet(ctx, r, yield)
	default:
		return s.tar(ctx, r, yield)
	}
}

// Count returns how many items there are where that is cheap to find out, for the progress display: -1 where it is not.
func (s *Source) Count(ctx context.Context) int64 {
	for _, r := range s.roots {
		_, remote := Scheme(r.name)
		if r.name == "-" || remote || r.kind == WebDataset || r.kind == JSONL || r.kind == CSV {
			return -1
		}
	}
	var n int64
	for _, r := range s.roots {
		if r.kind == Parquet {
			rows := s.parquetRows(r.name)
			if rows < 0 {
				return -1
			}
			n += rows
			continue
		}
		goOn := s.walkRoot(ctx, r, func(Item) bool { n++; return ctx.Err() == nil })
		if !goOn {
			return -1
		}
	}
	return n
}

// readUntil is r until ctx ends: whoever reads from a pipe or a terminal may wait there for ever, and nothing else wakes the call. What
// is read after the end is lost, and the goroutine that reads stays until the system lets it go.
func readUntil(ctx context.Context, r io.Reader) io.ReadCloser {
	out, in := io.Pipe()
	go func() {
		_, err := io.Copy(in, r)
		in.CloseWithError(err)
	}()
	stop := context.AfterFunc(ctx, func() { in.CloseWithError(context.Cause(ctx)) })
	return readCloser{out, func() error { stop(); return out.Close() }}
}

type readCloser struct {
	io.Reader
	close func() error
}

func (r readCloser) Close() error { return r.close() }

// open opens a root as a stream.
func (s *Source) open(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == "-" {
		return readUntil(ctx, s.o.Stdin), nil
	}
	if _, ok := Scheme(name); ok {
		return s.o.Store.Open(ctx, name)
	}
	return os.Open(name)
}

// objects lists the pictures below an address; an address with a picture's extension is one itself.
func (s *Source) objects(ctx context.Context, address string, yield yielder) bool {
	if s.wanted(address) {
		return yield(Item{ID: row.Printable(address), Path: address, Ref: address})
	}
	for object, err := range s.o.Store.List(ctx, address) {
		if err != nil {
			return yield(Item{ID: row.Printable(address), Path: address, Err: err})
		}
		if !s.wanted(object.Address) {
			continue
		}
		if !yield(Item{ID: row.Printable(object.Address), Path: object.Address, Ref: object.Address, Version: object.Version, Size: object.Size}) {
			return false
		}
	}
	return true
}

// named is the item of a path or address that a list or table names.
func (s *Source) named(name, base string) Item {
	if scheme, ok := Scheme(name); ok {
		item := Item{ID: row.Printable(name), Path: name, Ref: name}
		if err := s.refuseAddress(scheme, name); err != nil {
			item.Err, item.Ref = err, ""
		}
		return item
	}
	path := filepath.FromSlash(name)
	if s.o.Root != "" {
		base = s.o.Root
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(base, path)
	}
	return newItem(path, nil)
}

// Files, folders and globs.

package source

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"glimpse/batch/row"
)

// walk yields a file, or the pictures of a folder. It reports whether the iteration goes on.
func (s *Source) walk(ctx context.Context, root string, yield yielder) bool {
	info, err := os.Stat(root) // follows a link that was named; links inside folders are not descended into
	if err != nil || !info.IsDir() {
		// A file that vanished since New is an item too: opening it says so in its row.
		return ctx.Err() == nil && yield(newItem(root, nil))
	}
	goOn := true
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			goOn = false
			return fs.SkipAll
		}
		hidden := path != root && strings.HasPrefix(d.Name(), ".")
		switch {
		case hidden && d.IsDir():
			return fs.SkipDir
		case err != nil:
			goOn = yield(newItem(path, err))
		case hidden, d.IsDir(), !s.wanted(path):
			return nil
		default:
			goOn = yield(newItem(path, nil))
		}
		if !goOn {
			return fs.SkipAll
		}
		return nil
	})
	return goOn
}

// wanted reports whether a file of a folder, a shard or a bucket is an input, by its name.
func (s *Source) wanted(path string) bool {
	return slices.Contains(Extensions, extensionOf(path)) || s.o.Videos && IsVideoName(path)
}

// extensionOf is a name's extension in lower case; of an address that of its key, not of what follows a question mark.
func extensionOf(name string) string { return strings.ToLower(filepath.Ext(withoutQuery(name))) }

// withoutQuery is an address up to its question mark, which in a key is written %3F. A path stays as it is.
func withoutQuery(name string) string {
	if _, ok := Scheme(name); ok {
		name, _, _ = strings.Cut(name, "?")
	}
	return name
}

// IsVideoName reports whether a file is called like a video.
func IsVideoName(path string) bool {
	return slices.Contains(VideoExtensions, extensionOf(path))
}

// limit is how many bytes a file of this name may have.
func (s *Source) limit(path string) int64 {
	if s.o.Videos && IsVideoName(path) {
		return s.o.MaxClip
	}
	return s.o.MaxBytes
}

func newItem(path string, err error) Item {
	return Item{ID: row.Printable(filepath.ToSlash(filepath.Clean(path))), Path: path, Err: err}
}

// glob returns the matches of a pattern, sorted; names that begin with a dot only match a pattern that does. ** stands for
// any number of folders.
func glob(pattern string) ([]string, error) {
	matches, err := globDeep(pattern)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(filepath.Base(pattern), ".") { // as a shell does
		matches = slices.DeleteFunc(matches, func(m string) bool { return strings.HasPrefix(filepath.Base(m), ".") })
	}
	slices.Sort(matches)
	return slices.Compact(matches), nil
}

func globDeep(pattern string) ([]string, error) {
	if _, err := filepath.Match(pattern, ""); err != nil { // Glob tells about a bad pattern only where it gets that far
		return nil, err
	}
	before, after, ok := strings.Cut(filepath.ToSlash(pattern), "**/")
	if !ok || (before != "" && !strings.HasSuffix(before, "/")) {
		return filepath.Glob(pattern)
	}
	bases := []string{"."}
	switch before {
	case "":
	case "/":
		bases = []string{"/"}
	default:
		var err error
		if bases, err = filepath.Glob(strings.TrimSuffix(before, "/")); err != nil {
			return nil, err
		}
	}
	var matches []string
	for _, base := range bases {
		err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // a folder that cannot be read has no matches, as in Glob
			}
			if path != base && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			more, err := globDeep(filepath.Join(escape(path), after))
			matches = append(matches, more...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return matches, nil
}

// escape makes a path that matches itself only.
func escape(path string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(path)
}
